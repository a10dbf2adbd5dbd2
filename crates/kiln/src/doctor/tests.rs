//! Checks on hosts that are made up.

use std::fs;
use std::path::Path;

use super::*;

/// A host whose files are these.
fn host(dir: &Path, files: &[(&str, &str)]) -> Facts {
    for (path, text) in files {
        let path = dir.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    Facts {
        root: dir.to_owned(),
        is_root: true,
        ..Facts::of_this_host(&HostConfig::new(dir.join("data"), dir.join("run")))
    }
}

fn find<'a>(checks: &'a [Check], name: &str) -> &'a Check {
    checks
        .iter()
        .find(|check| check.name == name)
        .unwrap_or_else(|| panic!("no check {name}"))
}

const GOOD: &[(&str, &str)] = &[
    (
        "sys/fs/cgroup/cgroup.controllers",
        "cpuset cpu io memory pids\n",
    ),
    ("sys/devices/system/cpu/smt/active", "0\n"),
    ("sys/kernel/mm/ksm/run", "0\n"),
    ("proc/swaps", "Filename Type Size Used Priority\n"),
    (
        "sys/devices/system/cpu/vulnerabilities/mds",
        "Mitigation: Clear\n",
    ),
    ("dev/net/tun", ""),
    (
        "proc/net/route",
        "Iface Destination Gateway\neth0 00000000 0102A8C0\n",
    ),
    ("proc/sys/kernel/pid_max", "4194304\n"),
];

#[test]
fn b8_3_a_good_host_has_nothing_to_complain_of() {
    let dir = tempfile::tempdir().unwrap();
    let facts = host(dir.path(), GOOD);
    let mut checks = boundary::checks(&facts);
    checks.extend(network::checks(&facts));
    checks.extend(capacity::checks(&facts));
    for check in &checks {
        assert!(check.level <= Level::Info, "{check:?}");
    }
    assert_eq!(find(&checks, "default-interface").finding, "eth0");
}

#[test]
fn b8_3_each_fault_is_found_and_has_a_remedy() {
    let dir = tempfile::tempdir().unwrap();
    let facts = host(
        dir.path(),
        &[
            ("sys/fs/cgroup/cgroup.controllers", "cpuset\n"),
            ("sys/devices/system/cpu/smt/active", "1\n"),
            ("sys/kernel/mm/ksm/run", "1\n"),
            ("proc/swaps", "Filename Type\n/dev/sda2 partition\n"),
            (
                "sys/devices/system/cpu/vulnerabilities/mds",
                "Vulnerable: no microcode\n",
            ),
            ("proc/net/route", "Iface Destination\neth0 0002A8C0\n"),
            ("proc/sys/net/netfilter/nf_conntrack_count", "990\n"),
            ("proc/sys/net/netfilter/nf_conntrack_max", "1000\n"),
            ("proc/sys/kernel/pid_max", "100\n"),
        ],
    );
    let mut checks = boundary::checks(&facts);
    checks.extend(network::checks(&facts));
    checks.extend(capacity::checks(&facts));
    for name in [
        "cgroups",
        "smt",
        "ksm",
        "swap",
        "vulnerabilities",
        "default-interface",
        "conntrack",
        "limits",
    ] {
        let check = find(&checks, name);
        assert_eq!(check.level, Level::Warning, "{check:?}");
        assert!(
            check.reason.is_some() && check.remedy.is_some(),
            "{check:?}"
        );
    }
    let tun = find(&checks, "tun");
    assert_eq!((tun.level, tun.fixable), (Level::Failure, true), "{tun:?}");
}

#[test]
fn b8_3_what_is_safe_is_fixed() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let facts = host(dir.path(), &[("data/x", "")]);
    let open = fs::Permissions::from_mode(0o777);
    fs::set_permissions(&facts.data_dir, open).unwrap();
    let checks = places::checks(&facts);
    let found = find(&checks, "data-dir");
    assert_eq!(
        (found.level, found.fixable),
        (Level::Failure, true),
        "{found:?}"
    );
    assert!(places::fix(&facts, "data-dir") && places::fix(&facts, "runtime-dir"));
    let checks = places::checks(&facts);
    for name in ["data-dir", "runtime-dir"] {
        assert_eq!(find(&checks, name).level, Level::Ok, "{name}");
    }
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(
        (mode(&facts.data_dir), mode(&facts.runtime_dir)),
        (0o755, 0o700)
    );
    assert!(!places::fix(&facts, "disk") && !network::fix("kvm"));
}

#[test]
fn kernels_are_told_apart() {
    assert_eq!(engines::version("6.1.0-23-cloud-amd64"), Some((6, 1)));
    assert_eq!(engines::version("5.4"), Some((5, 4)));
    assert_eq!(engines::version("x"), None);
}

#[tokio::test]
async fn b8_3_this_host_is_examined_whole() {
    let dir = tempfile::tempdir().unwrap();
    let config = HostConfig::new(dir.path().join("data"), dir.path().join("run"));
    let checks = doctor(&config, false).await;
    for name in [
        "kvm",
        "disk",
        "default-interface",
        "tun",
        "mount-options",
        "firecracker",
        "jailer",
        "agent",
        "guest-kernel",
        "default-image",
        "engine",
    ] {
        find(&checks, name);
    }
    assert!(!dir.path().join("data").exists() || !dir.path().join("data/kiln.db").exists());
}

#[test]
fn bugs_of_a_version_are_told_with_what_is_done_about_them() {
    let check = super::engines::known_bad("1.16.1").expect("it has some");
    assert!(check.finding.contains("avoided by Kiln"), "{check:?}");
    assert!(super::engines::known_bad("1.16.2").is_none());
    assert!(super::engines::known_bad("no version").is_none());
}
