//! What happens on a host, told to whoever listens.

use serde::{Deserialize, Serialize};
use tokio::sync::broadcast;

use crate::sandbox::SandboxState;

/// A sandbox changed its state, or is gone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Id of the sandbox.
    pub sandbox: String,
    /// Its new state; `None` when it was removed.
    pub state: Option<SandboxState>,
    /// When, in ms since 1970.
    pub at_ms: u64,
}

/// Events that a slow listener may fall behind before it loses the oldest.
const BACKLOG: usize = 1024;

/// Sends events; never waits for a listener.
#[derive(Clone, Debug)]
pub(crate) struct Events(broadcast::Sender<Event>);

impl Events {
    pub(crate) fn new() -> Self {
        Self(broadcast::channel(BACKLOG).0)
    }

    pub(crate) fn publish(&self, sandbox: &str, state: Option<SandboxState>) {
        let event = Event {
            sandbox: sandbox.to_owned(),
            state,
            at_ms: crate::clock::now_ms(),
        };
        // Nobody listening is not an error.
        let _ = self.0.send(event);
    }

    pub(crate) fn subscribe(&self) -> broadcast::Receiver<Event> {
        self.0.subscribe()
    }
}
