//! A QEMU process of a chore: given its sockets, waited for with a deadline, gone in any case.

use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, ExitStatus};
use std::time::Duration;

use rustix::io::FdFlags;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::deadline::wait_readable;

/// QEMU under `setpriv`, so that it dies with us even when we are killed outright.
pub(crate) fn command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL"]).arg(program);
    command
}

/// The process, killed when dropped.
#[derive(Debug)]
pub(crate) struct Qemu {
    child: Child,
    pidfd: OwnedFd,
}

impl Qemu {
    /// Starts QEMU with its ends of sockets, which its arguments name by number. Nothing else may
    /// be started by other threads while these are inheritable.
    pub(crate) fn start(command: &mut Command, ends: &[&UnixStream]) -> io::Result<Self> {
        let inheritable = |flags| {
            ends.iter()
                .try_for_each(|end| rustix::io::fcntl_setfd(end, flags))
        };
        inheritable(FdFlags::empty())?;
        let child = command.spawn();
        inheritable(FdFlags::CLOEXEC)?;
        let mut child = child?;
        match pidfd_open(Pid::from_child(&child), PidfdFlags::empty()) {
            Ok(pidfd) => Ok(Self { child, pidfd }),
            Err(error) => {
                let _ = child.kill();
                let _ = child.wait();
                Err(error.into())
            }
        }
    }

    /// Waits for the end, or returns `None` at the deadline.
    pub(crate) fn wait(&mut self, timeout: Duration) -> io::Result<Option<ExitStatus>> {
        if wait_readable(&self.pidfd, timeout)? {
            self.child.wait().map(Some)
        } else {
            Ok(None)
        }
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
