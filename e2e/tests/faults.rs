//! Bad input and faults: a clear coded error at once, and nothing left.

#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    reason = "a scenario fails by panicking, its helpers too"
)]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Stdio;
use std::time::{Duration, Instant};

use e2e::{Stage, eventually, signal, skip};
use rustix::process::Signal;

/// A failure must not wait for a time-out that is meant for guests that are merely slow.
const AT_ONCE: Duration = Duration::from_secs(20);

#[test]
fn an_unknown_flag_is_never_eaten() {
    let stage = Stage::bare();
    let ran = stage
        .kiln(&["run", "--no-such-flag", "--", "true"])
        .expect_code(125);
    assert!(ran.stderr.contains("--no-such-flag"), "{ran:?}");
    assert_eq!(stage.processes(), vec![], "a usage error starts no daemon");
}

#[test]
fn kernels_that_cannot_boot_are_refused_by_what_they_are() {
    let stage = Stage::new();
    let text = stage.path("vmlinux.txt");
    fs::write(&text, "this is no kernel\n".repeat(1000)).expect("file");
    for (kernel, code) in [
        ("/no/such/vmlinux", "KERNEL_FAILED"),
        (text.to_str().expect("path"), "KERNEL_FAILED"),
    ] {
        let ran = stage
            .kiln(&["run", "--json", "--kernel", kernel, "--", "true"])
            .expect_code(125);
        assert_eq!(ran.error()["code"], code, "{ran:?}");
        assert!(
            ran.error()["message"]
                .as_str()
                .expect("text")
                .contains(kernel),
            "{ran:?}"
        );
    }
    stage.assert_nothing_left();
}

#[test]
fn images_that_cannot_be_used_are_refused() {
    let stage = Stage::new();
    let corrupt = stage.path("corrupt.tar.gz");
    fs::write(
        &corrupt,
        [b"\x1f\x8b\x08\0".as_slice(), &[7; 5000]].concat(),
    )
    .expect("file");
    let unknown = stage.path("unknown.img");
    fs::write(&unknown, vec![0x5a; 100_000]).expect("file");
    for image in [
        "/no/such/image",
        corrupt.to_str().expect("path"),
        unknown.to_str().expect("path"),
    ] {
        let ran = stage
            .kiln(&["run", "--json", image, "--", "true"])
            .expect_code(125);
        assert_eq!(ran.error()["code"], "IMAGE_FAILED", "{ran:?}");
    }
    stage.assert_nothing_left();
}

#[test]
fn a_root_filesystem_that_does_not_mount_is_told_from_the_console() {
    let stage = Stage::new();
    let image = stage.path("broken.ext4");
    let made = std::process::Command::new("mke2fs")
        .args(["-q", "-t", "ext4"])
        .arg(&image)
        .arg("16M")
        .status();
    assert!(made.expect("mke2fs").success());
    // The magic stays, the group descriptors go.
    let file = fs::OpenOptions::new()
        .write(true)
        .open(&image)
        .expect("image");
    std::os::unix::fs::FileExt::write_all_at(&file, &[0xff; 8192], 1024 + 1024).expect("damage");
    let ran = stage
        .kiln(&["run", "--json", image.to_str().expect("path"), "--", "true"])
        .expect_code(125);
    assert_eq!(ran.error()["code"], "START_FAILED", "{ran:?}");
    assert!(
        ran.error()["message"]
            .as_str()
            .expect("text")
            .contains("/dev/vda"),
        "{ran:?}"
    );
    stage.assert_nothing_left();
}

#[test]
fn a_missing_vmm_says_what_to_install() {
    let stage = Stage::new().with_env("KILN_QEMU", "/no/such/qemu");
    let ran = stage
        .kiln(&["run", "--json", "--engine", "qemu", "--", "true"])
        .expect_code(125);
    assert!(
        ["NO_ENGINE", "BINARY_NOT_FOUND"].contains(&ran.error()["code"].as_str().expect("code")),
        "{ran:?}"
    );
    assert!(
        ran.error()["hint"]
            .as_str()
            .is_some_and(|hint| !hint.is_empty()),
        "{ran:?}"
    );
    stage.assert_nothing_left();
}

