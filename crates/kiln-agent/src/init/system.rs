//! What programs expect of a running Linux around their root filesystem.

use std::fmt::Display;
use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;

use rustix::io::Errno;
use rustix::mount::MountFlags;
use rustix::process::{Gid, Resource, Rlimit};
use rustix::system::{RebootCommand, reboot};

use super::InitError;
use super::root::filesystem;
use crate::console;
use crate::sys::network;

/// Where the control groups are.
pub(crate) const CGROUPS: &str = "/sys/fs/cgroup";

/// Descriptors that a program may open, at most.
const MAX_FILES: u64 = 1_048_576;
/// Descriptors that it may open without asking; the agent has a few per session.
const USUAL_FILES: u64 = 65_536;

/// `/proc`, `/sys` and `/dev`: without them nothing else can be done, or even said.
pub(super) fn mount_kernel_filesystems() -> Result<(), InitError> {
    let secure = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    for (kind, target, flags, options) in [
        ("devtmpfs", "/dev", MountFlags::NOSUID, "mode=0755"),
        ("proc", "/proc", secure, ""),
        ("sysfs", "/sys", secure, ""),
    ] {
        let _ = fs::create_dir(target);
        match filesystem(Path::new(kind), kind, target, flags, options) {
            // The kernel may have mounted it itself.
            Err(InitError::Mount { source, .. })
                if source.raw_os_error() == Some(Errno::BUSY.raw_os_error()) => {}
            result => result?,
        }
    }
    Ok(())
}

/// Process 1 must outlive everything: the kernel panics without it. The OOM killer never takes
/// it, so it has no `oom_score_adj`, which every command would inherit.
pub(super) fn protect_process_1() {
    // Ctrl-Alt-Del becomes SIGINT to process 1, instead of a reset.
    try_to("catch Ctrl-Alt-Del", || Ok(reboot(RebootCommand::CadOff)?));
    // As every command of root's has them, which then need not be set for each.
    try_to("enter root's group", || {
        Ok(rustix::thread::set_thread_groups(&[Gid::ROOT])?)
    });
    try_to("raise the limit of open files", || {
        Ok(rustix::process::setrlimit(
            Resource::Nofile,
            Rlimit {
                current: Some(USUAL_FILES),
                maximum: Some(MAX_FILES),
            },
        )?)
    });
}

/// The rest. An image may be strange enough that one of these fails; it is usable without.
pub(super) fn furnish() {
    for (kind, target, mode, options) in [
        ("tmpfs", "/run", 0o755, "mode=0755"),
        ("devpts", "/dev/pts", 0o755, "gid=5,mode=0620,ptmxmode=0666"),
        ("tmpfs", "/dev/shm", 0o1777, "mode=1777"),
        ("mqueue", "/dev/mqueue", 0o1777, ""),
    ] {
        mount_extra(kind, target, mode, options);
    }
    mount_cgroups();
    make_tmp();
    for (target, link) in [
        ("/proc/self/fd", "/dev/fd"),
        ("/proc/self/fd/0", "/dev/stdin"),
        ("/proc/self/fd/1", "/dev/stdout"),
        ("/proc/self/fd/2", "/dev/stderr"),
    ] {
        // The kernel's /dev may have them already.
        let _ = symlink(target, link);
    }
    try_to("bring up the loopback interface", network::loopback_up);
}

/// Every session moves a process into a new group. Usually the kernel waits for a grace period
/// of RCU then (10 ms); `favordynmods` (since Linux 6.0) spares that.
fn mount_cgroups() {
    let (target, secure) = (
        CGROUPS,
        MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC,
    );
    let mount = |options| filesystem(Path::new("cgroup2"), "cgroup2", target, secure, options);
    if let Err(error) = mount("favordynmods").or_else(|_| mount("")) {
        console::warn(error);
    }
}

fn mount_extra(kind: &str, target: &str, mode: u32, options: &str) {
    if !Path::new(target).is_dir() && fs::create_dir_all(target).is_ok() {
        let _ = fs::set_permissions(target, fs::Permissions::from_mode(mode));
    }
    let flags = if kind == "devpts" {
        MountFlags::NOSUID | MountFlags::NOEXEC
    } else {
        MountFlags::NOSUID | MountFlags::NODEV
    };
    if let Err(error) = filesystem(Path::new(kind), kind, target, flags, options) {
        console::warn(error);
    }
}

fn make_tmp() {
    if !Path::new("/tmp").exists() {
        try_to("make /tmp", || {
            fs::create_dir("/tmp")?;
            fs::set_permissions("/tmp", fs::Permissions::from_mode(0o1777))
        });
    }
}

fn try_to(what: &str, step: impl FnOnce() -> std::io::Result<()>) {
    if let Err(error) = step() {
        warn_about(what, &error);
    }
}

fn warn_about(what: &str, error: &dyn Display) {
    console::warn(format_args!("cannot {what}: {error}"));
}
