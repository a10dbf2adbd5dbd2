//! Memory of a process, as the kernel sums it up.

/// Resident memory in MiB from the text of a `smaps_rollup`. `VmRSS` in `status` is an estimate
/// that was seen to be off by far in guests.
pub(super) fn rss_mib(smaps_rollup: &str) -> Option<f64> {
    let line = smaps_rollup
        .lines()
        .find_map(|line| line.strip_prefix("Rss:"))?;
    let kib: u32 = line.split_whitespace().next()?.parse().ok()?;
    Some(f64::from(kib) / 1024.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resident_memory_is_read() {
        let text = "55d0-7ffd ---p 00000000 00:00 0    [rollup]\nRss:        1536 kB\nPss: 9 kB\n";
        assert_eq!(rss_mib(text), Some(1.5));
        assert_eq!(rss_mib("cat: no such file\n"), None);
    }
}
