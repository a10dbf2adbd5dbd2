use super::*;

fn limits() -> EngineLimits {
    EngineLimits {
        max_disks: 2,
        max_nics: 1,
        limits_nics: false,
        socket_dir: None,
        confines: true,
        sockets: &["a.sock", "longer.sock"],
        own_args: "console=ttyS0".into(),
    }
}

fn good(dir: &Path) -> MachineSpec {
    let kernel = dir.join("vmlinux");
    std::fs::write(&kernel, b"\x7fELF\x02 and so on").unwrap();
    let disk = dir.join("disk");
    std::fs::write(&disk, b"").unwrap();
    MachineSpec {
        id: "web-1".into(),
        runtime_dir: dir.to_owned(),
        vcpus: 1,
        mem_mib: 1,
        boot: Boot {
            kernel,
            initramfs: None,
            args: vec!["quiet".into()],
        },
        disks: vec![Disk {
            id: "root".into(),
            path: disk,
            read_only: true,
            options: crate::DiskOptions::default(),
        }],
        agent: true,
        restore: None,
        nics: vec![],
        netns: None,
        jail: None,
        allow_insecure: true,
        options: crate::MachineOptions::default(),
        console_log: dir.join("console"),
    }
}

fn faults(spec: &MachineSpec) -> Vec<SpecFault> {
    check(spec, &limits()).map_or_else(|faults| faults.0, |()| vec![])
}

#[test]
fn a_good_machine_has_no_fault() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(faults(&good(dir.path())), []);
}

#[test]
fn a5_1_all_faults_are_told_together() {
    let dir = tempfile::tempdir().unwrap();
    let mut spec = good(dir.path());
    let disk = spec.disks[0].clone();
    spec.id = "under_score".into();
    spec.vcpus = 0;
    spec.mem_mib = 0;
    spec.boot.kernel = dir.path().join("missing");
    spec.boot.args = vec!["two words".into(), "x".repeat(3000)];
    spec.disks = vec![
        disk.clone(),
        disk.clone(),
        Disk {
            id: "a-b".into(),
            ..disk
        },
    ];
    spec.runtime_dir = "relative".into();
    spec.console_log = "/nonexistent/console".into();
    let text = SpecFaults(faults(&spec)).to_string();
    for part in [
        "under_score",
        "0 vCPUs",
        "at least 1 MiB",
        "kernel",
        "two words",
        "at most 2047 fit",
        "3 disks",
        "used twice",
        "a-b",
        "not absolute",
        "runtime directory",
        "console log",
    ] {
        assert!(text.contains(part), "{part:?} is missing in {text}");
    }
}

#[test]
fn a_kernel_that_is_no_elf_is_a_fault_of_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let spec = good(dir.path());
    // A bzImage begins with a boot sector.
    std::fs::write(&spec.boot.kernel, b"MZ\xea\x07 bzImage").unwrap();
    assert_eq!(
        faults(&spec),
        [SpecFault::KernelFormat(spec.boot.kernel.clone())]
    );
    std::fs::write(&spec.boot.kernel, b"").unwrap();
    assert_eq!(
        faults(&spec),
        [SpecFault::KernelFormat(spec.boot.kernel.clone())]
    );
}

#[test]
fn a_fifo_as_kernel_does_not_block() {
    let dir = tempfile::tempdir().unwrap();
    let mut spec = good(dir.path());
    spec.boot.kernel = dir.path().join("fifo");
    crate::output::make_fifo(&spec.boot.kernel).unwrap();
    assert!(matches!(faults(&spec)[..], [SpecFault::Unreadable { .. }]));
}

#[test]
fn the_longest_socket_must_fit() {
    let dir = tempfile::tempdir().unwrap();
    let mut spec = good(dir.path());
    let short = dir.path().as_os_str().len();
    let deep = dir
        .path()
        .join("d".repeat(MAX_SOCKET_PATH_BYTES - short - "//longer.sock".len()));
    std::fs::create_dir(&deep).unwrap();
    spec.runtime_dir = deep.clone();
    assert_eq!(faults(&spec), []);
    let deeper = dir
        .path()
        .join(format!("{}d", deep.file_name().unwrap().to_str().unwrap()));
    std::fs::create_dir(&deeper).unwrap();
    spec.runtime_dir = deeper;
    assert!(matches!(
        faults(&spec)[..],
        [SpecFault::SocketPath { bytes: 108, .. }]
    ));
}

/// An id names files, sockets, control groups and devices: it is a plain word or nothing is made.
#[test]
fn a1_2_an_id_that_leads_elsewhere_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    for id in [
        "",
        ".",
        "..",
        "a/b",
        "../x",
        "a b",
        "a\0b",
        "ä",
        "a%b",
        &"x".repeat(65),
    ] {
        let spec = MachineSpec {
            id: id.to_owned(),
            ..good(dir.path())
        };
        assert_eq!(faults(&spec), [SpecFault::Id(id.to_owned())]);
    }
    for id in ["a", "Web-1", &"x".repeat(64)] {
        let spec = MachineSpec {
            id: id.to_owned(),
            ..good(dir.path())
        };
        assert_eq!(faults(&spec), [], "{id}");
    }
}
