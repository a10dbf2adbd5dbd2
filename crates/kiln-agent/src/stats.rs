//! Figures of the guest, for the host.

use std::time::Duration;

use kiln_agent_proto::message::Stats;
use rustix::time::{ClockId, clock_gettime};

use crate::procfs;
use crate::session::Sessions;

/// Takes the figures now.
pub(crate) fn take(sessions: &Sessions) -> Stats {
    let (disk, network) = (disk(), procfs::network_bytes());
    Stats {
        agent_rss_kib: procfs::own_rss_kib(),
        uptime_ms: uptime().as_millis() as u64,
        mem_total_kib: procfs::memory_kib("MemTotal:"),
        mem_available_kib: procfs::memory_kib("MemAvailable:"),
        sessions_running: sessions.running() as u32,
        sessions_ended: sessions.ended() as u32,
        processes: procfs::count(),
        load1_centi: procfs::load1_centi(),
        cpu_busy_ms: procfs::cpu_busy_ms(),
        cpus: procfs::cpus(),
        disk_total_kib: disk.0,
        disk_used_kib: disk.1,
        net_rx_bytes: network.0,
        net_tx_bytes: network.1,
    }
}

/// Size of the root file system and what of it is in use, in KiB.
fn disk() -> (u64, u64) {
    let Ok(root) = rustix::fs::statvfs("/") else {
        return (0, 0);
    };
    let kib = |blocks: u64| blocks.saturating_mul(root.f_frsize) / 1024;
    (
        kib(root.f_blocks),
        kib(root.f_blocks.saturating_sub(root.f_bfree)),
    )
}

/// Time since the kernel started.
pub(crate) fn uptime() -> Duration {
    let now = clock_gettime(ClockId::Boottime);
    Duration::new(now.tv_sec.unsigned_abs(), now.tv_nsec as u32)
}
