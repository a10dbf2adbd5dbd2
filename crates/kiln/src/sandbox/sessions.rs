//! What a host's owner asks of the guests of sandboxes: to run commands, and to tell of them.

use super::{SandboxInfo, command};
use crate::console::ConsoleReader;
use crate::error::Error;
use crate::exec::{ExecSpec, SessionInfo};
use crate::guest::ExecSession;
use crate::host::Host;
use crate::process;
use crate::usage::{SandboxStats, VmmUsage};

impl Host {
    /// Runs a command in a sandbox; environment, user and directory that it does not name are those
    /// of the sandbox's image.
    ///
    /// # Errors
    /// [`InvalidState`](crate::ErrorCode::InvalidState) when it does not run, [`CommandNotFound`](crate::ErrorCode::CommandNotFound),
    /// [`CommandNotExecutable`](crate::ErrorCode::CommandNotExecutable), [`ExecFailed`](crate::ErrorCode::ExecFailed),
    /// [`AgentUnreachable`](crate::ErrorCode::AgentUnreachable).
    pub async fn exec(&self, key: &str, spec: &ExecSpec) -> Result<ExecSession, Error> {
        let link = self.link(key, "exec in")?;
        let view = self.view(key)?;
        let completed = process::complete(view.row.image_config.as_ref(), spec)?;
        self.shared.counters.command();
        let held = view
            .activity
            .begin(spec.tty.is_some() && !spec.keep_timeout);
        Ok(link.exec_completed(&completed).await?.counting_as(held))
    }

    /// What the main process of a sandbox is, when these words were given for it: the image's
    /// entrypoint, or `entrypoint` in its place, with the words or the image's own command. `None`
    /// when neither image nor caller says anything.
    ///
    /// # Errors
    /// [`NotFound`](crate::ErrorCode::NotFound), [`Ambiguous`](crate::ErrorCode::Ambiguous).
    pub async fn main_command(
        &self,
        key: &str,
        entrypoint: Option<&[String]>,
        words: &[String],
    ) -> Result<Option<Vec<String>>, Error> {
        let view = self.view(key)?;
        let config = command::own_command(&view.row);
        Ok(process::main_command(config, entrypoint, words))
    }

    /// Attaches to a session of a sandbox; what its ring still holds comes first.
    ///
    /// # Errors
    /// As [`Host::exec`], and [`SessionNotFound`](crate::ErrorCode::SessionNotFound).
    pub async fn attach(&self, key: &str, session: u64) -> Result<ExecSession, Error> {
        let link = self.link(key, "attach to")?;
        let activity = self.view(key)?.activity;
        let attached = link.attach(session, 0).await?;
        let held = activity.begin(attached.tty);
        Ok(attached.counting_as(held))
    }

    /// The sessions of a sandbox.
    ///
    /// # Errors
    /// [`InvalidState`](crate::ErrorCode::InvalidState) when it does not run, [`AgentUnreachable`](crate::ErrorCode::AgentUnreachable).
    pub async fn sessions(&self, key: &str) -> Result<Vec<SessionInfo>, Error> {
        Ok(self.link(key, "list the sessions of")?.sessions().await?)
    }

    /// Ends a session of a sandbox with all its processes.
    ///
    /// # Errors
    /// As [`Host::sessions`], and [`SessionNotFound`](crate::ErrorCode::SessionNotFound).
    pub async fn kill(&self, key: &str, session: u64) -> Result<(), Error> {
        Ok(self.link(key, "end a session of")?.kill(session).await?)
    }

    /// Figures of a running sandbox: of its guest, as the guest itself tells them, and of its VMM, as
    /// this host's kernel does.
    ///
    /// # Errors
    /// [`InvalidState`](crate::ErrorCode::InvalidState) when it does not run, [`AgentUnreachable`](crate::ErrorCode::AgentUnreachable).
    pub async fn stats(&self, key: &str) -> Result<SandboxStats, Error> {
        let link = self.link(key, "ask")?;
        let pid = SandboxInfo::from(self.view(key)?.row.as_ref()).pid;
        Ok(SandboxStats {
            guest: link.stats().await?,
            vmm: pid.and_then(VmmUsage::of),
        })
    }

    /// The console of a sandbox, from the oldest byte that is kept.
    ///
    /// # Errors
    /// [`NotFound`](crate::ErrorCode::NotFound); a console that cannot be read.
    pub async fn console(&self, key: &str, follow: bool) -> Result<ConsoleReader, Error> {
        let view = self.view(key)?;
        let path = self.shared.directories.console(&view.row.id);
        ConsoleReader::open(&path, view.machine.as_deref(), follow)
    }
}