#[test]
fn a_vmm_that_dies_at_once_is_told_at_once_with_its_last_words() {
    let stage = Stage::new();
    let fake = stage.path("qemu");
    fs::write(&fake, "#!/bin/sh\ncase \"$*\" in *--version*|*-version*) exec qemu-system-x86_64 --version;; esac\necho 'the oven is cold' >&2\nexit 9\n")
        .expect("script");
    fs::set_permissions(&fake, fs::Permissions::from_mode(0o755)).expect("mode");
    let stage = stage.with_env("KILN_QEMU", &fake);
    let began = Instant::now();
    let ran = stage
        .kiln(&["run", "--json", "--engine", "qemu", "--", "true"])
        .expect_code(125);
    assert!(began.elapsed() < AT_ONCE, "took {:?}", began.elapsed());
    assert_eq!(ran.error()["code"], "START_FAILED", "{ran:?}");
    assert!(
        ran.error().to_string().contains("the oven is cold"),
        "{ran:?}"
    );
    stage.assert_nothing_left();
}

#[test]
fn an_agent_that_never_dials_meets_a_deadline_with_the_console() {
    let stage = Stage::new().with_env("KILN_BOOT_TIMEOUT", "3");
    let kernel = stage.path("stub");
    fs::write(&kernel, stub_kernel(b"STUB GUEST SPINS\n")).expect("stub");
    let args = [
        "run",
        "--json",
        "--engine",
        "qemu",
        "--kernel",
        kernel.to_str().expect("path"),
        "--",
        "true",
    ];
    let ran = stage.kiln(&args).expect_code(125);
    assert_eq!(ran.error()["code"], "AGENT_TIMEOUT", "{ran:?}");
    assert!(
        ran.error().to_string().contains("STUB GUEST SPINS"),
        "{ran:?}"
    );
    stage.assert_nothing_left();
}

#[test]
fn a_guest_that_panics_is_stopped_and_says_so() {
    let stage = Stage::new();
    let sandbox = stage.sandbox(&[]);
    // The command's connection dies with the guest.
    let ran = stage.kiln(&[
        "exec",
        &sandbox,
        "--",
        "sh",
        "-c",
        "echo c > /proc/sysrq-trigger; sleep 60",
    ]);
    assert_eq!(ran.code, Some(125), "{ran:?}");
    eventually("it is stopped", || {
        stage.sandboxes()[0]["state"] == "stopped"
    });
    let reason = stage.sandboxes()[0]["reason"].to_string();
    assert!(reason.contains("panic"), "{reason}");
    stage.kiln(&["rm", &sandbox]).expect_code(0);
    stage.assert_nothing_left();
}

#[test]
fn a_guest_that_powers_itself_off_is_stopped() {
    let stage = Stage::new();
    let sandbox = stage.sandbox(&[]);
    stage.kiln(&["exec", &sandbox, "--", "sh", "-c", "kill -USR2 1; sleep 60"]);
    eventually("it is stopped", || {
        stage.sandboxes()[0]["state"] == "stopped"
    });
    let reason = stage.sandboxes()[0]["reason"].to_string();
    assert!(reason.contains("powered itself off"), "{reason}");
    stage.kiln(&["rm", &sandbox]).expect_code(0);
    stage.assert_nothing_left();
}

#[test]
fn a_daemon_that_is_killed_loses_no_machine() {
    let stage = Stage::new();
    let sandbox = stage.sandbox(&[]);
    let before = stage.sandboxes()[0]["pid"].as_u64().expect("pid");
    stage
        .kiln(&[
            "exec",
            &sandbox,
            "--",
            "sh",
            "-c",
            "echo survives > /run/mark",
        ])
        .expect_code(0);
    let daemon = stage.daemon_pid();
    signal(daemon, Signal::KILL);
    eventually("the daemon is gone", || {
        !stage.processes().iter().any(|(pid, _)| *pid == daemon)
    });
    let adopted = &stage.sandboxes()[0];
    assert_eq!(
        (adopted["state"].as_str(), adopted["pid"].as_u64()),
        (Some("running"), Some(before))
    );
    assert_ne!(stage.daemon_pid(), daemon);
    let ran = stage
        .kiln(&["exec", &sandbox, "--", "cat", "/run/mark"])
        .expect_code(0);
    assert_eq!(ran.text(), "survives\n");
    stage.kiln(&["stop", &sandbox]).expect_code(0);
    assert_eq!(stage.sandboxes()[0]["state"], "stopped");
    stage.kiln(&["rm", &sandbox]).expect_code(0);
    stage.assert_nothing_left();
}

