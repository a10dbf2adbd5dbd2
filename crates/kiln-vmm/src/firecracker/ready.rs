//! Waiting for a socket that another process is about to make.

use std::ffi::OsStr;
use std::io::{Error, ErrorKind};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::inotify;
use tokio::io::unix::AsyncFd;
use tokio::net::UnixStream;
use tokio::runtime::Handle;
use tokio::time::sleep;

use crate::readable_fd::readable_fd;

/// A watch on the directory of a socket, set before the process that makes it starts.
#[derive(Debug)]
pub(super) struct SocketWatch {
    events: Events,
    path: PathBuf,
}

/// Closing an inotify descriptor waits for a grace period of the kernel's: 10 ms and more, which
/// no boot and no task of the runtime shall pay for.
#[derive(Debug)]
struct Events(Option<AsyncFd<OwnedFd>>);

impl Drop for Events {
    fn drop(&mut self) {
        if let Ok(runtime) = Handle::try_current() {
            let events = self.0.take();
            runtime.spawn_blocking(move || drop(events));
        }
    }
}

impl SocketWatch {
    pub(super) fn new(path: PathBuf) -> std::io::Result<Self> {
        let flags = inotify::CreateFlags::NONBLOCK | inotify::CreateFlags::CLOEXEC;
        let events = inotify::init(flags)?;
        let dir = path.parent().unwrap_or(Path::new("/"));
        inotify::add_watch(&events, dir, inotify::WatchFlags::CREATE)?;
        Ok(Self {
            events: Events(Some(readable_fd(events)?)),
            path,
        })
    }

    /// Connects as soon as that is possible. Has no deadline of its own.
    pub(super) async fn connect(&self) -> std::io::Result<UnixStream> {
        /// Between a socket's appearance and its readiness lie two system calls of its owner.
        const FIRST_PAUSE: Duration = Duration::from_micros(50);
        const LONGEST_PAUSE: Duration = Duration::from_millis(20);
        let mut pause = FIRST_PAUSE;
        loop {
            match UnixStream::connect(&self.path).await {
                Ok(stream) => return Ok(stream),
                Err(error) if error.kind() == ErrorKind::NotFound => self.appeared().await?,
                Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
                    sleep(pause).await;
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Returns when something of the socket's name was made since the watch was set.
    async fn appeared(&self) -> std::io::Result<()> {
        let name = self.path.file_name().unwrap_or(OsStr::new(""));
        let Some(events) = &self.events.0 else {
            return Ok(());
        };
        loop {
            let mut ready = events.readable().await?;
            ready.clear_ready();
            let mut buffer = [MaybeUninit::uninit(); 4096];
            let mut reader = inotify::Reader::new(events.get_ref(), &mut buffer);
            let mut seen = false;
            loop {
                match reader.next() {
                    Ok(event) => {
                        seen |= event
                            .file_name()
                            .is_some_and(|file| file.to_bytes() == name.as_bytes());
                    }
                    Err(rustix::io::Errno::WOULDBLOCK) => break,
                    Err(error) => return Err(Error::from(error)),
                }
            }
            if seen {
                return Ok(());
            }
        }
    }
}
