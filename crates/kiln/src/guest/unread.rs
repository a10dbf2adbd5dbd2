//! Whether the peer of a Unix socket has read what was written.
#![allow(unsafe_code, reason = "TIOCOUTQ has no safe wrapper")]

use std::ffi::c_int;
use std::io;
use std::os::fd::AsFd;

use rustix::ioctl::{Getter, Opcode, ioctl};

/// From the kernel's `asm-generic/ioctls.h`.
const TIOCOUTQ: Opcode = 0x5411;

/// Memory in the socket's send queue, in bytes; 0 when the peer has read everything.
pub(super) fn unread(socket: impl AsFd) -> io::Result<u64> {
    // SAFETY: the kernel writes one `int`.
    let bytes = unsafe { ioctl(socket, Getter::<TIOCOUTQ, c_int>::new())? };
    Ok(u64::try_from(bytes).unwrap_or(0))
}
