//! Starting the process: what it inherits, and that this is all it inherits.
#![allow(
    unsafe_code,
    reason = "the child prepares itself between fork and exec"
)]

use std::ffi::OsString;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;

use rustix::fs::{CWD, Mode, OFlags, RawDir, openat};
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, pidfd_open, pidfd_send_signal, setsid, waitid,
};

use super::identify;
use crate::ProcessIdentity;

/// A VMM to be started: in its own session, with an empty environment, standard input from
/// `/dev/null`, and no file descriptors but those given here.
///
/// No parent-death signal is set: machines outlive the process that starts them.
#[derive(Debug)]
pub struct VmmCommand {
    program: PathBuf,
    args: Vec<OsString>,
    stdout: OwnedFd,
    stderr: OwnedFd,
    inherited: Vec<OwnedFd>,
}

impl VmmCommand {
    /// A command without arguments.
    #[must_use]
    pub fn new(program: PathBuf, stdout: OwnedFd, stderr: OwnedFd) -> Self {
        Self {
            program,
            args: Vec::new(),
            stdout,
            stderr,
            inherited: Vec::new(),
        }
    }

    /// Adds arguments.
    pub fn args<I>(&mut self, args: I) -> &mut Self
    where
        I: IntoIterator,
        I::Item: Into<OsString>,
    {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }

    /// Lets the child have `fd`, under the number that is returned.
    pub fn inherit(&mut self, fd: OwnedFd) -> RawFd {
        let number = fd.as_raw_fd();
        self.inherited.push(fd);
        number
    }

    /// Forks and executes. Blocks until the program runs.
    pub(crate) fn start(self) -> std::io::Result<Newborn> {
        let inherited: Vec<RawFd> = self.inherited.iter().map(AsRawFd::as_raw_fd).collect();
        let mut command = Command::new(&self.program);
        command
            .args(&self.args)
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(self.stdout)
            .stderr(self.stderr);
        // SAFETY: the closure runs in the forked child of a program that may have threads, so it
        // may only do what is async-signal-safe: it makes system calls on memory that exists
        // already (the vector was filled before the fork) and neither allocates nor locks.
        unsafe {
            command.pre_exec(move || {
                setsid()?;
                keep_only(&inherited)
            });
        }
        let child = command.spawn()?;
        Newborn::of(child.id())
    }
}

/// Marks every descriptor but the standard ones and `kept` to be closed by the exec.
///
/// Marked, not closed: the standard library still reports a failed exec through one of them.
fn keep_only(kept: &[RawFd]) -> std::io::Result<()> {
    let directory = openat(
        CWD,
        c"/proc/self/fd",
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    let mut buffer = [MaybeUninit::<u8>::uninit(); 2048];
    let mut entries = RawDir::new(&directory, &mut buffer);
    while let Some(entry) = entries.next() {
        let entry = entry?;
        // `.` and `..` are no numbers.
        let Some(number) = parse_fd(entry.file_name().to_bytes()) else {
            continue;
        };
        if number <= 2 {
            continue;
        }
        let flags = if kept.contains(&number) {
            FdFlags::empty()
        } else {
            FdFlags::CLOEXEC
        };
        // SAFETY: the kernel has just listed this number, and nothing else runs in this process
        // that could close it.
        let fd = unsafe { BorrowedFd::borrow_raw(number) };
        fcntl_setfd(fd, flags)?;
    }
    Ok(())
}

fn parse_fd(name: &[u8]) -> Option<RawFd> {
    std::str::from_utf8(name).ok()?.parse().ok()
}

/// A process that was just started and is nobody's yet: dropped, it is killed and reaped.
#[derive(Debug)]
#[must_use]
pub(crate) struct Newborn {
    identity: ProcessIdentity,
    pidfd: Arc<OwnedFd>,
    released: bool,
}

impl Newborn {
    fn of(pid: u32) -> std::io::Result<Self> {
        let pid = i32::try_from(pid)
            .ok()
            .and_then(Pid::from_raw)
            .ok_or_else(|| std::io::Error::other("the kernel gave an impossible process number"))?;
        // Our child and not reaped yet: the number cannot be anyone else's.
        let pidfd = pidfd_open(pid, PidfdFlags::empty())?;
        match identify(pid) {
            Ok(identity) => Ok(Self {
                identity,
                pidfd: Arc::new(pidfd),
                released: false,
            }),
            Err(error) => {
                kill_and_reap(&pidfd);
                Err(std::io::Error::other(error))
            }
        }
    }

    pub(crate) fn pidfd(&self) -> &OwnedFd {
        &self.pidfd
    }

    /// Hands the process over to who watches it.
    pub(crate) fn release(mut self) -> (ProcessIdentity, Arc<OwnedFd>) {
        self.released = true;
        (self.identity.clone(), Arc::clone(&self.pidfd))
    }
}

impl Drop for Newborn {
    fn drop(&mut self) {
        if !self.released {
            kill_and_reap(&self.pidfd);
        }
    }
}

fn kill_and_reap(pidfd: &OwnedFd) {
    // Nothing can be done about a failure here: it is our own child, alive or a zombie.
    let _ = pidfd_send_signal(pidfd, Signal::KILL);
    let _ = waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED);
}
