//! The built `kiln` as a program, with directories of its own and its daemon stopped at the end.
//!
//! Owns the environment that keeps a chore's sandboxes apart from the developer's.

use std::ffi::OsStr;
use std::io;
use std::path::PathBuf;
use std::process::{Command, ExitStatus};
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::Deserialize;

use crate::deadline::wait_readable;
use crate::step;
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

/// How long the daemon may take to end once it was told to.
const DAEMON_END: Duration = Duration::from_secs(10);

/// A `kiln` with its own data and runtime directories.
#[derive(Debug)]
pub(crate) struct Kiln {
    program: PathBuf,
    data_dir: PathBuf,
    /// Short and elsewhere: the path of a Unix socket has room for 107 bytes only.
    runtime_dir: tempfile::TempDir,
    closed: bool,
}

/// The part of `kiln info --json` that a chore needs.
#[derive(Debug, Deserialize)]
pub(crate) struct Info {
    pub(crate) daemon_pid: i32,
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
            closed: false,
        })
    }

    /// A `kiln` command line.
    pub(crate) fn command<I, S>(&self, arguments: I) -> Command
    where
        I: IntoIterator<Item = S>,
        S: AsRef<OsStr>,
    {
        let mut command = Command::new(&self.program);
        command
            .args(arguments)
            // Chores leave the machine's own network alone.
            .env("KILN_NETWORK", "none")
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
