//! The daemon's coming and going, as its clients see it.

#![allow(missing_docs)]
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "helpers of tests fail by panic"
)]

mod support;

use std::{
    fs::{self, Permissions},
    os::unix::{fs::PermissionsExt, process::CommandExt},
    path::Path,
    process::Stdio,
};

use rustix::process::{Pid, Signal, geteuid, kill_process};
use serde_json::{Value, json};
use support::{Kiln, error};

fn kill(pid: i32) {
    kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
}

#[test]
fn ten_at_once_start_one_daemon() {
    let kiln = Kiln::new();
    let children: Vec<_> = (0..10)
        .map(|_| {
            let mut command = kiln.command(&["ps", "--json"]);
            command
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap()
        })
        .collect();
    for child in children {
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{output:?}");
        assert_eq!(
            serde_json::from_slice::<Value>(&output.stdout).unwrap(),
            json!([])
        );
    }
    assert_eq!(kiln.log().matches("listening").count(), 1, "{}", kiln.log());
}

#[test]
fn the_daemon_is_nobodys_child_and_listens_to_its_user_only() {
    let kiln = Kiln::new();
    kiln.ok(&["daemon", "--background"]);
    let pid = kiln.daemon_pid().unwrap();
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let session = stat
        .rsplit(')')
        .next()
        .unwrap()
        .split_whitespace()
        .nth(3)
        .unwrap();
    assert_eq!(session, pid.to_string(), "it leads a session of its own");
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&kiln.socket()), 0o600);
    assert_eq!(mode(&kiln.runtime_dir()), 0o700);
    assert_eq!(mode(&kiln.data_dir()), 0o700);
}

#[test]
fn stop_waits_until_it_has_ended_and_leaves_no_socket() {
    let kiln = Kiln::new();
    kiln.ok(&["ps"]);
    let pid = kiln.daemon_pid().unwrap();
    kiln.ok(&["daemon", "--stop"]);
    assert!(!kiln.socket().exists());
    // The next has the place at once, also while the last thread of the other still ends.
    kiln.ok(&["ps"]);
    assert_ne!(kiln.daemon_pid().unwrap(), pid);
    kiln.ok(&["daemon", "--stop"]);
    kiln.ok(&["daemon", "--stop"]);
}

#[test]
fn a_killed_daemons_socket_is_replaced() {
    let kiln = Kiln::new();
    kiln.ok(&["ps"]);
    let pid = kiln.daemon_pid().unwrap();
    kill(pid);
    kiln.wait_for_daemons_end();
    assert!(kiln.socket().exists(), "nobody could take it away");
    assert!(kiln.ok(&["version"]).contains("not running"));
    kiln.ok(&["ps"]);
    assert_ne!(kiln.daemon_pid().unwrap(), pid);
}

#[test]
fn a_second_daemon_is_refused_and_told_of_the_first() {
    let kiln = Kiln::new();
    kiln.ok(&["ps"]);
    let pid = kiln.daemon_pid().unwrap();
    let same_place = error(&kiln.run(&["--json", "daemon"]));
    assert_eq!(same_place["code"], "DAEMON_RUNNING");
    assert!(
        same_place["message"]
            .as_str()
            .unwrap()
            .contains(&pid.to_string()),
        "{same_place}"
    );
    let other = kiln.runtime_dir().join("other.sock");
    let same_data = error(&kiln.run(&["--json", "daemon", "--socket", other.to_str().unwrap()]));
    assert_eq!(same_data["code"], "DATA_DIR_IN_USE");
    assert!(
        same_data["message"]
            .as_str()
            .unwrap()
            .contains(&pid.to_string()),
        "{same_data}"
    );
    assert_eq!(kiln.daemon_pid(), Some(pid), "the first is as it was");
    assert!(!other.exists());
    // Started once more in the background: that is what there is already.
    kiln.ok(&["daemon", "--background"]);
    assert_eq!(kiln.daemon_pid(), Some(pid));
}

#[test]
fn it_ends_by_itself_when_nobody_needs_it() {
    let kiln = Kiln::new();
    let output = kiln
        .command(&["ps"])
        .env("KILN_IDLE_EXIT", "1")
        .output()
        .unwrap();
    assert!(output.status.success());
    kiln.wait_for_daemons_end();
    assert!(!kiln.socket().exists());
    assert!(kiln.log().contains("idle"), "{}", kiln.log());
}

#[test]
fn sigterm_ends_it_in_order() {
    let kiln = Kiln::new();
    kiln.ok(&["ps"]);
    let pid = Pid::from_raw(kiln.daemon_pid().unwrap()).unwrap();
    kill_process(pid, Signal::TERM).unwrap();
    kiln.wait_for_daemons_end();
    assert!(!kiln.socket().exists());
    assert!(kiln.log().contains("SIGTERM"), "{}", kiln.log());
}

