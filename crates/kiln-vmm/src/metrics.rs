//! What a VMM counts, summed up since its machine was started or adopted.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Counters of a machine.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Metrics {
    /// By the id of the disk.
    pub disks: BTreeMap<String, DiskMetrics>,
    /// By the id of the interface.
    pub nics: BTreeMap<String, NicMetrics>,
    /// System calls that the filter refused: anything but 0 is an attack or a bug.
    pub seccomp_faults: u64,
    /// Panics of the VMM.
    pub panics: u64,
    /// Failures of virtual processors.
    pub vcpu_failures: u64,
    /// Bytes that the serial port lost.
    pub console_lost_bytes: u64,
    /// Lines and reports that the VMM could not write.
    pub lost_reports: u64,
    /// Connections of the guest's vsock that were opened.
    pub vsock_opened: u64,
    /// How long the last calls took, in microseconds.
    pub latencies_us: BTreeMap<String, u64>,
    /// Every number, by group and name, for what has no field here.
    pub all: BTreeMap<String, BTreeMap<String, u64>>,
}

/// Counters of a disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "each name says it")]
pub struct DiskMetrics {
    pub read_bytes: u64,
    pub write_bytes: u64,
    pub read_count: u64,
    pub write_count: u64,
    pub flush_count: u64,
    pub throttled: u64,
    pub failures: u64,
}

/// Counters of a network interface, from the guest's side.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "each name says it")]
pub struct NicMetrics {
    pub rx_bytes: u64,
    pub tx_bytes: u64,
    pub rx_packets: u64,
    pub tx_packets: u64,
    pub rx_failures: u64,
    pub tx_failures: u64,
    pub rx_throttled: u64,
    pub tx_throttled: u64,
    pub spoofed_addresses: u64,
}
