//! Waiting until an owned descriptor can be read: pidfds, FIFOs, inotify.
#![allow(
    unsafe_code,
    reason = "tokio asks for a promise that an owned descriptor keeps"
)]

use std::os::fd::OwnedFd;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Must be called within a tokio runtime.
pub(crate) fn readable_fd(fd: OwnedFd) -> std::io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` is open, and stays the same descriptor, for as long as it is held; it
    // is moved in and nothing gets at it mutably.
    let watched = unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) };
    Ok(watched?)
}