#[test]
fn why_it_does_not_come_up_is_told_at_once() {
    let kiln = Kiln::new();
    fs::create_dir(kiln.runtime_dir()).unwrap();
    fs::set_permissions(kiln.runtime_dir(), Permissions::from_mode(0o777)).unwrap();
    let unsafe_dir = error(&kiln.run(&["--json", "ps"]));
    assert_eq!(unsafe_dir["code"], "SOCKET_FAILED", "{unsafe_dir}");
    assert!(unsafe_dir["hint"].as_str().unwrap().contains("--socket"));

    let kiln = Kiln::new();
    fs::write(kiln.data_dir(), "not a directory").unwrap();
    assert_eq!(
        error(&kiln.run(&["--json", "ps"]))["code"],
        "DAEMON_START_FAILED"
    );

    let kiln = Kiln::new();
    fs::create_dir(kiln.data_dir()).unwrap();
    fs::create_dir(kiln.data_dir().join("kiln.db")).unwrap();
    let broken = error(&kiln.run(&["--json", "ps"]));
    assert_eq!(broken["code"], "HOST_ERROR", "{broken}");
    assert!(!kiln.socket().exists());

    // Longer than the kernel's address of a Unix socket.
    let kiln = Kiln::new();
    let long = kiln.runtime_dir().join("x".repeat(120));
    let too_long = error(&kiln.run(&["--json", "--socket", long.to_str().unwrap(), "ps"]));
    assert_eq!(too_long["code"], "DAEMON_UNREACHABLE", "{too_long}");
    assert!(too_long["hint"].as_str().unwrap().contains("--socket"));
}

#[test]
fn another_version_is_told_so_and_can_end_it() {
    let kiln = Kiln::new();
    kiln.ok(&["ps"]);
    let ask = |line: &str| {
        kiln.raw(&format!(
            "{line} HTTP/1.1\r\nhost: kiln\r\nx-kiln-version: 9.9.9\r\nconnection: close\r\n\r\n"
        ))
    };
    let refused = ask("GET /v1/sandboxes");
    assert!(refused.starts_with("HTTP/1.1 409 "), "{refused}");
    assert!(refused.contains("VERSION_MISMATCH") && refused.contains("kiln daemon --stop"));
    assert!(refused.contains("x-kiln-version: 0."));
    assert!(ask("GET /v1/version").starts_with("HTTP/1.1 200 "));
    assert!(ask("POST /v1/shutdown").starts_with("HTTP/1.1 202 "));
    kiln.wait_for_daemons_end();
}

/// The file system keeps other users out already; should it not, the daemon still does.
#[test]
fn another_user_is_refused() {
    if !geteuid().is_root() {
        eprintln!("SKIPPED: another_user_is_refused: only root can become another user");
        return;
    }
    let kiln = Kiln::new();
    kiln.ok(&["ps"]);
    let open = |path: &Path| fs::set_permissions(path, Permissions::from_mode(0o777)).unwrap();
    open(&kiln.socket());
    open(&kiln.runtime_dir());
    let root = kiln.runtime_dir().parent().unwrap().to_owned();
    open(&root);
    // Where the other user may execute it; the build directory may be root's alone.
    let program = root.join("kiln");
    // Not copied by this process: another test's fork could hold the copy open, and so busy.
    let copied = std::process::Command::new("cp")
        .arg(env!("CARGO_BIN_EXE_kiln"))
        .arg(&program)
        .status();
    assert!(copied.unwrap().success());
    let version = |uid: u32| {
        let mut command = std::process::Command::new(&program);
        command
            .args(["version", "--json"])
            .env_clear()
            .env("HOME", "/")
            .current_dir("/");
        command.env("KILN_SOCKET", kiln.socket()).uid(uid).gid(uid);
        command.output().unwrap()
    };
    assert_eq!(error(&version(65534))["code"], "FORBIDDEN");
    let own = version(0);
    assert!(
        own.status.success(),
        "the same question by the same way: {own:?}"
    );
}

#[test]
fn a_daemon_that_ends_tells_who_came_too_late() {
    let kiln = Kiln::new();
    // One after the other as fast as it goes: each finds one, or starts the next.
    for _ in 0..5 {
        kiln.ok(&["ps"]);
        let pid = kiln.daemon_pid().unwrap();
        kill_process(Pid::from_raw(pid).unwrap(), Signal::TERM).unwrap();
        kiln.ok(&["ps"]);
        kiln.ok(&["daemon", "--stop"]);
        assert!(!kiln.socket().exists());
    }
}
