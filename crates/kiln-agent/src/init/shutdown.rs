//! The other end of [`super::bring_up`]: clean disks, then off.

use std::cell::RefCell;
use std::fs::File;
use std::os::fd::AsRawFd as _;

use rustix::mount::{MountFlags, mount_remount};
use rustix::system::{RebootCommand, reboot};

use super::cmdline::SwitchOff;

thread_local! {
    /// Root of the scratch filesystem. It has no path any more once the root is switched.
    static SCRATCH: RefCell<Option<File>> = const { RefCell::new(None) };
    /// Roots of the volumes.
    static VOLUMES: RefCell<Vec<File>> = const { RefCell::new(Vec::new()) };
}

/// Keeps what [`settle_disks`] needs.
pub(super) fn remember_scratch(root: File) {
    SCRATCH.set(Some(root));
}

/// Keeps what [`settle_disks`] needs.
pub(super) fn remember_volumes(roots: Vec<File>) {
    VOLUMES.set(roots);
}

/// Writes everything out and makes the filesystems read-only, so that they need no recovery.
/// What does not work is left to the journal: the data are out.
pub(crate) fn settle_disks() {
    rustix::fs::sync();
    let _ = mount_remount("/", MountFlags::RDONLY, "");
    for root in SCRATCH.take().into_iter().chain(VOLUMES.take()) {
        let path = format!("/proc/self/fd/{}", root.as_raw_fd());
        let _ = mount_remount(path, MountFlags::RDONLY | MountFlags::NOATIME, "");
    }
    rustix::fs::sync();
}

/// Switches the machine off. Returns only when the kernel refuses.
pub(crate) fn switch_off(how: SwitchOff) {
    let command = match how {
        SwitchOff::PowerOff => RebootCommand::PowerOff,
        SwitchOff::Reboot => RebootCommand::Restart,
    };
    let _ = reboot(command);
}
