//! The life of a sandbox.
//!
//! ```text
//!            start            agent ready            stop
//!  Created ────────► Starting ───────────► Running ────────► Stopping
//!                     ▲   │                   │                  │
//!                     │   │ failed            │ VMM gone         │
//!                     │   ▼                   ▼                  ▼
//!                     │  Error              Stopped ◄────────────┘
//!                     └───┴───────────────────┘
//!                                              (Running ⇄ Paused: pause, resume; whatever ends a
//!                                               running machine ends a paused one)
//! ```

use serde::{Deserialize, Serialize};

/// Where a sandbox is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SandboxState {
    /// It has a row, and nothing else.
    Created,
    /// Its launch is under way.
    Starting,
    /// Its agent answers.
    Running,
    /// Its processors are halted; memory and disks are as they were.
    Paused,
    /// Its machine is being ended.
    Stopping,
    /// It has no machine; its scratch disk is kept.
    Stopped,
    /// Its last start failed; [`SandboxInfo::reason`](super::SandboxInfo::reason) says why.
    Error,
}

impl SandboxState {
    /// Every state, in the order of a life.
    pub const ALL: [Self; 7] = [
        Self::Created,
        Self::Starting,
        Self::Running,
        Self::Paused,
        Self::Stopping,
        Self::Stopped,
        Self::Error,
    ];

    /// Whether a sandbox may go from here to `next`.
    #[must_use]
    pub fn may_become(self, next: Self) -> bool {
        use SandboxState::{Created, Error, Paused, Running, Starting, Stopped, Stopping};
        matches!(
            (self, next),
            (Created | Stopped | Error, Starting)
                | (Starting, Running | Error | Stopping)
                | (Running, Paused | Stopping | Stopped)
                | (Paused, Running | Stopping | Stopped)
                | (Stopping, Stopped)
        )
    }

    /// Whether a machine may exist in this state.
    #[must_use]
    pub fn is_live(self) -> bool {
        matches!(
            self,
            Self::Starting | Self::Running | Self::Paused | Self::Stopping
        )
    }

    /// The word under which the state is stored and shown.
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
        }
    }

    /// The state of that word.
    #[must_use]
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.as_str() == word)
    }
}

impl std::fmt::Display for SandboxState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_round_trip() {
        for state in SandboxState::ALL {
            assert_eq!(SandboxState::parse(state.as_str()), Some(state));
        }
        assert_eq!(SandboxState::parse("zombie"), None);
    }

    proptest::proptest! {
        /// However the moves are drawn, a machine ends before the sandbox rests.
        #[test]
        fn no_walk_rests_with_a_live_machine(picks in proptest::collection::vec(0usize..7, 0..60)) {
            let mut state = SandboxState::Created;
            for pick in picks {
                let next = SandboxState::ALL[pick];
                if !state.may_become(next) {
                    continue;
                }
                if !next.is_live() {
                    proptest::prop_assert!(state.is_live());
                }
                state = next;
            }
        }
    }
}
