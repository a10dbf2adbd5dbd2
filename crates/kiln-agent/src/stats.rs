//! Figures of the guest, for the host.

use std::time::Duration;

use kiln_agent_proto::message::Stats;
use rustix::time::{ClockId, clock_gettime};

use crate::procfs;
use crate::session::Sessions;

/// Takes the figures now.
pub(crate) fn take(sessions: &Sessions) -> Stats {
    Stats {
        agent_rss_kib: procfs::own_rss_kib(),
        uptime_ms: uptime().as_millis() as u64,
        mem_total_kib: procfs::memory_kib("MemTotal:"),
        mem_available_kib: procfs::memory_kib("MemAvailable:"),
        sessions_running: sessions.running() as u32,
        sessions_ended: sessions.ended() as u32,
        processes: procfs::count(),
        load1_centi: procfs::load1_centi(),
    }
}

/// Time since the kernel started.
pub(crate) fn uptime() -> Duration {
    let now = clock_gettime(ClockId::Boottime);
    Duration::new(now.tv_sec.unsigned_abs(), now.tv_nsec as u32)
}
