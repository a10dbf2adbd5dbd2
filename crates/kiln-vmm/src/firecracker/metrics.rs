//! Firecracker's metrics: one JSON object per line through a FIFO, counters as differences.
//!
//! Lines come every minute, when asked for, and at the end. Most numbers tell what was added
//! since the last line and are summed up here; a few tell what is. Names differ between versions:
//! what is missing counts as 0.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use serde_json::{Map, Value};
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;

use crate::metrics::{DiskMetrics, Metrics, NicMetrics};
use crate::output::read_now;
use crate::process::VmmProcess;

/// Longest line; Firecracker's have about 10 KiB.
const MAX_LINE_BYTES: usize = 256 * 1024;

/// What has been counted so far. Clones share it.
#[derive(Clone, Debug, Default)]
pub(super) struct Counted {
    state: Arc<watch::Sender<State>>,
}

#[derive(Clone, Debug, Default)]
struct State {
    lines: u64,
    totals: Totals,
}

impl Counted {
    /// How many lines there were.
    pub(super) fn lines(&self) -> u64 {
        self.state.borrow().lines
    }

    /// Waits for a line behind the first `lines`. Cancel-safe.
    pub(super) async fn beyond(&self, lines: u64) {
        let mut state = self.state.subscribe();
        // The sender is ours: it cannot go away while we wait.
        let _ = state.wait_for(|state| state.lines > lines).await;
    }

    pub(super) fn metrics(&self) -> Metrics {
        self.state.borrow().totals.metrics()
    }

    fn take_line(&self, line: &[u8]) {
        let Ok(Value::Object(groups)) = serde_json::from_slice(line) else {
            return;
        };
        self.state.send_modify(|state| {
            state.lines += 1;
            state.totals.add(&groups);
        });
    }
}

/// Counts until the VMM is gone and the FIFO empty.
pub(super) async fn count(fifo: AsyncFd<OwnedFd>, process: VmmProcess, counted: Counted) {
    let mut pending = Vec::new();
    loop {
        let ended = tokio::select! {
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
            pending.extend_from_slice(&bytes);
            take_lines(&mut pending, &counted);
        }
        if ended {
            return;
        }
    }
}

fn take_lines(pending: &mut Vec<u8>, counted: &Counted) {
    while let Some(end) = pending.iter().position(|byte| *byte == b'\n') {
        let line: Vec<u8> = pending.drain(..=end).collect();
        counted.take_line(&line);
    }
    // A line without end: the next one begins behind it.
    if pending.len() > MAX_LINE_BYTES {
        pending.clear();
    }
}

/// Every number, by group and name.
#[derive(Clone, Debug, Default)]
struct Totals(BTreeMap<String, BTreeMap<String, u64>>);

impl Totals {
    fn add(&mut self, groups: &Map<String, Value>) {
        for (group, values) in groups {
            let Value::Object(values) = values else {
                continue;
            };
            let absolute = is_absolute(group);
            let totals = self.0.entry(group.clone()).or_default();
            for (name, value) in values {
                let Some(value) = value.as_u64() else {
                    continue;
                };
                let total = totals.entry(name.clone()).or_default();
                *total = if absolute {
                    value
                } else {
                    total.saturating_add(value)
                };
            }
        }
    }

    fn of(&self, group: &str, name: &str) -> u64 {
        let value = self.0.get(group).and_then(|values| values.get(name));
        value.copied().unwrap_or(0)
    }

    /// Groups of one device each: `block_rootfs`, but not their sum `block`.
    fn devices<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = (&'a str, &'a str)> {
        self.0
            .keys()
            .filter_map(move |group| Some((group.as_str(), group.strip_prefix(prefix)?)))
    }

    fn metrics(&self) -> Metrics {
        Metrics {
            disks: self
                .devices("block_")
                .map(|(group, id)| (id.to_owned(), self.disk(group)))
                .collect(),
            nics: self
                .devices("net_")
                .map(|(group, id)| (id.to_owned(), self.nic(group)))
                .collect(),
            seccomp_faults: self.of("seccomp", "num_faults"),
            panics: self.of("vmm", "panic_count"),
            vcpu_failures: self.of("vcpu", "failures"),
            console_lost_bytes: self.of("uart", "missed_write_count")
                + self.of("uart", "rate_limiter_dropped_bytes"),
            lost_reports: self.of("logger", "missed_metrics_count")
                + self.of("logger", "missed_log_count"),
            vsock_opened: self.of("vsock", "conns_added"),
            latencies_us: self.0.get("latencies_us").cloned().unwrap_or_default(),
            all: self.0.clone(),
        }
    }

    fn disk(&self, group: &str) -> DiskMetrics {
        DiskMetrics {
            read_bytes: self.of(group, "read_bytes"),
            write_bytes: self.of(group, "write_bytes"),
            read_count: self.of(group, "read_count"),
            write_count: self.of(group, "write_count"),
            flush_count: self.of(group, "flush_count"),
            throttled: self.of(group, "rate_limiter_throttled_events"),
            failures: self.of(group, "execute_fails") + self.of(group, "invalid_reqs_count"),
        }
    }

    fn nic(&self, group: &str) -> NicMetrics {
        NicMetrics {
            rx_bytes: self.of(group, "rx_bytes_count"),
            tx_bytes: self.of(group, "tx_bytes_count"),
            rx_packets: self.of(group, "rx_packets_count"),
            tx_packets: self.of(group, "tx_packets_count"),
            rx_failures: self.of(group, "rx_fails") + self.of(group, "tap_read_fails"),
            tx_failures: self.of(group, "tx_fails") + self.of(group, "tap_write_fails"),
            rx_throttled: self.of(group, "rx_rate_limiter_throttled"),
            tx_throttled: self.of(group, "tx_rate_limiter_throttled"),
            spoofed_addresses: self.of(group, "tx_spoofed_mac_count"),
        }
    }
}

/// Groups that tell what is, not what was added.
fn is_absolute(group: &str) -> bool {
    group == "latencies_us" || group == "api_server"
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn differences_are_summed_and_states_are_not() {
        let counted = Counted::default();
        let line =
            br#"{"utc_timestamp_ms":1,"block_root":{"read_bytes":512,"read_agg":{"min_us":1}},
            "block":{"read_bytes":9},"net_eth0":{"tx_spoofed_mac_count":1},
            "latencies_us":{"pause_vm":70},"seccomp":{"num_faults":0}}"#;
        let line: Vec<u8> = line.iter().copied().filter(|byte| *byte != b'\n').collect();
        let mut pending = [line.clone(), b"\n".to_vec(), line, b"\n{\"half".to_vec()].concat();
        take_lines(&mut pending, &counted);
        assert_eq!(pending, b"{\"half");
        let metrics = counted.metrics();
        assert_eq!(metrics.disks["root"].read_bytes, 1024);
        assert_eq!(metrics.disks.len(), 1);
        assert_eq!(metrics.nics["eth0"].spoofed_addresses, 2);
        assert_eq!(metrics.latencies_us["pause_vm"], 70);
        assert_eq!(metrics.all["block"]["read_bytes"], 18);
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(pieces in proptest::collection::vec(
            proptest::collection::vec(any::<u8>(), 0..60), 0..8))
        {
            let counted = Counted::default();
            let mut pending = Vec::new();
            for piece in pieces {
                pending.extend(piece);
                take_lines(&mut pending, &counted);
            }
            let _ = counted.metrics();
        }
    }
}
