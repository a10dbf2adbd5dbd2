//! What a new process does between fork and exec.
#![allow(
    unsafe_code,
    reason = "std's only hook between fork and exec is unsafe"
)]

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::Command;

use rustix::fs::{CWD, Mode, OFlags};
use rustix::process::{Gid, Uid};

/// Who and where a process becomes, before it executes its program.
#[derive(Debug)]
pub(crate) struct ChildSetup {
    /// Standard input becomes its controlling terminal.
    pub(crate) terminal: bool,
    /// `cgroup.procs` of the group it joins.
    pub(crate) cgroup: Option<OwnedFd>,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) groups: Vec<u32>,
    pub(crate) cwd: PathBuf,
}

/// Told apart from the program's own errors by a number that no other step here gives.
const CWD_FAILED: rustix::io::Errno = rustix::io::Errno::NOTUNIQ;

/// Whether a spawn failed because the directory could not be entered.
pub(crate) fn is_cwd_failure(error: &io::Error) -> bool {
    error.raw_os_error() == Some(CWD_FAILED.raw_os_error())
}

/// Lets the process that `command` starts become what `setup` says.
pub(crate) fn prepare(command: &mut Command, setup: ChildSetup) {
    // SAFETY: the agent has one thread, so the child has everything the parent had, locks and
    // allocator included; `become_child` makes system calls only.
    unsafe {
        command.pre_exec(move || become_child(&setup));
    }
}

fn become_child(setup: &ChildSetup) -> io::Result<()> {
    // A session and process group of its own: signals to the group reach it and not us.
    rustix::process::setsid()?;
    if setup.terminal {
        // SAFETY: std has made descriptor 0 this process's standard input, and nothing closes it.
        let stdin = unsafe { BorrowedFd::borrow_raw(0) };
        rustix::process::ioctl_tiocsctty(stdin)?;
    }
    if let Some(procs) = &setup.cgroup {
        rustix::io::write(procs, b"0")?;
    }
    allow_oom_kill();
    let groups: Vec<Gid> = setup.groups.iter().map(|&gid| Gid::from_raw(gid)).collect();
    // The kernel allows these to root only; a test that runs as somebody stays who it is.
    if rustix::process::geteuid().is_root() {
        rustix::thread::set_thread_groups(&groups)?;
        let gid = Gid::from_raw(setup.gid);
        rustix::thread::set_thread_res_gid(gid, gid, gid)?;
        let uid = Uid::from_raw(setup.uid);
        rustix::thread::set_thread_res_uid(uid, uid, uid)?;
    }
    rustix::process::umask(Mode::from_raw_mode(0o022));
    // After the user, as whom it has to be allowed.
    rustix::process::chdir(&setup.cwd).map_err(|_| CWD_FAILED)?;
    Ok(())
}

/// Process 1 is exempt from the OOM killer; its children must not inherit that.
fn allow_oom_kill() {
    let flags = OFlags::WRONLY | OFlags::CLOEXEC;
    if let Ok(file) = rustix::fs::openat(CWD, c"/proc/self/oom_score_adj", flags, Mode::empty()) {
        // Lowering below the parent's value is what may be refused, and that is not asked here.
        let _ = rustix::io::write(file, b"0");
    }
}
