//! Reading a blob while it is still being fetched: the reader waits for bytes, and sees the end only
//! when the whole is verified.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// What a fetch has brought so far. One fetcher, any number of readers.
#[derive(Debug, Default)]
pub(crate) struct Feed {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    file: Option<Arc<File>>,
    available: u64,
    /// The bytes so far were wrong and came anew: who read them must begin anew, too.
    restarts: u32,
    end: End,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum End {
    #[default]
    Running,
    Whole,
    Failed,
}

impl Feed {
    /// Bytes can be read from `file` up to `available`.
    pub(crate) fn start(&self, file: File, available: u64) {
        let mut state = self.lock();
        state.file = Some(Arc::new(file));
        state.available = available;
        self.changed.notify_all();
    }

    pub(crate) fn grow(&self, available: u64) {
        self.lock().available = available;
        self.changed.notify_all();
    }

    pub(crate) fn restart(&self) {
        let mut state = self.lock();
        state.available = 0;
        state.restarts += 1;
        self.changed.notify_all();
    }

    /// Whether some bytes were wrong for a while.
    pub(crate) fn was_restarted(&self) -> bool {
        self.lock().restarts > 0
    }

    /// All bytes are there and verified.
    pub(crate) fn finish(&self) {
        self.end(End::Whole);
    }

    /// No more bytes will come. Does nothing after [`Feed::finish`].
    pub(crate) fn fail(&self) {
        self.end(End::Failed);
    }

    fn end(&self, end: End) {
        let mut state = self.lock();
        if state.end == End::Running {
            state.end = end;
        }
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A reader from the beginning.
    pub(crate) fn follow(self: &Arc<Feed>) -> Follower {
        let restarts = self.lock().restarts;
        Follower {
            feed: Arc::clone(self),
            at: 0,
            restarts,
        }
    }
}

/// Reads a blob that may still grow.
#[derive(Debug)]
pub(crate) struct Follower {
    feed: Arc<Feed>,
    at: u64,
    restarts: u32,
}

#[derive(Debug, thiserror::Error)]
#[error("what was fetched so far was wrong and is fetched anew")]
struct Restarted;

impl Follower {
    /// Waits for more than what was read; `None` at the verified end.
    fn wait(&self) -> io::Result<Option<(Arc<File>, u64)>> {
        let mut state = self.feed.lock();
        loop {
            if state.restarts != self.restarts {
                return Err(io::Error::other(Restarted));
            }
            if let Some(file) = &state.file
                && state.available > self.at
            {
                return Ok(Some((Arc::clone(file), state.available)));
            }
            match state.end {
                End::Whole => return Ok(None),
                End::Failed => return Err(io::Error::other("the download failed")),
                End::Running => {}
            }
            state = self
                .feed
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Read for Follower {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        let Some((file, available)) = self.wait()? else {
            return Ok(0);
        };
        let most = usize::try_from(available - self.at).unwrap_or(usize::MAX);
        let most = most.min(buffer.len());
        let length = file.read_at(&mut buffer[..most], self.at)?;
        if length == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.at += length as u64;
        Ok(length)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn a_reader_sees_the_end_only_when_it_is_verified() {
        let feed = Arc::new(Feed::default());
        let mut file = tempfile::NamedTempFile::new().unwrap();
        let mut reader = feed.follow();
        let reading = std::thread::spawn(move || {
            let mut bytes = Vec::new();
            reader.read_to_end(&mut bytes).map(|_| bytes)
        });
        feed.start(file.reopen().unwrap(), 0);
        for piece in [&b"one "[..], b"two ", b"three"] {
            file.write_all(piece).unwrap();
            let length = file.as_file().metadata().unwrap().len();
            feed.grow(length);
        }
        assert!(!reading.is_finished());
        feed.finish();
        feed.fail();
        assert_eq!(reading.join().unwrap().unwrap(), b"one two three");
    }

    #[test]
    fn failures_and_restarts_reach_the_reader() {
        let feed = Arc::new(Feed::default());
        let mut reader = feed.follow();
        feed.restart();
        let error = reader.read(&mut [0; 4]).unwrap_err();
        assert!(error.to_string().contains("anew"), "{error}");
        assert!(feed.was_restarted());
        let mut reader = feed.follow();
        feed.fail();
        let error = reader.read(&mut [0; 4]).unwrap_err();
        assert!(error.to_string().contains("failed"), "{error}");
    }
}
