//! How many sandboxes, and how fast.

use super::{Check, Facts, Level};

/// What a few hundred sandboxes need.
const PIDS: u64 = 32_768;
const INOTIFY_INSTANCES: u64 = 128;
const NAMESPACES: u64 = 1024;
const FILES: u64 = 65_536;

pub(super) fn checks(facts: &Facts) -> Vec<Check> {
    vec![
        limits(facts),
        clock(facts),
        huge_pages(facts),
        userfaultfd(facts),
        latency(facts),
    ]
}

fn limits(facts: &Facts) -> Check {
    let limits = [
        ("kernel/pid_max", PIDS),
        ("fs/inotify/max_user_instances", INOTIFY_INSTANCES),
        ("user/max_net_namespaces", NAMESPACES),
        ("fs/file-max", FILES),
    ];
    let low: Vec<_> = limits
        .into_iter()
        .filter_map(|(name, least)| {
            let has = facts.number(&format!("proc/sys/{name}"))?;
            (has < least).then(|| format!("{} is {has}", name.replace('/', ".")))
        })
        .collect();
    if low.is_empty() {
        return Check::ok("limits", "enough for hundreds of sandboxes");
    }
    Check::of(Level::Warning, "limits", low.join(", "))
        .because("each sandbox takes processes, files and a namespace")
        .remedy("raise them with sysctl")
}

fn clock(facts: &Facts) -> Check {
    let path = "sys/devices/system/clocksource/clocksource0/current_clocksource";
    match facts.read(path) {
        Some(source) if source == "tsc" || source == "kvm-clock" => Check::ok("clock", source),
        Some(source) => Check::of(Level::Info, "clock", source)
            .because("the processor's own counter is not trusted, so time is dear in guests too"),
        None => Check::of(Level::Info, "clock", "the kernel does not say"),
    }
}

fn huge_pages(facts: &Facts) -> Check {
    let thp = facts.read("sys/kernel/mm/transparent_hugepage/enabled");
    let free = facts.number("sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages");
    let thp = thp.unwrap_or_else(|| "not there".to_owned());
    let finding = format!("transparent: {thp}; of 2 MiB free: {}", free.unwrap_or(0));
    Check::of(Level::Info, "huge-pages", finding)
}

fn userfaultfd(facts: &Facts) -> Check {
    let name = "userfaultfd";
    let there = facts.path("dev/userfaultfd").exists()
        || facts.number("proc/sys/vm/unprivileged_userfaultfd") == Some(1);
    if there || facts.is_root {
        return Check::ok(name, "memory of snapshots can be served page by page");
    }
    Check::of(Level::Info, name, "not for this user")
        .because("snapshots are restored from files instead of page by page")
        .remedy("give this user /dev/userfaultfd")
}

/// Linux 6.1 makes machines slowly unless control groups favour changes.
fn latency(facts: &Facts) -> Check {
    let name = "machine-latency";
    let release = facts.read("proc/sys/kernel/osrelease").unwrap_or_default();
    let mounts = facts.read("proc/mounts").unwrap_or_default();
    let slow = super::engines::version(&release) == Some((6, 1));
    if slow && !mounts.contains("favordynmods") {
        return Check::of(Level::Info, name, "control groups do not favour changes")
            .because("on Linux 6.1 a machine takes tens of milliseconds longer to make")
            .remedy("mount -o remount,favordynmods /sys/fs/cgroup");
    }
    Check::ok(name, "nothing is known to slow machines down")
}
