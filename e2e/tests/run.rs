//! `kiln run`: the main job.

#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    reason = "a scenario fails by panicking, its helpers too"
)]

use std::io::{Read, Write};
use std::process::Stdio;

use e2e::{Stage, eventually, finish, signal};
use rustix::process::Signal;

#[test]
fn a_guest_runs_a_command_and_nothing_is_left() {
    let stage = Stage::new();
    let ran = stage.kiln(&[
        "run",
        "--",
        "sh",
        "-c",
        "uname -s; echo $((6 * 7)); echo no >&2",
    ]);
    let ran = ran.expect_code(0);
    assert_eq!(ran.text(), "Linux\n42\n");
    assert!(ran.stderr.lines().any(|line| line == "no"), "{ran:?}");
    stage.assert_nothing_left();
}

#[test]
fn exit_codes_are_the_guests_own() {
    let stage = Stage::new();
    let sandbox = stage.sandbox(&[]);
    let exec = |args: &[&str]| stage.kiln(&[&["exec", &sandbox, "--"], args].concat());
    exec(&["true"]).expect_code(0);
    exec(&["sh", "-c", "exit 42"]).expect_code(42);
    exec(&["/no/such/program"]).expect_code(127);
    exec(&["no-such-program"]).expect_code(127);
    exec(&["/etc/passwd"]).expect_code(126);
    exec(&["sh", "-c", "kill -TERM $$"]).expect_code(128 + 15);
    exec(&["sh", "-c", "kill -KILL $$"]).expect_code(128 + 9);
    stage
        .kiln(&["exec", "nosuchsandbox", "--", "true"])
        .expect_code(125);
    stage.kiln(&["rm", "--force", &sandbox]).expect_code(0);
    stage.assert_nothing_left();
}

#[test]
fn run_itself_ends_like_its_command() {
    let stage = Stage::new();
    stage
        .kiln(&["run", "--tmpfs", "--", "sh", "-c", "exit 3"])
        .expect_code(3);
    let missing = stage
        .kiln(&["run", "--json", "--", "no-such-program"])
        .expect_code(127);
    assert_eq!(missing.error()["code"], "COMMAND_NOT_FOUND");
    stage.assert_nothing_left();
}

#[test]
fn what_is_asked_reaches_the_command() {
    let stage = Stage::new();
    let ran = stage
        .kiln(&[
            "run", "--name", "web", "--cpus", "2", "--memory", "384", "-e", "GREETING=hello \"world\"",
            "-w", "/var/tmp", "-u", "nobody", "--", "sh", "-c",
            "echo \"$GREETING\"; pwd; id -un; nproc; hostname; grep -c . /proc/meminfo >/dev/null && \
             awk '/MemTotal/ {print ($2 > 300000 && $2 < 393216)}' /proc/meminfo; touch /tmp/ok && echo written",
        ])
        .expect_code(0);
    assert_eq!(
        ran.text(),
        "hello \"world\"\n/var/tmp\nnobody\n2\nweb\n1\nwritten\n"
    );
    stage.assert_nothing_left();
}

