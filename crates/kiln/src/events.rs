//! What happens on a host, told to whoever listens, and the last of it to whoever comes later.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use tokio::sync::broadcast;

use crate::sandbox::SandboxState;
use crate::store::SandboxRow;

/// Something happened to a sandbox.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Counts up from 1 in the life of a host; a gap is a loss.
    pub number: u64,
    /// Id of the sandbox.
    pub sandbox: String,
    /// Its name, if it has one.
    pub name: Option<String>,
    /// What happened.
    pub kind: EventKind,
    /// Why, if there is something to say.
    pub reason: Option<String>,
    /// When, in ms since 1970.
    pub at_ms: u64,
}

/// What can happen to a sandbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EventKind {
    /// It was created.
    Created,
    /// It is on its way up.
    Starting,
    /// It is up.
    Running,
    /// It was halted.
    Paused,
    /// It is on its way down.
    Stopping,
    /// It is down.
    Stopped,
    /// It failed.
    Error,
    /// What was asked of it has changed.
    Updated,
    /// Its network's policy has changed.
    Policy,
    /// A snapshot was made of it.
    Snapshot,
    /// It is gone.
    Removed,
}

impl EventKind {
    /// The word under which it is sent.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopping => "stopping",
            Self::Stopped => "stopped",
            Self::Error => "error",
            Self::Updated => "updated",
            Self::Policy => "policy",
            Self::Snapshot => "snapshot",
            Self::Removed => "removed",
        }
    }
}

impl From<SandboxState> for EventKind {
    fn from(state: SandboxState) -> Self {
        match state {
            SandboxState::Created => Self::Created,
            SandboxState::Starting => Self::Starting,
            SandboxState::Running => Self::Running,
            SandboxState::Paused => Self::Paused,
            SandboxState::Stopping => Self::Stopping,
            SandboxState::Stopped => Self::Stopped,
            SandboxState::Error => Self::Error,
        }
    }
}

/// Events that a slow listener may fall behind before it loses the oldest, and that are kept.
const BACKLOG: usize = 1024;

/// Sends events; never waits for a listener. Clones send to the same ones.
#[derive(Clone, Debug)]
pub(crate) struct Events {
    sender: broadcast::Sender<Event>,
    kept: Arc<Mutex<VecDeque<Event>>>,
}

impl Events {
    pub(crate) fn new() -> Self {
        Self {
            sender: broadcast::channel(BACKLOG).0,
            kept: Arc::default(),
        }
    }

    pub(crate) fn publish(&self, row: &SandboxRow, kind: EventKind) {
        let mut kept = self.lock();
        let event = Event {
            number: kept.back().map_or(1, |last| last.number + 1),
            sandbox: row.id.clone(),
            name: row.spec.name.clone(),
            kind,
            reason: row.reason.clone(),
            at_ms: crate::clock::now_ms(),
        };
        if kept.len() == BACKLOG {
            kept.pop_front();
        }
        kept.push_back(event.clone());
        // Under the lock, so that numbers arrive in order. Nobody listening is not an error.
        let _ = self.sender.send(event);
    }

    pub(crate) fn subscribe(&self) -> broadcast::Receiver<Event> {
        self.sender.subscribe()
    }

    /// Those that are kept and came after this number, and all that follow: none twice, none lost.
    pub(crate) fn since(&self, number: u64) -> (Vec<Event>, broadcast::Receiver<Event>) {
        let kept = self.lock();
        let past = kept.iter().filter(|it| it.number > number).cloned();
        (past.collect(), self.sender.subscribe())
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Event>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::SandboxSpec;

    #[test]
    fn who_comes_later_gets_the_rest_in_order_and_once() {
        let events = Events::new();
        let row = SandboxRow::new("a".into(), SandboxSpec::default(), "debian".into());
        for _ in 0..3 {
            events.publish(&row, EventKind::Running);
        }
        let (past, mut coming) = events.since(1);
        assert_eq!(past.iter().map(|it| it.number).collect::<Vec<_>>(), [2, 3]);
        events.publish(&row, EventKind::Removed);
        assert_eq!(coming.try_recv().unwrap().number, 4);
        assert!(coming.try_recv().is_err());
        for _ in 0..2 * BACKLOG {
            events.publish(&row, EventKind::Running);
        }
        assert_eq!(events.since(0).0.len(), BACKLOG);
    }
}
