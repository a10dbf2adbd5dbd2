//! What keeps guests apart from each other beyond what Kiln does itself (Firecracker's
//! `prod-host-setup.md`).

use super::{Check, Facts, Level};

pub(super) fn checks(facts: &Facts) -> Vec<Check> {
    vec![
        cgroups(facts),
        smt(facts),
        ksm(facts),
        swap(facts),
        vulnerabilities(facts),
    ]
}

fn cgroups(facts: &Facts) -> Check {
    let name = "cgroups";
    let Some(has) = facts.read("sys/fs/cgroup/cgroup.controllers") else {
        return Check::of(
            Level::Warning,
            name,
            "control groups are version 1, or not mounted",
        )
        .because("machines are limited by version 2, and start slowly with version 1")
        .remedy("boot with systemd.unified_cgroup_hierarchy=1");
    };
    let missing: Vec<_> = ["cpu", "memory", "pids"]
        .into_iter()
        .filter(|wanted| !has.split_whitespace().any(|it| it == *wanted))
        .collect();
    if missing.is_empty() {
        return Check::ok(name, format!("version 2 with {has}"));
    }
    Check::of(
        Level::Warning,
        name,
        format!("version 2 without {}", missing.join(", ")),
    )
    .because("machines are not limited in that")
    .remedy("delegate these controllers to where the daemon runs")
}

fn smt(facts: &Facts) -> Check {
    match facts.read("sys/devices/system/cpu/smt/active").as_deref() {
        Some("1") => Check::of(Level::Warning, "smt", "processor threads share cores")
            .because("a guest can learn from timing what runs beside it on its core")
            .remedy("echo off > /sys/devices/system/cpu/smt/control, or boot with nosmt"),
        _ => Check::ok("smt", "no two processors share a core"),
    }
}

fn ksm(facts: &Facts) -> Check {
    match facts.number("sys/kernel/mm/ksm/run") {
        Some(1) => Check::of(Level::Warning, "ksm", "equal pages are merged")
            .because("a guest can learn from timing what others have in memory")
            .remedy("echo 2 > /sys/kernel/mm/ksm/run"),
        _ => Check::ok("ksm", "equal pages are not merged"),
    }
}

fn swap(facts: &Facts) -> Check {
    let swaps = facts.read("proc/swaps").unwrap_or_default();
    match swaps.lines().skip(1).count() {
        0 => Check::ok("swap", "none"),
        number => Check::of(Level::Warning, "swap", format!("{number} in use"))
            .because("what guests have in memory stays on the disk")
            .remedy("swapoff -a, or encrypt it"),
    }
}

fn vulnerabilities(facts: &Facts) -> Check {
    let name = "vulnerabilities";
    let dir = facts.path("sys/devices/system/cpu/vulnerabilities");
    let mut open: Vec<String> = std::fs::read_dir(dir)
        .into_iter()
        .flatten()
        .flatten()
        .filter(|it| {
            std::fs::read_to_string(it.path()).is_ok_and(|it| it.starts_with("Vulnerable"))
        })
        .map(|it| it.file_name().to_string_lossy().into_owned())
        .collect();
    open.sort();
    if open.is_empty() {
        return Check::ok(name, "the kernel knows of none that is open");
    }
    Check::of(Level::Warning, name, open.join(", "))
        .because("a guest may read what is not its own")
        .remedy("update microcode and kernel, and boot without mitigations=off")
}