#[test]
fn input_and_output_are_bytes() {
    let stage = Stage::new();
    let sandbox = stage.sandbox(&["--tmpfs"]);
    let mut child = stage
        .command(&["exec", "-i", &sandbox, "--", "cat"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("kiln");
    let sent: Vec<u8> = (0..8u32 << 20)
        .map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8)
        .collect();
    let mut input = child.stdin.take().expect("stdin");
    let writer = std::thread::spawn({
        let sent = sent.clone();
        move || input.write_all(&sent)
    });
    let ran = finish(child).expect_code(0);
    writer.join().expect("writer").expect("written");
    assert!(
        ran.stdout == sent,
        "{} bytes came back of {}",
        ran.stdout.len(),
        sent.len()
    );
    stage.kiln(&["rm", "--force", &sandbox]).expect_code(0);
}

#[test]
fn the_first_interrupt_is_the_guests_and_the_second_ends_it() {
    let stage = Stage::new();
    let script = "trap 'echo caught' INT; echo ready; while :; do sleep 1; done";
    let mut child = stage
        .command(&["run", "--", "sh", "-c", script])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("kiln");
    let mut output = child.stdout.take().expect("stdout");
    read_until(&mut output, "ready\n");
    signal(child.id(), Signal::INT);
    read_until(&mut output, "caught\n");
    signal(child.id(), Signal::INT);
    finish(child).expect_code(130);
    stage.assert_nothing_left();
}

#[test]
fn a_client_that_is_killed_leaves_no_sandbox() {
    let stage = Stage::new();
    let mut child = stage
        .command(&["run", "--", "sh", "-c", "echo ready; sleep 1000"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("kiln");
    read_until(child.stdout.as_mut().expect("stdout"), "ready\n");
    assert_eq!(stage.sandboxes().len(), 1);
    child.kill().expect("kill");
    child.wait().expect("wait");
    eventually("the sandbox is removed", || stage.sandboxes().is_empty());
    stage.assert_nothing_left();
}

#[test]
fn writes_stay_with_the_sandbox_and_go_with_it() {
    let stage = Stage::new();
    let sandbox = stage.sandbox(&["--name", "keeper"]);
    let exec = |script: &str| stage.kiln(&["exec", "keeper", "--", "sh", "-c", script]);
    exec("echo kept > /root/file && rm /etc/motd 2>/dev/null; sync").expect_code(0);
    assert!(
        stage
            .data()
            .join("sandboxes")
            .join(&sandbox)
            .join("scratch.ext4")
            .exists()
    );
    let other = stage
        .kiln(&["run", "--", "sh", "-c", "ls /root"])
        .expect_code(0);
    assert_eq!(other.text(), "", "another sandbox sees the write");
    stage.kiln(&["rm", &sandbox]).expect_code(125);
    stage.kiln(&["stop", "keeper"]).expect_code(0);
    stage.kiln(&["stop", "keeper"]).expect_code(0);
    stage.kiln(&["rm", "keeper"]).expect_code(0);
    stage.assert_nothing_left();
}

#[test]
fn images_of_every_first_form_boot() {
    let stage = Stage::new();
    let tree = stage.path("tree");
    busybox_tree(&tree);
    let tar = stage.path("tree.tar.gz");
    shell(&format!(
        "tar -C {} -czf {} .",
        tree.display(),
        tar.display()
    ));
    let ext4 = stage.path("tree.ext4");
    shell(&format!(
        "mke2fs -q -t ext4 -d {} {} 16M",
        tree.display(),
        ext4.display()
    ));
    let squashfs = stage.path("tree.squashfs");
    shell(&format!(
        "mksquashfs {} {} -quiet -no-progress",
        tree.display(),
        squashfs.display()
    ));
    for image in [tree, tar, ext4, squashfs] {
        let ran = stage.kiln(&[
            "run",
            image.to_str().expect("path"),
            "--",
            "cat",
            "/etc/marker",
        ]);
        assert_eq!(ran.expect_code(0).text(), "a busybox tree\n", "{image:?}");
    }
    stage.assert_nothing_left();
}

#[test]
fn the_console_is_kept() {
    let stage = Stage::new();
    let sandbox = stage.sandbox(&[]);
    stage
        .kiln(&[
            "exec",
            &sandbox,
            "--",
            "sh",
            "-c",
            "echo to-the-console > /dev/console",
        ])
        .expect_code(0);
    eventually("the console shows it", || {
        stage
            .kiln(&["logs", &sandbox])
            .expect_code(0)
            .text()
            .contains("to-the-console")
    });
    stage.kiln(&["rm", "-f", &sandbox]).expect_code(0);
    stage.assert_nothing_left();
}

fn busybox_tree(tree: &std::path::Path) {
    for dir in ["bin", "etc", "dev", "proc", "sys", "tmp", "run"] {
        std::fs::create_dir_all(tree.join(dir)).expect("dir");
    }
    std::fs::copy("/bin/busybox", tree.join("bin/busybox")).expect("busybox-static is installed");
    for applet in ["sh", "cat", "sleep", "ls", "mount"] {
        std::os::unix::fs::symlink("busybox", tree.join("bin").join(applet)).expect("link");
    }
    std::fs::write(tree.join("etc/passwd"), "root:x:0:0:root:/:/bin/sh\n").expect("passwd");
    std::fs::write(tree.join("etc/marker"), "a busybox tree\n").expect("marker");
}

fn shell(script: &str) {
    let status = std::process::Command::new("sh")
        .args(["-ec", script])
        .status()
        .expect("sh");
    assert!(status.success(), "{script}");
}

fn read_until(from: &mut impl Read, wanted: &str) {
    let mut seen = Vec::new();
    let mut byte = [0u8];
    while !String::from_utf8_lossy(&seen).ends_with(wanted) {
        assert_eq!(
            from.read(&mut byte).expect("read"),
            1,
            "ended after {seen:?}"
        );
        seen.push(byte[0]);
    }
}

#[test]
fn the_vmm_is_confined_when_root_asks() {
    if !rustix::process::geteuid().is_root() {
        return e2e::skip(
            "the_vmm_is_confined_when_root_asks",
            "only root can give a VMM a user and limits of its own",
        );
    }
    let stage = Stage::new();
    let sandboxes = [stage.sandbox(&[]), stage.sandbox(&[])];
    let mut uids = Vec::new();
    for sandbox in stage.sandboxes() {
        assert_eq!(sandbox["unprotected"], serde_json::json!([]), "{sandbox}");
        let status = std::fs::read_to_string(format!("/proc/{}/status", sandbox["pid"])).unwrap();
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            line.map(|line| {
                line.split_whitespace()
                    .next()
                    .unwrap_or_default()
                    .to_owned()
            })
        };
        assert_eq!(field("CapEff:").as_deref(), Some("0000000000000000"));
        assert_eq!(field("NoNewPrivs:").as_deref(), Some("1"));
        assert_eq!(field("Seccomp:").as_deref(), Some("2"));
        uids.push(field("Uid:").unwrap());
    }
    assert!(!uids.contains(&"0".to_owned()), "{uids:?}");
    assert_ne!(uids[0], uids[1], "two sandboxes share a user");
    for sandbox in &sandboxes {
        stage.kiln(&["rm", "-f", sandbox]).expect_code(0);
    }
    stage.assert_nothing_left();
    for hierarchy in ["/sys/fs/cgroup/kiln", "/sys/fs/cgroup/pids/kiln"] {
        let left = e2e::names_in(hierarchy.as_ref());
        let ours: Vec<_> = left
            .iter()
            .filter(|name| sandboxes.contains(name))
            .collect();
        assert!(ours.is_empty(), "control groups are left: {ours:?}");
    }
}
