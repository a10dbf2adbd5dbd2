//! What a sandbox uses.

use serde::{Deserialize, Serialize};

/// Figures of a running sandbox. Times and counts grow from the guest's start on: ask twice for a
/// rate.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(default)]
pub struct Stats {
    /// When they were taken, in milliseconds of Unix time.
    pub at_ms: u64,
    /// Time since the guest's kernel started.
    pub uptime_ms: u64,
    /// Processors of the guest.
    pub cpus: u32,
    /// Time that they have worked, all together, by the guest's word.
    pub cpu_busy_ms: u64,
    /// Load of the last minute in the guest.
    pub load1: f32,
    /// Memory that the guest's kernel manages.
    pub mem_total_kib: u64,
    /// Of it, available to new programs.
    pub mem_available_kib: u64,
    /// Size of the guest's root file system.
    pub disk_total_kib: u64,
    /// Of it, in use.
    pub disk_used_kib: u64,
    /// Bytes received by the guest.
    pub net_rx_bytes: u64,
    /// Bytes sent by it.
    pub net_tx_bytes: u64,
    /// Processes in the guest.
    pub processes: u32,
    /// Commands that run in it.
    pub sessions: u32,
    /// Memory of this host that its VMM uses; pages that several share count as parts.
    pub host_mem_kib: Option<u64>,
    /// Time that its VMM has had of this host's processors.
    pub host_cpu_ms: Option<u64>,
}
