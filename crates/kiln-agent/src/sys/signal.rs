//! Signals by number, real-time ones too.
#![allow(
    unsafe_code,
    reason = "rustix takes real-time signals as unsafe, for the threads of this process, and has \
              no actions"
)]

use std::{io, mem, ptr};

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

/// Forgets which signals whoever started us had ignored, which commands would inherit: process 1
/// begins with none. SIGPIPE is Rust's own matter.
pub(crate) fn ignore_none() {
    for number in (1..=LAST).filter(|number| *number != libc::SIGPIPE) {
        // SAFETY: reads into a structure of ours, all zeroes of which is the default action.
        unsafe {
            let mut action: libc::sigaction = mem::zeroed();
            let found = libc::sigaction(number, ptr::null(), &raw mut action) == 0;
            if found && action.sa_sigaction == libc::SIG_IGN {
                let default: libc::sigaction = mem::zeroed();
                libc::sigaction(number, &raw const default, ptr::null_mut());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Ignored by a shell in the background, or by `nohup`.
    #[test]
    fn ignored_signals_are_forgotten() {
        let ignored = || {
            let status = std::fs::read_to_string("/proc/self/status").unwrap();
            let line = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
            let set = u64::from_str_radix(line.unwrap().trim(), 16).unwrap();
            move |number: i32| set >> (number - 1) & 1 == 1
        };
        // SAFETY: nothing in this process waits for a signal.
        unsafe { libc::signal(libc::SIGQUIT, libc::SIG_IGN) };
        assert!(ignored()(libc::SIGQUIT) && ignored()(libc::SIGPIPE));
        ignore_none();
        assert!(!ignored()(libc::SIGQUIT) && ignored()(libc::SIGPIPE));
    }
}
