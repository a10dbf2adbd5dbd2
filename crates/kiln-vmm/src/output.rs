//! What a VMM prints: taken through FIFOs, so that it never blocks, never breaks and never fills
//! a disk.
//!
//! A FIFO lives in the runtime directory and is opened for reading *and* writing on both sides:
//! the VMM then always has a reader (itself), so it gets no SIGPIPE when its daemon dies, and
//! the next daemon opens the same FIFO again and finds what was printed meanwhile, up to the
//! size of a pipe. Being non-blocking, a full FIFO makes the VMM lose output instead of time.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::{CWD, FileType, Mode, OFlags, mknodat, open};
use rustix::io::{Errno, read};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncReadExt};

use crate::console::{ConsoleLog, Tail};
use crate::process::VmmProcess;

/// How much of the VMM's own output is kept for error messages.
const OUTPUT_TAIL_BYTES: usize = 16 * 1024;
/// One read: the size of a pipe.
const READ_BYTES: usize = 64 * 1024;

/// Makes a FIFO and returns the VMM's end of it.
pub(crate) fn make_fifo(path: &Path) -> std::io::Result<OwnedFd> {
    mknodat(CWD, path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0)?;
    open_fifo(path)
}

/// Opens an existing FIFO.
pub(crate) fn open_fifo(path: &Path) -> std::io::Result<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    Ok(open(path, flags, Mode::empty())?)
}

/// Where drained bytes go.
#[derive(Clone, Debug)]
pub(crate) enum Sink {
    /// The guest's console.
    Console(ConsoleLog),
    /// The VMM's own words.
    Output(OutputTail),
}

impl Sink {
    async fn take(&self, bytes: Vec<u8>) {
        match self {
            Sink::Output(tail) => tail.push(&bytes),
            Sink::Console(log) => {
                let log = log.clone();
                // The file blocks; a runtime that shuts down may drop the job, and then nobody
                // is left to read it anyway.
                let _ = tokio::task::spawn_blocking(move || log.append(&bytes)).await;
            }
        }
    }
}

/// The last output of a VMM. Clones share it.
#[derive(Clone, Debug)]
pub(crate) struct OutputTail(Arc<Mutex<Tail>>);

impl OutputTail {
    pub(crate) fn new() -> Self {
        Self(Arc::new(Mutex::new(Tail::new(OUTPUT_TAIL_BYTES))))
    }

    pub(crate) fn push(&self, bytes: &[u8]) {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(bytes);
    }

    pub(crate) fn text(&self) -> String {
        let tail = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(&tail.to_vec()).into_owned()
    }
}

/// Drains a FIFO until its VMM is gone and the FIFO empty.
pub(crate) async fn drain_fifo(fifo: AsyncFd<OwnedFd>, process: VmmProcess, sink: Sink) {
    loop {
        let ended = tokio::select! {
            // Never an end of file, since this side holds a writing end too.
            ready = fifo.readable() => match ready {
                Ok(mut ready) => {
                    ready.clear_ready();
                    false
                }
                Err(_) => true,
            },
            _ = process.wait() => true,
        };
        while let Some(bytes) = read_now(&fifo) {
            sink.take(bytes).await;
        }
        if ended {
            return;
        }
    }
}

pub(crate) fn read_now(fifo: &AsyncFd<OwnedFd>) -> Option<Vec<u8>> {
    let mut buffer = vec![0; READ_BYTES];
    loop {
        match read(fifo.get_ref(), &mut buffer[..]) {
            Ok(0) => return None,
            Ok(count) => {
                buffer.truncate(count);
                return Some(buffer);
            }
            Err(Errno::INTR) => {}
            // Empty, or broken: either way there is nothing to take.
            Err(_) => return None,
        }
    }
}

/// Drains a stream until its end: a socket ends with its VMM.
pub(crate) async fn drain_stream(mut stream: impl AsyncRead + Unpin, sink: Sink) {
    loop {
        let mut buffer = Vec::with_capacity(READ_BYTES);
        match stream.read_buf(&mut buffer).await {
            Ok(count) if count > 0 => sink.take(buffer).await,
            Ok(_) | Err(_) => return,
        }
    }
}
