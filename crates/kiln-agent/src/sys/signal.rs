//! Signals by number, real-time ones too.
#![allow(
    unsafe_code,
    reason = "rustix takes real-time signals as unsafe, for the threads of this process"
)]

use std::io;

use rustix::process::Pid;

/// Real-time signals begin here for programs: the C library keeps two for itself.
pub(crate) const REAL_TIME: i32 = 34;
/// The last signal of Linux.
pub(crate) const LAST: i32 = 64;

/// Sends a signal to another process.
pub(crate) fn send(pid: Pid, number: i32) -> io::Result<()> {
    // SAFETY: touches no memory; what `pid` makes of the signal is its own affair.
    match unsafe { libc::kill(pid.as_raw_nonzero().get(), number) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
