//! One VMM process: started in a session of its own, held by a pidfd, reaped exactly once.
//!
//! Knows processes and nothing of what runs in them. A process is never named by its number
//! alone: the pidfd is what gets signalled, and a [`ProcessIdentity`] is
//! checked against the kernel before a pidfd of a recorded process is trusted.

mod command;
mod descriptors;
mod identity;
mod stray;

use std::io::ErrorKind;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use rustix::io::Errno;
use rustix::process::{
    PidfdFlags, Signal, WaitId, WaitIdOptions, pidfd_open, pidfd_send_signal, waitid,
};
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;
use tokio::time::timeout;

pub use command::VmmCommand;
pub(crate) use command::{Surroundings, User};
pub use identity::{IdentityError, identify};
pub(crate) use identity::{boot_id, pid_of};
pub use stray::end_strays;

use crate::readable_fd::readable_fd;
use crate::{Exit, ProcessIdentity};

/// How long a killed process may take to be gone: freeing much memory on a busy machine.
const KILL_PATIENCE: Duration = Duration::from_secs(60);

/// A running VMM. Dropping it leaves the process alone.
#[derive(Clone, Debug)]
pub struct VmmProcess {
    identity: ProcessIdentity,
    pidfd: Arc<OwnedFd>,
    exit: watch::Receiver<Option<Exit>>,
}

/// Why a recorded process cannot be taken over.
#[derive(Debug, thiserror::Error)]
pub enum TakeOverError {
    /// It is gone: another boot, a free number, or a number that is a stranger's now.
    #[error("the recorded process is gone")]
    Gone,
    /// The kernel would not say.
    #[error("cannot examine the recorded process")]
    Unknown(#[source] std::io::Error),
}

impl VmmProcess {
    /// Starts `command` and watches it. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// The program cannot be executed, or the process cannot be watched; nothing is left behind.
    pub async fn spawn(command: VmmCommand) -> std::io::Result<Self> {
        // Blocking: returns after the child's exec. If this future is dropped meanwhile, the
        // result is dropped with it, and a dropped newborn is killed and reaped.
        let newborn = tokio::task::spawn_blocking(move || command.start())
            .await
            .map_err(std::io::Error::other)??;
        let watcher = readable_fd(newborn.pidfd().try_clone()?)?;
        let (identity, pidfd) = newborn.release();
        Ok(Self::watched(identity, pidfd, watcher, Parent::This))
    }

    /// Takes over the process that `identity` names, when it still is that process.
    ///
    /// # Errors
    /// [`TakeOverError::Gone`] when it is not: the process with its number is never signalled.
    pub fn take_over(identity: &ProcessIdentity) -> Result<Self, TakeOverError> {
        let pid = pid_of(identity).ok_or(TakeOverError::Gone)?;
        // First the pidfd, then the check: if the number is reused in between, the start time
        // differs, so a pidfd that passes the check is the recorded process.
        let pidfd = match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(pidfd) => pidfd,
            Err(Errno::SRCH) => return Err(TakeOverError::Gone),
            Err(error) => return Err(TakeOverError::Unknown(error.into())),
        };
        identity::verify(identity)?;
        let watcher = pidfd
            .try_clone()
            .and_then(readable_fd)
            .map_err(TakeOverError::Unknown)?;
        Ok(Self::watched(
            identity.clone(),
            Arc::new(pidfd),
            watcher,
            Parent::Another,
        ))
    }

    fn watched(
        identity: ProcessIdentity,
        pidfd: Arc<OwnedFd>,
        watcher: AsyncFd<OwnedFd>,
        parent: Parent,
    ) -> Self {
        let (publish, exit) = watch::channel(None);
        // Detached on purpose: a child is reaped even when nobody holds its machine any more.
        tokio::spawn(async move {
            let ended = watcher.readable().await.is_ok();
            let exit = match parent {
                Parent::This if ended => reap(watcher.get_ref()),
                Parent::This | Parent::Another => Exit::Unknown,
            };
            publish.send_replace(Some(exit));
        });
        Self {
            identity,
            pidfd,
            exit,
        }
    }

    /// What has to be written down to take it over.
    #[must_use]
    pub fn identity(&self) -> &ProcessIdentity {
        &self.identity
    }

    /// Another descriptor of it, for a process that has to watch it too.
    pub(crate) fn pidfd(&self) -> std::io::Result<OwnedFd> {
        self.pidfd.try_clone()
    }

    /// How it ended, if it did.
    #[must_use]
    pub fn exited(&self) -> Option<Exit> {
        *self.exit.borrow()
    }

    /// Waits until it is gone. Cancel-safe.
    pub async fn wait(&self) -> Exit {
        let mut exit = self.exit.clone();
        // The sender goes away without a word only when the runtime shuts down.
        match exit.wait_for(Option::is_some).await {
            Ok(exit) => exit.unwrap_or(Exit::Unknown),
            Err(_) => Exit::Unknown,
        }
    }

    /// Ends it: SIGTERM first when `grace` is not zero, then SIGKILL.
    ///
    /// # Errors
    /// The kernel refuses the signal, for instance to a process of another user, or cannot end
    /// the process.
    pub async fn end(&self, grace: Duration) -> std::io::Result<Exit> {
        if !grace.is_zero() && self.exited().is_none() {
            self.signal(Signal::TERM)?;
            if let Ok(exit) = timeout(grace, self.wait()).await {
                return Ok(exit);
            }
        }
        if self.exited().is_none() {
            self.signal(Signal::KILL)?;
        }
        // A process that the kernel holds up (a dead network disk, say) survives even that.
        timeout(KILL_PATIENCE, self.wait()).await.map_err(|_| {
            std::io::Error::new(
                ErrorKind::TimedOut,
                "killed, but the kernel does not end it",
            )
        })
    }

    fn signal(&self, signal: Signal) -> std::io::Result<()> {
        match pidfd_send_signal(&*self.pidfd, signal) {
            // It ended by itself in between.
            Ok(()) | Err(Errno::SRCH) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

/// Whose child a process is; the kernel tells its exit status to that one only.
#[derive(Clone, Copy)]
enum Parent {
    This,
    Another,
}

fn reap(pidfd: &OwnedFd) -> Exit {
    let status = match waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED) {
        Ok(Some(status)) => status,
        // Somebody in this process waits for any child and was faster.
        Ok(None) | Err(_) => return Exit::Unknown,
    };
    if let Some(code) = status.exit_status() {
        Exit::Code(code)
    } else if let Some(signal) = status.terminating_signal() {
        Exit::Signal(signal)
    } else {
        Exit::Unknown
    }
}

#[cfg(test)]
mod tests;
