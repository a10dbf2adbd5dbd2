//! The built `kiln` as a program, with directories of its own and its daemon stopped at the end.
//!
//! Owns the environment that keeps a chore's sandboxes apart from the developer's.

use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::Deserialize;

use crate::deadline::wait_readable;
use crate::namespace::Namespace;
use crate::step::{self, StepError};
use crate::workspace;

/// Why `kiln` did not do what a chore asked of it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum KilnError {
    #[error("cannot make the directory {path}")]
    Directory {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("cannot start `{command}`")]
    Spawn {
        command: String,
        #[source]
        source: io::Error,
    },
    #[error("`{command}` ended with {status}")]
    Failed { command: String, status: ExitStatus },
    #[error("`kiln info --json` answered something else than expected")]
    Info(#[source] serde_json::Error),
    #[error("the daemon {pid} did not end")]
    Daemon {
        pid: i32,
        #[source]
        source: io::Error,
    },
}

/// Makes the release build.
pub(crate) fn build() -> Result<(), StepError> {
    let build = ["build", "--release", "--locked", "-p", "kiln-cli"];
    step::run(&mut step::cargo(build))
}

/// How long the daemon may take to end once it was told to.
const DAEMON_END: Duration = Duration::from_secs(10);

/// A `kiln` with its own data and runtime directories.
#[derive(Debug)]
pub(crate) struct Kiln {
    program: PathBuf,
    data_dir: PathBuf,
    /// Short and elsewhere: the path of a Unix socket has room for 107 bytes only.
    runtime_dir: tempfile::TempDir,
    /// Where its daemon makes networks; without one it makes none.
    namespace: Option<Namespace>,
    closed: bool,
}

/// The part of `kiln info --json` that a chore needs.
#[derive(Debug, Deserialize)]
pub(crate) struct Info {
    pub(crate) daemon_pid: i32,
    /// Which engine runs guests here; none when nothing can.
    pub(crate) engine: Option<String>,
    /// Why that one, or why none.
    pub(crate) engine_reason: String,
}

impl Kiln {
    /// The release build, keeping its kernels and images in a directory.
    pub(crate) fn with_data_dir(data_dir: PathBuf) -> Result<Self, KilnError> {
        std::fs::create_dir_all(&data_dir).map_err(|source| KilnError::Directory {
            path: data_dir.clone(),
            source,
        })?;
        let runtime_dir = tempfile::Builder::new()
            .prefix("kiln-")
            .tempdir()
            .map_err(|source| KilnError::Directory {
                path: std::env::temp_dir(),
                source,
            })?;
        Ok(Self {
            program: workspace::release_kiln(),
            data_dir,
            runtime_dir,
            namespace: None,
            closed: false,
        })
    }

    /// With networks, in a namespace of their own.
    pub(crate) fn networked(mut self, namespace: Namespace) -> Self {
        self.namespace = Some(namespace);
        self
    }

    pub(crate) fn namespace(&self) -> Option<&Namespace> {
        self.namespace.as_ref()
    }

    pub(crate) fn data_dir(&self) -> &Path {
        &self.data_dir
    }

    pub(crate) fn runtime_dir(&self) -> &Path {
        self.runtime_dir.path()
    }

    /// A `kiln` command line.
    pub(crate) fn command<I, S>(&self, arguments: I) -> Command
    where
        I: IntoIterator<Item = S>,
        S: AsRef<OsStr>,
    {
        // Chores leave the machine's own network alone.
        let (mut command, network) = match &self.namespace {
            Some(namespace) => (namespace.command(&self.program), "default"),
            None => (Command::new(&self.program), "none"),
        };
        command
            .args(arguments)
            .env("KILN_NETWORK", network)
            .env("KILN_DATA_DIR", &self.data_dir)
            .env("KILN_RUNTIME_DIR", self.runtime_dir.path());
        command
    }

    /// Where its daemon listens.
    pub(crate) fn socket(&self) -> PathBuf {
        self.runtime_dir.path().join("kiln.sock")
    }

    /// Runs one of our commands to its end and returns its standard output.
    pub(crate) fn output(&self, command: &mut Command) -> Result<Vec<u8>, KilnError> {
        let output = command.output().map_err(|source| KilnError::Spawn {
            command: step::shown(command),
            source,
        })?;
        if output.status.success() {
            return Ok(output.stdout);
        }
        Err(KilnError::Failed {
            command: step::shown(command),
            status: output.status,
        })
    }

    /// What the daemon says of itself; starts it where none runs.
    pub(crate) fn info(&self) -> Result<Info, KilnError> {
        let json = self.output(&mut self.command(["info", "--json"]))?;
        serde_json::from_slice(&json).map_err(KilnError::Info)
    }

    /// Stops the daemon and waits until it has ended.
    pub(crate) fn close(mut self) -> Result<(), KilnError> {
        self.closed = true;
        self.stop_daemon()
    }

    fn stop_daemon(&self) -> Result<(), KilnError> {
        let pid = self.info()?.daemon_pid;
        let failed = |source: io::Error| KilnError::Daemon { pid, source };
        let Some(process) = Pid::from_raw(pid).filter(|process| !process.is_init()) else {
            return Err(failed(io::ErrorKind::InvalidData.into()));
        };
        // A pidfd, so that a daemon that is already gone is not taken for its successor.
        let daemon =
            pidfd_open(process, PidfdFlags::empty()).map_err(|error| failed(error.into()))?;
        pidfd_send_signal(&daemon, Signal::TERM).map_err(|error| failed(error.into()))?;
        match wait_readable(&daemon, DAEMON_END) {
            Ok(true) => Ok(()),
            Ok(false) => Err(failed(io::ErrorKind::TimedOut.into())),
            Err(error) => Err(failed(error)),
        }
    }
}

impl Drop for Kiln {
    /// After an error on the way; that error is the one to be told.
    fn drop(&mut self) {
        if !self.closed && self.program.is_file() {
            let _ = self.stop_daemon();
        }
    }
}
