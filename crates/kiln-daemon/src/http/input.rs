//! Standard input that waits for its command, bounded by the contract's window.

use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::{Bytes, BytesMut};
use kiln_api::stream::{INPUT_WINDOW, MAX_CHUNK, StreamError};
use tokio::sync::Notify;

/// The client is told of new window in pieces of this size, or when nothing waits any more.
const GRANT: usize = INPUT_WINDOW / 4;

/// What waits, and how much of the window is in use.
#[derive(Debug)]
pub(super) struct Waiting {
    state: Mutex<State>,
    arrived: Notify,
    granted: Notify,
}

#[derive(Debug, Default)]
struct State {
    bytes: BytesMut,
    ended: bool,
    end_taken: bool,
    /// Sent by the client and not yet granted anew; at most the window.
    in_use: usize,
    /// Taken by the command, and not yet told to the client.
    free: usize,
    /// Told to the client as soon as it reads.
    grant: usize,
}

/// The next thing for the command.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Taken {
    Bytes(Bytes),
    Eof,
}

impl Waiting {
    pub(super) fn new() -> Self {
        Self {
            state: Mutex::default(),
            arrived: Notify::new(),
            granted: Notify::new(),
        }
    }

    /// Adds what came from the client.
    pub(super) fn add(&self, bytes: &[u8]) -> Result<(), StreamError> {
        let mut state = self.state();
        if state.ended {
            return Err(StreamError::AfterEof);
        }
        if bytes.len() > INPUT_WINDOW - state.in_use {
            return Err(StreamError::WindowExceeded);
        }
        state.in_use += bytes.len();
        state.bytes.extend_from_slice(bytes);
        self.arrived.notify_one();
        Ok(())
    }

    /// Notes that nothing more comes.
    pub(super) fn end(&self) -> Result<(), StreamError> {
        let mut state = self.state();
        if state.ended {
            return Err(StreamError::AfterEof);
        }
        state.ended = true;
        self.arrived.notify_one();
        Ok(())
    }

    /// Waits for something that waits. Cancel-safe.
    pub(super) async fn take(&self) -> Taken {
        loop {
            if let Some(taken) = self.state().take() {
                return taken;
            }
            self.arrived.notified().await;
        }
    }

    /// Gives back window for what the command has taken.
    pub(super) fn was_taken(&self, size: usize) {
        let mut state = self.state();
        state.free += size;
        if state.free >= GRANT || (state.bytes.is_empty() && state.free > 0) {
            let free = std::mem::take(&mut state.free);
            state.in_use -= free;
            state.grant += free;
            self.granted.notify_one();
        }
    }

    /// Waits for window that the client is not told of yet. Cancel-safe.
    pub(super) async fn window(&self) -> usize {
        loop {
            let grant = std::mem::take(&mut self.state().grant);
            if grant > 0 {
                return grant;
            }
            self.granted.notified().await;
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn take(&mut self) -> Option<Taken> {
        if !self.bytes.is_empty() {
            let size = self.bytes.len().min(MAX_CHUNK);
            return Some(Taken::Bytes(self.bytes.split_to(size).freeze()));
        }
        let first = self.ended && !std::mem::replace(&mut self.end_taken, self.ended);
        first.then_some(Taken::Eof)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn input_comes_out_in_order_and_ends_once() {
        let waiting = Waiting::new();
        waiting.add(b"one ").unwrap();
        waiting.add(b"two").unwrap();
        waiting.end().unwrap();
        assert_eq!(
            waiting.take().await,
            Taken::Bytes(Bytes::from_static(b"one two"))
        );
        assert_eq!(waiting.take().await, Taken::Eof);
        assert!(waiting.state().take().is_none());
        assert!(matches!(waiting.add(b"x"), Err(StreamError::AfterEof)));
        assert!(matches!(waiting.end(), Err(StreamError::AfterEof)));
    }

    #[tokio::test]
    async fn the_window_is_the_bound() {
        let waiting = Waiting::new();
        for _ in 0..4 {
            waiting.add(&[0; INPUT_WINDOW / 4]).unwrap();
        }
        assert!(matches!(
            waiting.add(b"x"),
            Err(StreamError::WindowExceeded)
        ));
        let Taken::Bytes(bytes) = waiting.take().await else {
            panic!("no bytes")
        };
        // Taken out of the buffer is not yet taken by the command.
        assert!(matches!(
            waiting.add(b"x"),
            Err(StreamError::WindowExceeded)
        ));
        waiting.was_taken(bytes.len());
        let mut granted = bytes.len();
        while granted < INPUT_WINDOW {
            let Taken::Bytes(bytes) = waiting.take().await else {
                panic!("no bytes")
            };
            waiting.was_taken(bytes.len());
            granted += bytes.len();
        }
        assert_eq!(waiting.window().await, INPUT_WINDOW);
        waiting.add(&[0; INPUT_WINDOW]).unwrap();
    }

    #[tokio::test]
    async fn a_keystroke_comes_back_as_window_at_once() {
        let waiting = Waiting::new();
        waiting.add(b"x").unwrap();
        let Taken::Bytes(_) = waiting.take().await else {
            panic!("no bytes")
        };
        waiting.was_taken(1);
        assert_eq!(waiting.window().await, 1);
    }
}
