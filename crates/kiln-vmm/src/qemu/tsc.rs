//! The rate of the host's time-stamp counter, which is also the guest's under TCG.
//!
//! A guest kernel that has to calibrate the counter itself, against an emulated timer on a busy
//! host, gets it wrong or waits for ever: 0 of 7 boots under load, 7 of 7 when it is told.
#![cfg_attr(
    target_arch = "x86_64",
    allow(unsafe_code, reason = "the instruction that reads the counter")
)]

use std::path::Path;

use crate::boot_cache;

const CACHE: &str = "tsc-khz.json";

/// The rate in kHz, measured once per boot; `None` where there is no such counter.
pub(super) fn khz(cache_dir: &Path) -> Option<u64> {
    if let Some(khz) = boot_cache::read(cache_dir, CACHE, "") {
        return Some(khz);
    }
    let khz = measure()?;
    boot_cache::write(cache_dir, CACHE, "", khz);
    Some(khz)
}

#[cfg(target_arch = "x86_64")]
fn measure() -> Option<u64> {
    /// Reading both clocks is exact to some 50 ns: over this time, one part in a million.
    const SPAN: std::time::Duration = std::time::Duration::from_millis(100);
    let (counter, clock) = read_both();
    std::thread::sleep(SPAN);
    let (later_counter, later_clock) = read_both();
    let ticks = u128::from(later_counter.checked_sub(counter)?);
    let nanos = u128::from(later_clock.checked_sub(clock)?);
    u64::try_from((ticks * 1_000_000).checked_div(nanos)?).ok()
}

#[cfg(not(target_arch = "x86_64"))]
fn measure() -> Option<u64> {
    None
}

/// The counter and the clock at the same instant, as nearly as can be had: of several tries the
/// one that was interrupted least.
#[cfg(target_arch = "x86_64")]
fn read_both() -> (u64, u64) {
    let try_once = || {
        let before = nanos();
        // SAFETY: the instruction exists on every x86-64 and reads a counter, nothing else.
        let counter = unsafe { core::arch::x86_64::_rdtsc() };
        let after = nanos();
        (after - before, counter, before + (after - before) / 2)
    };
    let (_, counter, clock) = (0..32)
        .map(|_| try_once())
        .min_by_key(|(width, ..)| *width)
        .unwrap_or_else(try_once);
    (counter, clock)
}

#[cfg(target_arch = "x86_64")]
fn nanos() -> u64 {
    use rustix::time::{ClockId, clock_gettime};
    // Not adjusted by NTP, as the counter is not.
    let now = clock_gettime(ClockId::MonotonicRaw);
    now.tv_sec.unsigned_abs() * 1_000_000_000 + now.tv_nsec.unsigned_abs()
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use super::*;

    #[test]
    fn two_measurements_agree_and_the_second_comes_from_the_cache() {
        let dir = tempfile::tempdir().unwrap();
        let first = khz(dir.path()).unwrap();
        let again = measure().unwrap();
        assert!(
            first.abs_diff(again) * 10_000 < first,
            "{first} and {again} kHz differ by more than 0.01 %"
        );
        assert!((100_000..20_000_000).contains(&first), "{first} kHz");
        assert_eq!(khz(dir.path()), Some(first));
    }
}
