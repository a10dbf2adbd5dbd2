//! `--init systemd`: the image's own init is process 1, with the agent beside it.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a scenario fails by panicking, its helpers too"
)]

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use e2e::{Stage, skip};

const BUSYBOX: &str = "/bin/busybox";
/// Packages of a small Debian that boots with systemd.
const SYSTEMD: [&str; 7] = [
    "systemd-sysv",
    "base-files",
    "base-passwd",
    "bash",
    "coreutils",
    "dash",
    "libc-bin",
];

/// Process 1 by name, then who protects whom from the OOM killer, then whether the agent outlives
/// being asked to end.
const LOOK: &str = "cat /proc/1/comm; cat /proc/self/oom_score_adj; \
    for dir in /proc/[0-9]*; do \
        read -r name <$dir/cmdline; \
        case $name in @kiln-agent*) \
            cat $dir/oom_score_adj; kill -TERM ${dir#/proc/}; kill -HUP ${dir#/proc/};; \
        esac; \
    done 2>/dev/null; echo looked";

fn run(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {output:?}");
}

/// A root filesystem of busybox alone, with its init.
fn busybox_root(root: &Path) -> bool {
    // Dynamically linked it would not run in an image that holds nothing else.
    let linked = Command::new("ldd").arg(BUSYBOX).output();
    if !Path::new(BUSYBOX).is_file() || linked.is_ok_and(|output| output.status.success()) {
        return false;
    }
    for name in ["bin", "sbin", "etc", "proc", "sys", "dev", "run", "tmp"] {
        fs::create_dir_all(root.join(name)).unwrap();
    }
    fs::copy(BUSYBOX, root.join("bin/busybox")).unwrap();
    for applet in ["sh", "cat", "kill", "sleep", "poweroff", "reboot", "echo"] {
        symlink("busybox", root.join("bin").join(applet)).unwrap();
    }
    symlink("../bin/busybox", root.join("sbin/init")).unwrap();
    fs::write(root.join("etc/passwd"), "root:x:0:0:root:/:/bin/sh\n").unwrap();
    let table = "::sysinit:/bin/sh -c 'echo began >/run/began'\n\
                 ::shutdown:/bin/sh -c 'echo the init says goodbye >/dev/console'\n";
    fs::write(root.join("etc/inittab"), table).unwrap();
    true
}

#[test]
fn an_image_brings_its_own_init_and_the_agent_lives_beside_it() {
    const TEST: &str = "an_image_brings_its_own_init_and_the_agent_lives_beside_it";
    let stage = Stage::new();
    let root = stage.path("root");
    if !busybox_root(&root) {
        return skip(TEST, "there is no static busybox");
    }
    let image = root.to_str().unwrap().to_owned();
    let id = stage.sandbox(&["--init", "systemd", "--tmpfs", &image]);
    let script = format!("while ! [ -e /run/began ]; do sleep 0.1; done; {LOOK}");
    let exec = |script: &str| stage.kiln(&["exec", &id, "sh", "-c", script]);
    let ran = exec(&script).expect_code(0);
    assert_eq!(ran.text(), "init\n0\n-1000\nlooked\n");
    // It was asked to end just now, and more than once.
    assert_eq!(exec("echo here").expect_code(0).text(), "here\n");
    // Without a disk, too, it goes on from a snapshot, init and all.
    let create = ["snapshot", "create", &id, "--name", "golden"];
    stage.kiln(&create).expect_code(0);
    let look = "read -r name < /proc/sys/kernel/hostname; cat /proc/1/comm /run/began; echo $name";
    let run = ["run", "--snapshot", "golden", "--hostname", "clone"];
    let run = stage.kiln(&[&run[..], &["--", "sh", "-c", look]].concat());
    assert_eq!(run.expect_code(0).text(), "init\nbegan\nclone\n");
    stage.kiln(&["snapshot", "rm", "golden"]).expect_code(0);
    stage.kiln(&["stop", "--time", "60", &id]).expect_code(0);
    let said = stage.kiln(&["logs", &id]).expect_code(0).text();
    assert!(said.contains("the init says goodbye"), "{said}");

    // Nothing to hand over to.
    fs::remove_file(root.join("sbin/init")).unwrap();
    let none = stage.kiln(&[
        "run", "--json", "--init", "systemd", "--tmpfs", &image, "true",
    ]);
    let error = none.expect_code(125).error();
    let message = error["message"].as_str().unwrap();
    assert!(message.contains("the image has no init"), "{message}");
    stage.kiln(&["rm", "--force", &id]).expect_code(0);
    stage.assert_nothing_left();
}

