//! What this host has done, counted since it was opened.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::host::Host;
use crate::sandbox::SandboxState;

/// Counters. Only ever added to.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    started: AtomicU64,
    failed: AtomicU64,
    start_us: AtomicU64,
    restarts: AtomicU64,
    timed_out: AtomicU64,
    commands: AtomicU64,
}

impl Counters {
    pub(crate) fn started(&self, took: Duration) {
        let us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.started.fetch_add(1, Ordering::Relaxed);
        self.start_us.fetch_add(us, Ordering::Relaxed);
    }

    pub(crate) fn start_failed(&self) {
        self.failed.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn restarted(&self) {
        self.restarts.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn timed_out(&self) {
        self.timed_out.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn command(&self) {
        self.commands.fetch_add(1, Ordering::Relaxed);
    }
}

/// Figures of a host.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct HostMetrics {
    /// Sandboxes by state, every state named.
    pub sandboxes: Vec<(SandboxState, u64)>,
    /// Starts that came up.
    pub starts: u64,
    /// Starts that failed.
    pub failed_starts: u64,
    /// Time that the starts took that came up, all together.
    pub start_time: Duration,
    /// Restarts by policy.
    pub restarts: u64,
    /// Sandboxes that were stopped at a time-out, idle ones included.
    pub timed_out: u64,
    /// Commands that were run.
    pub commands: u64,
}

impl Host {
    /// What this host has done since it was opened, and what it has now.
    #[must_use]
    pub fn metrics(&self) -> HostMetrics {
        let views = self.shared.views();
        let of = |state| views.iter().filter(|view| view.row.state == state).count() as u64;
        let counters = &self.shared.counters;
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        HostMetrics {
            sandboxes: SandboxState::ALL.map(|state| (state, of(state))).to_vec(),
            starts: read(&counters.started),
            failed_starts: read(&counters.failed),
            start_time: Duration::from_micros(read(&counters.start_us)),
            restarts: read(&counters.restarts),
            timed_out: read(&counters.timed_out),
            commands: read(&counters.commands),
        }
    }
}
