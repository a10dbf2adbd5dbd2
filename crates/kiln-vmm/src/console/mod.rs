//! What the guest printed: a bounded file, a tail in memory, and a way to follow.
//!
//! A [`ConsoleLog`] has one writer, the machine whose guest it belongs to. The file is raw
//! bytes in two segments, `path` and the older `path.1`, each at most [`SEGMENT_BYTES`] long:
//! the newest 1 to 2 MiB are kept whatever the guest does. A [`ConsoleReader`] reads the
//! segments of a machine that nobody runs any more.
//!
//! Positions are byte offsets. For a log that has been open since its guest started they count
//! everything that was ever printed; after an adoption and in a [`ConsoleReader`], offset 0 is
//! the oldest byte that is still kept.

mod segments;
mod tail;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

pub use segments::SEGMENT_BYTES;
use segments::Segments;
pub(crate) use tail::Tail;

/// How much of the console is kept in memory for error messages.
pub const TAIL_BYTES: usize = 16 * 1024;

/// The console of a machine that runs. Clones share it.
#[derive(Clone, Debug)]
pub struct ConsoleLog {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    path: PathBuf,
    state: Mutex<State>,
    end: watch::Sender<ConsoleEnd>,
}

#[derive(Debug)]
struct State {
    segments: Segments,
    tail: Tail,
    lost_bytes: u64,
}

/// How far a console has got.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ConsoleEnd {
    /// Offset behind the last byte.
    pub offset: u64,
    /// Whether nothing will follow: the VMM is gone and everything it printed is here.
    pub closed: bool,
}

/// A piece of a console.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chunk {
    /// Where it begins: later than asked for when that part is no longer kept.
    pub offset: u64,
    /// Its bytes; empty at the end.
    pub bytes: Vec<u8>,
}

impl Chunk {
    /// Where the next chunk begins.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.offset + self.bytes.len() as u64
    }
}

impl ConsoleLog {
    /// Opens the log at `path` for its one writer, behind what is there already.
    ///
    /// # Errors
    /// The file cannot be made or read.
    pub fn open(path: impl Into<PathBuf>) -> std::io::Result<Self> {
        let path = path.into();
        let segments = Segments::open(&path)?;
        let mut tail = Tail::new(TAIL_BYTES);
        let from = segments.end().saturating_sub(TAIL_BYTES as u64);
        let mut at = from;
        while at < segments.end() {
            let chunk = segments.read(at, TAIL_BYTES)?;
            if chunk.bytes.is_empty() {
                break;
            }
            tail.push(&chunk.bytes);
            at = chunk.end();
        }
        let (end, _) = watch::channel(ConsoleEnd {
            offset: segments.end(),
            closed: false,
        });
        let state = Mutex::new(State {
            segments,
            tail,
            lost_bytes: 0,
        });
        Ok(Self {
            shared: Arc::new(Shared { path, state, end }),
        })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.shared.path
    }

    /// Adds what the guest printed. Blocks on the file.
    ///
    /// Never fails: a guest must not stall because the host's disk is full. What cannot be
    /// written is still in the tail, and counted by [`ConsoleLog::lost_bytes`].
    pub fn append(&self, bytes: &[u8]) {
        let offset = {
            let mut state = self.state();
            state.tail.push(bytes);
            let written = state.segments.append(bytes);
            state.lost_bytes += bytes.len() as u64 - written;
            state.segments.end()
        };
        self.shared.end.send_modify(|end| end.offset = offset);
    }

    /// Says that nothing will follow.
    pub fn close(&self) {
        self.shared.end.send_modify(|end| end.closed = true);
    }

    /// The last [`TAIL_BYTES`] bytes.
    #[must_use]
    pub fn tail(&self) -> Vec<u8> {
        self.state().tail.to_vec()
    }

    /// How many bytes never reached the file.
    #[must_use]
    pub fn lost_bytes(&self) -> u64 {
        self.state().lost_bytes
    }

    /// Announces every growth, and the close.
    #[must_use]
    pub fn follow(&self) -> watch::Receiver<ConsoleEnd> {
        self.shared.end.subscribe()
    }

    /// Reads up to `max` bytes from `offset` on, or from the oldest kept byte if that is later.
    /// Blocks on the file.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn read(&self, offset: u64, max: usize) -> std::io::Result<Chunk> {
        self.state().segments.read(offset, max)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it holds the lock, and every field is valid at any time.
        self.shared
            .state
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// The console of a machine that has ended, from its path alone.
#[derive(Debug)]
pub struct ConsoleReader {
    segments: Segments,
}

impl ConsoleReader {
    /// Opens the log at `path`. A machine that never printed has none: that reads as empty.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn open(path: &Path) -> std::io::Result<Self> {
        Ok(Self {
            segments: Segments::open_for_reading(path)?,
        })
    }

    /// Offset behind the last byte.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.segments.end()
    }

    /// Reads up to `max` bytes from `offset` on.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn read(&self, offset: u64, max: usize) -> std::io::Result<Chunk> {
        self.segments.read(offset, max)
    }
}

/// Removes the log at `path` with its older segment.
///
/// # Errors
/// One of them cannot be removed.
pub fn remove_console(path: &Path) -> std::io::Result<()> {
    segments::remove(path)
}

#[cfg(test)]
mod tests;
