//! Registering descriptors with the event loop.
#![allow(
    unsafe_code,
    reason = "tokio cannot know that a type keeps its descriptor"
)]

use std::io;
use std::os::fd::OwnedFd;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Registers `fd` for nothing but its failure.
pub(crate) fn register_for_failure(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` is the same open descriptor until it is dropped.
    let registered = unsafe { AsyncFd::register_with_interest(fd, Interest::ERROR) };
    Ok(registered?)
}

/// Registers `fd`, which the caller has made non-blocking.
pub(crate) fn register(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` is the same open descriptor until it is dropped.
    let registered = unsafe { AsyncFd::register(fd) };
    Ok(registered?)
}
