//! Ending processes that nobody holds: found by what they are, never trusted by their number.

use std::io::{Error, ErrorKind};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// How long a killed process may take to be gone.
const LAST_MOMENTS: Duration = Duration::from_secs(20);

/// Ends every process that `is_it` is true of, but this one. Each is held before it is looked at
/// once more, so that a stranger who got its number meanwhile is never signalled. Blocks.
///
/// # Errors
/// A process cannot be signalled, or does not go.
pub fn end_strays(is_it: impl Fn(Pid) -> bool) -> std::io::Result<()> {
    let own = rustix::process::getpid();
    for pid in processes().filter(|pid| *pid != own) {
        if !is_it(pid) {
            continue;
        }
        let process = match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(process) => process,
            Err(Errno::SRCH) => continue,
            Err(error) => return Err(error.into()),
        };
        if !is_it(pid) {
            continue;
        }
        tracing::info!(pid = pid.as_raw_nonzero().get(), "ending a stray process");
        pidfd_send_signal(&process, Signal::KILL)?;
        let patience = Timespec {
            tv_sec: LAST_MOMENTS.as_secs().cast_signed(),
            tv_nsec: 0,
        };
        if poll(&mut [PollFd::new(&process, PollFlags::IN)], Some(&patience))? == 0 {
            return Err(Error::from(ErrorKind::TimedOut));
        }
    }
    Ok(())
}

fn processes() -> impl Iterator<Item = Pid> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| Pid::from_raw(entry.file_name().to_str()?.parse().ok()?))
}
