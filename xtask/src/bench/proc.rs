//! Memory of a process, as the kernel sums it up.

use std::io;

/// Resident memory in MiB from the text of a `smaps_rollup`. `VmRSS` in `status` is an estimate
/// that was seen to be off by far in guests.
pub(crate) fn rss_mib(smaps_rollup: &str) -> Option<f64> {
    status_mib(smaps_rollup, "Rss:")
}

/// Resident memory of a process now, in MiB.
pub(super) fn resident_mib(pid: u32) -> io::Result<f64> {
    status(pid, "VmRSS:")
}

/// The most that a process ever had, in MiB; since `5` was last written to its `clear_refs`.
pub(super) fn peak_mib(pid: u32) -> io::Result<f64> {
    status(pid, "VmHWM:")
}

fn status(pid: u32, field: &str) -> io::Result<f64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    status_mib(&text, field).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// A field of a `status` in MiB.
pub(super) fn status_mib(text: &str, field: &str) -> Option<f64> {
    let line = text.lines().find_map(|line| line.strip_prefix(field))?;
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
