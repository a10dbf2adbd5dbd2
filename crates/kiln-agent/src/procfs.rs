//! What `/proc` says about the guest's processes and memory.

use std::fs;

use rustix::process::Pid;

/// All processes with user memory, without process 1 and without the agent.
pub(crate) fn user_processes() -> Vec<Pid> {
    let own = rustix::process::getpid();
    processes()
        .filter(|&pid| pid != own && pid != Pid::INIT && !is_kernel_thread(pid))
        .collect()
}

/// The processes of the terminal session that `leader` leads, without itself.
pub(crate) fn session_members(leader: Pid) -> Vec<Pid> {
    processes()
        .filter(|&pid| pid != leader && session_of(pid) == Some(leader))
        .collect()
}

/// How many processes there are.
pub(crate) fn count() -> u32 {
    processes().count() as u32
}

fn processes() -> impl Iterator<Item = Pid> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| Pid::from_raw(entry.file_name().to_str()?.parse().ok()?))
}

fn session_of(pid: Pid) -> Option<Pid> {
    session_in(&fs::read(format!("/proc/{pid}/stat")).ok()?)
}

/// Field 6 of `/proc/<pid>/stat`. The name in field 2 may contain anything, also brackets. A
/// process that is just going has the session -1.
fn session_in(stat: &[u8]) -> Option<Pid> {
    let after_name = stat.iter().rposition(|&b| b == b')')? + 1;
    let rest = String::from_utf8_lossy(&stat[after_name..]).into_owned();
    let session: i32 = rest.split_whitespace().nth(3)?.parse().ok()?;
    Pid::from_raw(session.max(0))
}

fn is_kernel_thread(pid: Pid) -> bool {
    fs::read_link(format!("/proc/{pid}/exe")).is_err()
}

/// Resident memory of this process in KiB. Not from `status`, which is only roughly right.
pub(crate) fn own_rss_kib() -> u64 {
    kib_field("/proc/self/smaps_rollup", "Rss:").unwrap_or(0)
}

/// A field of `/proc/meminfo` in KiB.
pub(crate) fn memory_kib(field: &str) -> u64 {
    kib_field("/proc/meminfo", field).unwrap_or(0)
}

fn kib_field(path: &str, field: &str) -> Option<u64> {
    let text = fs::read_to_string(path).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(field))?;
    line.split_whitespace().next()?.parse().ok()
}

/// Load of the last minute, in hundredths.
pub(crate) fn load1_centi() -> u32 {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let first = text.split_whitespace().next().unwrap_or_default();
    first.replace('.', "").parse().unwrap_or(0)
}

/// Milliseconds that the processors have worked, all together. In ticks of 10 ms, whatever the
/// kernel's own are (`USER_HZ`); waiting for disks and what the host took are no work.
pub(crate) fn cpu_busy_ms() -> u64 {
    let text = fs::read_to_string("/proc/stat").unwrap_or_default();
    busy_ticks(&text) * 10
}

fn busy_ticks(stat: &str) -> u64 {
    let first = stat.lines().next().unwrap_or_default();
    let ticks: Vec<u64> = first
        .split_whitespace()
        .skip(1)
        .map(|it| it.parse().unwrap_or(0))
        .collect();
    // user, nice, system, idle, iowait, irq, softirq, steal.
    [0, 1, 2, 5, 6].iter().filter_map(|&at| ticks.get(at)).sum()
}

/// How many processors there are.
pub(crate) fn cpus() -> u32 {
    let text = fs::read_to_string("/proc/stat").unwrap_or_default();
    let lines = text.lines().filter(|line| line.starts_with("cpu"));
    lines.count().saturating_sub(1) as u32
}

/// Bytes received and sent by all interfaces but the loopback.
pub(crate) fn network_bytes() -> (u64, u64) {
    let text = fs::read_to_string("/proc/net/dev").unwrap_or_default();
    interface_bytes(&text)
}

fn interface_bytes(dev: &str) -> (u64, u64) {
    let of_line = |line: &str| {
        let (name, fields) = line.split_once(':')?;
        if name.trim() == "lo" {
            return None;
        }
        let mut fields = fields.split_whitespace();
        let received: u64 = fields.next()?.parse().ok()?;
        let sent: u64 = fields.nth(7)?.parse().ok()?;
        Some((received, sent))
    };
    let sum = |all: (u64, u64), one: (u64, u64)| (all.0 + one.0, all.1 + one.1);
    dev.lines().skip(2).filter_map(of_line).fold((0, 0), sum)
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::process::{Command, Stdio};

    use rustix::process::{Signal, kill_process};

    use super::*;

    #[test]
    fn work_and_traffic_are_read() {
        let stat = "cpu  10 20 30 1000 500 1 2 9 0 0\ncpu0 1 1 1 1 1 1 1 1 0 0\n";
        assert_eq!(busy_ticks(stat), 63);
        assert_eq!(busy_ticks(""), 0);
        let dev = "Inter-|   Receive\n face |bytes\n    lo: 9 1 0 0 0 0 0 0 9 1 0 0 0 0 0 0\n  \
                   eth0: 100 1 0 0 0 0 0 0 200 1 0 0 0 0 0 0\n";
        assert_eq!(interface_bytes(dev), (100, 200));
        assert!(cpus() > 0 && cpu_busy_ms() > 0);
    }

    #[test]
    fn this_machine_has_processes_memory_and_a_load() {
        assert!(count() > 1);
        assert!(own_rss_kib() > 100);
        assert!(memory_kib("MemTotal:") > 1000);
    }

    #[test]
    fn sessions_are_read_whatever_the_name_and_of_the_living_only() {
        assert_eq!(
            session_in(b"7 (a) b (c) S 1 7 42 0 -1"),
            Pid::from_raw(42),
            "after the last bracket"
        );
        for none in [
            &b"7 (sh) X 0 -1 -1 0 -1"[..],
            b"7 (sh) S 0 0 0 0",
            b"7 (",
            b"",
        ] {
            assert_eq!(session_in(none), None);
        }
    }

    /// A leader of our own: the one of this process may be outside of the PID namespace.
    #[test]
    fn a_leader_and_its_members_are_found() {
        let mut leader = Command::new("setsid")
            .args(["sh", "-c", "sleep 100 & echo; wait"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut ready = [0];
        let read = leader.stdout.take().unwrap().read_exact(&mut ready);
        let pid = Pid::from_child(&leader);
        let (of_leader, members) = (session_of(pid), session_members(pid));
        for &member in &members {
            let _ = kill_process(member, Signal::KILL);
        }
        leader.kill().unwrap();
        leader.wait().unwrap();

        read.unwrap();
        assert_eq!(of_leader, Some(pid));
        assert_eq!(members.len(), 1);
    }
}