#[test]
fn a_run_whose_daemon_is_killed_is_over_and_leaves_nothing() {
    let stage = Stage::new();
    let run = stage
        .command(&["run", "--", "sleep", "100000"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("kiln");
    eventually("it runs", || {
        stage
            .sandboxes()
            .first()
            .is_some_and(|sandbox| sandbox["state"] == "running")
    });
    signal(stage.daemon_pid(), Signal::KILL);
    e2e::finish(run).expect_code(125);
    stage.assert_nothing_left();
}

#[test]
fn a_vmm_that_is_killed_is_noticed() {
    let stage = Stage::new();
    let sandbox = stage.sandbox(&[]);
    let vmm = stage.sandboxes()[0]["pid"].as_u64().expect("pid");
    signal(u32::try_from(vmm).expect("pid"), Signal::KILL);
    eventually("it is stopped", || {
        stage.sandboxes()[0]["state"] == "stopped"
    });
    stage
        .kiln(&["exec", &sandbox, "--", "true"])
        .expect_code(125);
    stage.kiln(&["rm", &sandbox]).expect_code(0);
    stage.assert_nothing_left();
}

#[test]
fn a_full_disk_publishes_no_half_image() {
    if !rustix::process::geteuid().is_root() {
        return skip(
            "a_full_disk_publishes_no_half_image",
            "mounting a small tmpfs needs root",
        );
    }
    let stage = Stage::new();
    let images = stage.data().join("images");
    let small = Mount::tmpfs(&images, "24m");
    let tree = stage.path("large");
    fs::create_dir(&tree).expect("dir");
    fs::write(tree.join("blob"), vec![0xa5; 64 << 20]).expect("blob");
    let ran = stage
        .kiln(&["run", "--json", tree.to_str().expect("path"), "--", "true"])
        .expect_code(125);
    assert_eq!(ran.error()["code"], "DISK_FULL", "{ran:?}");
    assert_eq!(e2e::partials(&images), Vec::<std::path::PathBuf>::new());
    assert_eq!(e2e::names_in(&images.join("images")), Vec::<String>::new());
    drop(small);
    stage.assert_nothing_left();
}

/// A mount that goes with the test.
struct Mount(std::path::PathBuf);

impl Mount {
    fn tmpfs(at: &std::path::Path, size: &str) -> Self {
        let options = format!("size={size}");
        let mounted = std::process::Command::new("mount")
            .args(["-t", "tmpfs", "-o", &options, "tmpfs"])
            .arg(at)
            .status()
            .expect("mount");
        assert!(mounted.success());
        Self(at.to_path_buf())
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount")
            .arg("-l")
            .arg(&self.0)
            .status();
    }
}

/// An ELF64 "kernel" with a PVH note for QEMU that prints a line on the first serial port and
/// spins. The PVH entry point is entered in 32-bit protected mode with flat segments.
fn stub_kernel(line: &[u8]) -> Vec<u8> {
    const BASE: u32 = 0x10_0000;
    const NOTE: usize = 64 + 2 * 56;
    const CODE: usize = NOTE + 12 + 4 + 4;
    let mut code = vec![0x66, 0xba, 0xf8, 0x03]; // mov dx, 0x3f8
    for &byte in line {
        code.extend([0xb0, byte, 0xee]); // mov al, byte; out dx, al
    }
    code.extend([0xf3, 0x90, 0xeb, 0xfc]); // pause; jmp back
    let size = (CODE + code.len()) as u64;
    let mut elf = Vec::new();
    elf.extend(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    elf.extend(2u16.to_le_bytes()); // ET_EXEC
    elf.extend(62u16.to_le_bytes()); // x86-64
    elf.extend(1u32.to_le_bytes());
    elf.extend(u64::from(BASE + CODE as u32).to_le_bytes());
    elf.extend(64u64.to_le_bytes()); // program headers
    elf.extend(0u64.to_le_bytes());
    elf.extend(0u32.to_le_bytes());
    for half in [64u16, 56, 2, 0, 0, 0] {
        elf.extend(half.to_le_bytes());
    }
    let mut header = |kind: u32, flags: u32, offset: u64, size: u64, align: u64| {
        let address = u64::from(BASE) + offset;
        elf.extend(kind.to_le_bytes());
        elf.extend(flags.to_le_bytes());
        for word in [offset, address, address, size, size, align] {
            elf.extend(word.to_le_bytes());
        }
    };
    header(1, 7, 0, size, 0x1000); // PT_LOAD
    header(4, 4, NOTE as u64, 20, 4); // PT_NOTE
    elf.extend(4u32.to_le_bytes()); // name size
    elf.extend(4u32.to_le_bytes()); // value size
    elf.extend(18u32.to_le_bytes()); // XEN_ELFNOTE_PHYS32_ENTRY
    elf.extend(b"Xen\0");
    elf.extend((BASE + CODE as u32).to_le_bytes());
    elf.extend(code);
    elf
}
