//! What a sandbox uses: of its own, by its guest's word, and of this host, by the kernel's.

use std::fs;
use std::time::Duration;

use crate::guest::GuestStats;

/// Clock ticks per second in `/proc` (`USER_HZ`), the same on every machine that Kiln knows.
const TICKS_PER_SECOND: u64 = 100;

/// Figures of a sandbox.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SandboxStats {
    /// Of the guest, as the guest tells it: it may lie.
    pub guest: GuestStats,
    /// Of its VMM on this host; `None` when it has just ended.
    pub vmm: Option<VmmUsage>,
}

/// What a VMM uses of its host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VmmUsage {
    /// Memory, in which pages that several processes share count as parts (PSS): over all VMMs it
    /// adds up to what is really in use.
    pub memory_kib: u64,
    /// Memory of which others may have the same pages (RSS).
    pub resident_kib: u64,
    /// Time on this host's processors.
    pub cpu: Duration,
}

impl VmmUsage {
    /// What a process uses now; `None` when it is gone.
    pub(crate) fn of(pid: u32) -> Option<Self> {
        let maps = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        Some(Self {
            memory_kib: kib(&maps, "Pss:")?,
            resident_kib: kib(&maps, "Rss:")?,
            cpu: cpu(&stat)?,
        })
    }
}

fn kib(maps: &str, field: &str) -> Option<u64> {
    let line = maps.lines().find_map(|line| line.strip_prefix(field))?;
    line.split_whitespace().next()?.parse().ok()
}

/// Fields 14 and 15 of `/proc/<pid>/stat`. The name in field 2 may hold anything, also brackets.
fn cpu(stat: &str) -> Option<Duration> {
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some(Duration::from_millis(
        (user + system) * 1000 / TICKS_PER_SECOND,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_uses_something_and_one_that_is_gone_nothing() {
        let usage = VmmUsage::of(std::process::id()).expect("this process");
        assert!(usage.memory_kib > 0 && usage.resident_kib >= usage.memory_kib);
        assert_eq!(VmmUsage::of(u32::MAX), None);
        let stat = "7 (a) b) S 1 7 7 0 -1 4194560 1 2 3 4 150 50 0 0 20 0 1 0";
        assert_eq!(cpu(stat), Some(Duration::from_secs(2)));
    }
}
