//! Waiting for a descriptor, a pidfd above all, but not for ever.

use std::io;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// Waits until the descriptor is readable; `false` at the deadline. A pidfd becomes readable when
/// its process ends.
pub(crate) fn wait_readable(fd: impl AsFd, timeout: Duration) -> io::Result<bool> {
    let deadline = Instant::now() + timeout;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let left = Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(left.subsec_nanos()),
        };
        match poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&left)) {
            Ok(ready) => return Ok(ready > 0),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn what_is_silent_meets_its_deadline_and_what_ends_does_not() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        assert!(!wait_readable(&ours, Duration::from_millis(10)).unwrap());
        drop(theirs);
        assert!(wait_readable(&ours, Duration::from_secs(60)).unwrap());
    }
}
