//! When a sandbox is stopped because its time is over, and when it is started again.
//!
//! The moment of the time-out is in the store, so that it holds over restarts of the daemon; one
//! that passed meanwhile is due at once. Idleness is counted by the daemon that runs. The driver
//! asks here what is due next; nothing here keeps a timer of its own.

use std::time::Duration;

use tokio::time::Instant;
use tracing::{info, warn};

use super::SandboxState;
use super::driver::{Driver, Flow};
use crate::clock;

/// How long a guest whose time is over has to power itself off.
const GRACE: Duration = Duration::from_secs(10);
/// Longest sleep towards a moment of wall-clock time: that clock may be set.
const LONGEST_SLEEP: Duration = Duration::from_secs(60);
/// How long a guest may take to say whether a command runs in it.
const ANSWER: Duration = Duration::from_secs(5);

/// Something that happens when nobody asks for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Due {
    /// Look again: a long sleep is over.
    Nothing,
    /// The time-out.
    Timeout,
    /// Nobody has used it for its idle time-out.
    Idle,
    /// The restart that its policy wants.
    Restart,
    /// The same, of its main command.
    Command,
}

impl Driver {
    /// What is due next, and when; `None` for never.
    pub(super) fn next_due(&self) -> Option<(Instant, Due)> {
        let restart = self.restart_at.map(|at| (at, Due::Restart));
        [
            self.timeout_due(),
            self.idle_due(),
            restart,
            self.command_due(),
        ]
        .into_iter()
        .flatten()
        .min_by_key(|(at, _)| *at)
    }

    fn timeout_due(&self) -> Option<(Instant, Due)> {
        let expires_at_ms = self.row.expires_at_ms.filter(|_| self.live.is_some())?;
        let left = Duration::from_millis(expires_at_ms.saturating_sub(clock::now_ms()));
        let now = Instant::now();
        Some(if left > LONGEST_SLEEP {
            (now + LONGEST_SLEEP, Due::Nothing)
        } else {
            (now + left, Due::Timeout)
        })
    }

    fn idle_due(&self) -> Option<(Instant, Due)> {
        let span = Duration::from_millis(self.row.spec.idle_timeout_ms?);
        self.live.as_ref()?;
        let now = Instant::now();
        Some(match self.activity.idle_since() {
            // It is in use: at the earliest one span from now.
            None => (now + span.min(LONGEST_SLEEP), Due::Nothing),
            Some(since) => (since.checked_add(span)?, Due::Idle),
        })
    }

    pub(super) async fn on_due(&mut self, due: Due) -> Flow {
        match due {
            // A restart is the driver's: it listens to commands meanwhile.
            Due::Nothing | Due::Restart => Flow::Continue(()),
            Due::Command => {
                self.restart_command().await;
                Flow::Continue(())
            }
            Due::Timeout => self.time_is_over().await,
            Due::Idle => self.nobody_uses_it().await,
        }
    }

    async fn time_is_over(&mut self) -> Flow {
        if self.activity.extends_timeout() {
            self.begin_timeout();
            if let Err(error) = self.save_and_tell().await {
                warn!(error = %error.message(), "the extended time-out could not be stored");
            }
            return Flow::Continue(());
        }
        self.stop_by_itself("stopped at its time-out").await
    }

    async fn nobody_uses_it(&mut self) -> Flow {
        if self.runs_a_command().await {
            self.activity.reset();
            return Flow::Continue(());
        }
        self.stop_by_itself("stopped after its idle time-out").await
    }

    /// Whether a command runs in the guest. One that does not answer is not killed for it.
    async fn runs_a_command(&self) -> bool {
        let Some(live) = self.live.as_ref() else {
            return false;
        };
        if self.row.state == SandboxState::Paused {
            return false;
        }
        if self.command_at.is_some() {
            // One does, but for a moment.
            return true;
        }
        match tokio::time::timeout(ANSWER, live.link.stats()).await {
            Ok(Ok(stats)) => stats.sessions_running > 0,
            _ => true,
        }
    }

    async fn stop_by_itself(&mut self, reason: &str) -> Flow {
        self.shared.counters.timed_out();
        info!(reason, "stopping");
        if let Err(error) = self.end(GRACE, reason).await {
            warn!(error = %error.message(), "a sandbox whose time is over left something behind");
        }
        self.remove_if_wanted().await
    }

    /// Counts the time-out from now; without one there is no end. Stored by the caller.
    pub(super) fn begin_timeout(&mut self) {
        let span = self.row.spec.timeout_ms;
        self.row.expires_at_ms = span.map(|span| clock::now_ms().saturating_add(span));
    }
}

/// Waits until something is due; for ever when nothing is. Cancel-safe.
pub(super) async fn until_due(next: Option<(Instant, Due)>) -> Due {
    match next {
        Some((at, due)) => {
            tokio::time::sleep_until(at).await;
            due
        }
        None => std::future::pending().await,
    }
}
