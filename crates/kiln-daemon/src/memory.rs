//! Giving memory back: what building an image or moving a gigabyte took must not stay with an
//! idle daemon.

#![allow(
    unsafe_code,
    reason = "the allocator's only way to give memory back is a foreign call"
)]

use std::time::Duration;

use crate::lifetime::Lifetime;

/// How long nobody must be connected before memory is given back: a walk through the heap (under
/// a millisecond for the 40 MiB that unpacking a kernel leaves) is not for between two requests.
const QUIET: Duration = Duration::from_secs(1);

/// From this size on, memory is the system's own business: mapped for one use, and gone with it.
/// It is glibc's first value; glibc raises it, up to 32 MiB, with each larger piece that is freed,
/// and then keeps as much.
#[cfg(target_env = "gnu")]
const LARGE: libc::c_int = 128 << 10;

/// Has the allocator of this process keep little of what was freed; for the start of a daemon,
/// before it has threads. Without it, a daemon that had built its first image kept 40 MiB of memory
/// at the tops of its threads' arenas, where `malloc_trim` does not look.
pub fn keep_little() {
    #[cfg(target_env = "gnu")]
    for option in [libc::M_MMAP_THRESHOLD, libc::M_TRIM_THRESHOLD] {
        // SAFETY: mallopt(3) takes two numbers and no pointer.
        unsafe { libc::mallopt(option, LARGE) };
    }
}

/// Gives memory back whenever the daemon falls idle. Never ends; cancel-safe.
pub(crate) async fn give_back_when_idle(lifetime: &Lifetime) {
    loop {
        lifetime.idle(QUIET, || false).await;
        give_back();
        lifetime.visited().await;
    }
}

/// Returns the free pages of every arena to the system. Freed memory below an arena's top stays
/// resident otherwise.
#[cfg(target_env = "gnu")]
fn give_back() {
    // SAFETY: malloc_trim(3) takes no pointer, locks the arenas itself and may be called at any
    // time from any thread.
    unsafe { libc::malloc_trim(0) };
}

/// Other allocators give back by themselves or not at all.
#[cfg(not(target_env = "gnu"))]
fn give_back() {}

#[cfg(all(test, target_env = "gnu"))]
mod tests {
    use super::*;

    #[test]
    fn what_was_freed_goes_back() {
        let resident_kib = || -> u64 {
            let status = std::fs::read_to_string("/proc/self/status").unwrap();
            let line = status.lines().find(|line| line.starts_with("VmRSS:"));
            let number = line.and_then(|line| line.split_whitespace().nth(1));
            number.unwrap().parse().unwrap()
        };
        // Small pieces with one kept above them: the heap's top cannot sink by itself.
        let pieces: Vec<Box<[u8; 4096]>> = (0..16_384).map(|_| Box::new([1; 4096])).collect();
        let above = Box::new([1_u8; 4096]);
        drop(pieces);
        let before = resident_kib();
        give_back();
        let after = resident_kib();
        assert_eq!(above[0], 1);
        assert!(
            after + 48 * 1024 < before,
            "{before} KiB before, {after} KiB after"
        );
    }
}
