//! The rate of this host's time-stamp counter, which a guest under TCG has to be told.
#![allow(
    unsafe_code,
    reason = "reading the time-stamp counter is an unsafe intrinsic"
)]

use std::time::{Duration, Instant};

/// Long enough for an error of a few parts in a million.
const WINDOW: Duration = Duration::from_millis(100);

/// Counts per millisecond. Without it, a guest on a busy host calibrates wrongly and hangs.
pub(super) fn tsc_khz() -> u64 {
    let (started, first) = (Instant::now(), counter());
    std::thread::sleep(WINDOW);
    let (counts, took) = (counter().saturating_sub(first), started.elapsed());
    u64::try_from(u128::from(counts) * 1_000_000 / took.as_nanos().max(1)).unwrap_or(0)
}

fn counter() -> u64 {
    // SAFETY: every x86-64 CPU has RDTSC, and it touches no memory.
    unsafe { core::arch::x86_64::_rdtsc() }
}
