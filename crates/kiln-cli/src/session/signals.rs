//! The signals that a session acts on.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// What a signal asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Asked {
    /// The end, by this signal.
    End(i32),
    /// The terminal has a new size.
    Resize,
}

/// All of them, caught as long as this lives; and, since tokio never restores them, until the end.
#[derive(Debug)]
pub(crate) struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hang_up: Signal,
    quit: Signal,
    resize: Signal,
}

impl Signals {
    pub(crate) fn catch() -> io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hang_up: signal(SignalKind::hangup())?,
            quit: signal(SignalKind::quit())?,
            resize: signal(SignalKind::window_change())?,
        })
    }

    /// The next one. Cancel-safe.
    pub(crate) async fn next(&mut self) -> Asked {
        tokio::select! {
            _ = self.interrupt.recv() => Asked::End(SignalKind::interrupt().as_raw_value()),
            _ = self.terminate.recv() => Asked::End(SignalKind::terminate().as_raw_value()),
            _ = self.hang_up.recv() => Asked::End(SignalKind::hangup().as_raw_value()),
            _ = self.quit.recv() => Asked::End(SignalKind::quit().as_raw_value()),
            _ = self.resize.recv() => Asked::Resize,
        }
    }

    /// The next one that asks for the end. Cancel-safe.
    pub(crate) async fn next_end(&mut self) {
        while self.next().await == Asked::Resize {}
    }
}
