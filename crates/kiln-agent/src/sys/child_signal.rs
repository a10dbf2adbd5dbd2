//! Ends of children, as a descriptor that can be waited for like any other.
//!
//! A handler would interrupt the event loop, write to a pipe, and have the loop read it back: under
//! software emulation that is a good part of what ending a command costs.
#![allow(unsafe_code, reason = "no library of ours has signalfd")]

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{FromRawFd as _, OwnedFd};

use rustix::io::Errno;
use tokio::io::unix::AsyncFd;

use super::event::register;

/// Becomes ready when a child has ended. Children are started with no signal blocked.
#[derive(Debug)]
pub(crate) struct ChildSignal(AsyncFd<OwnedFd>);

impl ChildSignal {
    /// Blocks `SIGCHLD` in this thread: the agent has one.
    pub(crate) fn new() -> io::Result<Self> {
        let mut set = MaybeUninit::<libc::sigset_t>::uninit();
        // SAFETY: the set is initialised by the first call before the others read it; the returned
        // descriptor is new and nobody else's.
        let fd = unsafe {
            libc::sigemptyset(set.as_mut_ptr());
            libc::sigaddset(set.as_mut_ptr(), libc::SIGCHLD);
            let error = libc::pthread_sigmask(libc::SIG_BLOCK, set.as_ptr(), std::ptr::null_mut());
            if error != 0 {
                return Err(io::Error::from_raw_os_error(error));
            }
            let flags = libc::SFD_CLOEXEC | libc::SFD_NONBLOCK;
            match libc::signalfd(-1, set.as_ptr(), flags) {
                -1 => return Err(io::Error::last_os_error()),
                fd => OwnedFd::from_raw_fd(fd),
            }
        };
        Ok(Self(register(fd)?))
    }

    /// Waits until at least one child has ended since the last call. A signal stands for any number
    /// of ends.
    pub(crate) async fn ended(&self) -> io::Result<()> {
        loop {
            let mut ready = self.0.readable().await?;
            if self.take()? {
                return Ok(());
            }
            ready.clear_ready();
        }
    }

    /// Whether there was a signal.
    fn take(&self) -> io::Result<bool> {
        let mut info = [0_u8; size_of::<libc::signalfd_siginfo>()];
        match rustix::io::read(self.0.get_ref(), &mut info) {
            Ok(_) => Ok(true),
            Err(Errno::AGAIN) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_before_and_after_the_wait_are_heard() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let signal = ChildSignal::new().unwrap();
            for _ in 0..2 {
                // Sent to this thread: another one of the tests' would take a process's signal.
                // SAFETY: a signal that this thread has blocked.
                unsafe { libc::pthread_kill(libc::pthread_self(), libc::SIGCHLD) };
                signal.ended().await.unwrap();
            }
            let quiet = std::time::Duration::from_millis(20);
            // Children of other tests end as well, and may be heard here, but not for ever.
            let mut heard = 0;
            while tokio::time::timeout(quiet, signal.ended()).await.is_ok() {
                heard += 1;
                assert!(heard < 1000, "it is never quiet");
            }
        });
    }
}
