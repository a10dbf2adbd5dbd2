//! Non-blocking file descriptors on the event loop: pipes, terminals, the host's channel.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use futures_util::io::{AsyncRead, AsyncWrite};
use rustix::io::Errno;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::sys::event;

/// A file descriptor that is read and written without blocking.
#[derive(Debug)]
pub(crate) struct Fd(AsyncFd<OwnedFd>);

impl Fd {
    /// Registers `fd` with the event loop and makes it non-blocking.
    pub(crate) fn new(fd: OwnedFd) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&fd, true)?;
        Ok(Self(event::register(fd)?))
    }

    /// Reads what is there. Cancel-safe.
    pub(crate) async fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let mut guard = self.0.readable().await?;
            match guard.try_io(|fd| read(fd, buffer)) {
                Ok(result) => return result,
                Err(_would_block) => {}
            }
        }
    }

    /// Does `work` when there is something to be read, and again as long as it would block.
    /// Cancel-safe.
    pub(crate) async fn when_readable<T>(
        &self,
        mut work: impl FnMut(&Self) -> io::Result<T>,
    ) -> io::Result<T> {
        loop {
            let mut guard = self.0.readable().await?;
            if let Ok(result) = guard.try_io(|_| work(self)) {
                return result;
            }
        }
    }

    /// Reads what is there, without waiting.
    pub(crate) fn read_now(&self, buffer: &mut [u8]) -> io::Result<usize> {
        read(&self.0, buffer)
    }

    /// How many bytes are there to be read.
    pub(crate) fn available(&self) -> usize {
        rustix::io::ioctl_fionread(&self.0).map_or(0, |n| n as usize)
    }

    /// Waits until a read would not block.
    pub(crate) async fn readable(&self) -> io::Result<()> {
        loop {
            let mut guard = self.0.readable().await?;
            if has_input(&self.0) {
                return Ok(());
            }
            guard.clear_ready();
        }
    }

    /// Writes what fits. Cancel-safe.
    pub(crate) async fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            let mut guard = self.0.writable().await?;
            match guard.try_io(|fd| write(fd, bytes)) {
                Ok(result) => return result,
                Err(_would_block) => {}
            }
        }
    }

    /// Writes everything.
    pub(crate) async fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let n = self.write(bytes).await?;
            bytes = &bytes[n..];
        }
        Ok(())
    }

    /// Waits until a write would not block.
    pub(crate) async fn writable(&self) -> io::Result<()> {
        self.0.writable().await.map(drop)
    }
}

/// Waits for the failure of a descriptor that others read and write.
///
/// When a machine is restored, or its hypervisor has its connections reset, the kernel marks every
/// vsock connection as failed and tells neither readers nor writers: it is neither readable nor
/// hung up.
#[derive(Debug)]
pub(crate) struct Failure(AsyncFd<OwnedFd>);

impl Failure {
    pub(crate) fn of(fd: &Fd) -> io::Result<Self> {
        let other = fd.as_fd().try_clone_to_owned()?;
        Ok(Self(event::register_for_failure(other)?))
    }

    /// Returns why, when it has failed.
    pub(crate) async fn happened(&self) -> io::Error {
        match self.0.ready(Interest::ERROR).await {
            Ok(_) => io::ErrorKind::ConnectionReset.into(),
            Err(error) => error,
        }
    }
}

impl AsFd for Fd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn read(fd: &AsyncFd<OwnedFd>, buffer: &mut [u8]) -> io::Result<usize> {
    Ok(retry(|| rustix::io::read(fd, &mut *buffer))?)
}

fn write(fd: &AsyncFd<OwnedFd>, bytes: &[u8]) -> io::Result<usize> {
    Ok(retry(|| rustix::io::write(fd, bytes))?)
}

/// Also true at the end of the input and for errors: a read tells which.
fn has_input(fd: &AsyncFd<OwnedFd>) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let now = Timespec::default();
    let mut fds = [PollFd::new(fd, PollFlags::IN)];
    poll(&mut fds, Some(&now)).is_ok_and(|ready| ready > 0)
}

fn retry<T>(mut call: impl FnMut() -> Result<T, Errno>) -> Result<T, Errno> {
    loop {
        match call() {
            Err(Errno::INTR) => {}
            result => return result,
        }
    }
}

impl AsyncRead for Fd {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        loop {
            let mut guard = ready!(self.0.poll_read_ready(cx))?;
            if let Ok(result) = guard.try_io(|fd| read(fd, buffer)) {
                return Poll::Ready(result);
            }
        }
    }
}

impl AsyncWrite for Fd {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        loop {
            let mut guard = ready!(self.0.poll_write_ready(cx))?;
            if let Ok(result) = guard.try_io(|fd| write(fd, bytes)) {
                return Poll::Ready(result);
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