/// A small Debian with systemd, unpacked once; `None` where apt cannot fetch it.
fn systemd_root() -> Option<PathBuf> {
    let base = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/e2e");
    let root = base.join("systemd");
    if root.exists() {
        return Some(root);
    }
    fs::create_dir_all(&base).unwrap();
    let work = tempfile::tempdir_in(&base).unwrap();
    let (status, debs) = (work.path().join("status"), work.path().join("debs"));
    fs::write(&status, "").unwrap();
    fs::create_dir_all(debs.join("partial")).unwrap();
    let mut apt = Command::new("apt-get");
    apt.args(["--yes", "--download-only", "--no-install-recommends"]);
    apt.arg("-o")
        .arg(format!("Dir::State::status={}", status.display()));
    apt.arg("-o")
        .arg(format!("Dir::Cache::archives={}", debs.display()));
    apt.args(["-o", "Debug::NoLocking=1", "-o", "APT::Sandbox::User=root"]);
    apt.arg("install").args(SYSTEMD);
    let fetched = apt.output().ok()?;
    if !fetched.status.success() {
        return None;
    }
    let unpacked = work.path().join("root");
    for entry in fs::read_dir(&debs).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|end| end == "deb") {
            run(Command::new("dpkg-deb").arg("-x").args([&path, &unpacked]));
        }
    }
    // What the packages' scripts would have done.
    let masters = unpacked.join("usr/share/base-passwd");
    for name in ["passwd", "group"] {
        let master = masters.join(format!("{name}.master"));
        fs::copy(master, unpacked.join("etc").join(name)).unwrap();
    }
    symlink("dash", unpacked.join("bin/sh")).ok();
    fs::write(unpacked.join("etc/machine-id"), "").unwrap();
    // A table and a name of the machine that it was made on: neither is to matter.
    let table = "UUID=00000000-0000-0000-0000-000000000000 /data ext4 defaults 0 0\n";
    fs::write(unpacked.join("etc/fstab"), table).unwrap();
    fs::write(unpacked.join("etc/hostname"), "another\n").unwrap();
    fs::set_permissions(&unpacked, fs::Permissions::from_mode(0o755)).unwrap();
    fs::rename(&unpacked, &root).unwrap();
    Some(root)
}

#[test]
fn systemd_boots_as_process_1_and_is_powered_off_by_a_stop() {
    const TEST: &str = "systemd_boots_as_process_1_and_is_powered_off_by_a_stop";
    let Some(root) = systemd_root() else {
        return skip(TEST, "apt fetches no packages here");
    };
    let stage = Stage::new();
    let image = root.to_str().unwrap().to_owned();
    let options = [
        "--init", "systemd", "--name", "box", "--memory", "512M", &image,
    ];
    let id = stage.sandbox(&options);
    let exec = |script: &str| stage.kiln(&["exec", &id, "sh", "-c", script]);
    // Up, whatever one or the other unit thinks of a machine without udev's database.
    let up = exec(
        "until systemctl is-active --quiet multi-user.target; do sleep 1; done; \
         cat /proc/1/comm; cat /proc/sys/kernel/hostname; systemctl is-active systemd-journald",
    );
    assert_eq!(up.expect_code(0).text(), "systemd\nbox\nactive\n");
    let ran = exec(LOOK).expect_code(0);
    assert_eq!(ran.text(), "systemd\n0\n-1000\nlooked\n");
    // With its own control group, and a command in one of ours.
    let groups = exec("cat /proc/self/cgroup; cat /proc/1/cgroup").expect_code(0);
    let groups = groups.text();
    assert!(
        groups.contains("kiln-session-") && groups.contains("init.scope"),
        "{groups}"
    );
    exec("systemctl daemon-reload").expect_code(0);
    stage.kiln(&["stop", "--time", "120", &id]).expect_code(0);
    let shown = stage.kiln(&["logs", &id]).expect_code(0).text();
    assert!(
        shown.contains("Powering off")
            || shown.contains("Power down")
            || shown.contains("poweroff.target"),
        "{shown}"
    );
    stage.kiln(&["rm", "--force", &id]).expect_code(0);
    stage.assert_nothing_left();
}
