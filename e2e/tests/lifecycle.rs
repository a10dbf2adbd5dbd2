//! A sandbox's life on a real guest, by the command line.

#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    reason = "a scenario fails by panicking, its helpers too"
)]

use std::process::Stdio;

use e2e::{Stage, eventually, finish};
use serde_json::Value;

fn inspect(stage: &Stage, key: &str) -> Value {
    let told = stage
        .kiln(&["inspect", "--json", key])
        .expect_code(0)
        .json();
    told[0].clone()
}

#[test]
fn b8_1_b2_2_a_sandbox_goes_through_every_verb() {
    let stage = Stage::new();
    let created = stage
        .kiln(&[
            "create",
            "--name",
            "web",
            "--label",
            "role=test",
            "--project",
            "e2e",
            "--",
            "sh",
            "-c",
            "echo $$ > /tmp/main; exec sleep 100000",
        ])
        .expect_code(0);
    let id = created.text().trim().to_owned();
    assert_eq!(inspect(&stage, "web")["state"], "created");
    let same = [&id[..6], "web"];
    stage.kiln(&["start", same[0]]).expect_code(0);
    stage.kiln(&["start", same[1]]).expect_code(0);
    let exec = |script: &str| stage.kiln(&["exec", "web", "--", "sh", "-c", script]);
    // It was started, but an exec can be quicker than its first line.
    let runs = "for _ in $(seq 100); do test -s /tmp/main && break; sleep 0.1; done
        kill -0 $(cat /tmp/main)";
    exec(runs).expect_code(0);
    exec("echo kept > /root/kept && sync").expect_code(0);

    stage.kiln(&["pause", "web"]).expect_code(0);
    let refused = stage.kiln(&["--json", "exec", "web", "--", "true"]);
    assert_eq!(refused.error()["code"], "INVALID_STATE");
    stage.kiln(&["resume", "web"]).expect_code(0);
    exec("true").expect_code(0);

    stage.kiln(&["rename", "web", "shop"]).expect_code(0);
    stage
        .kiln(&["update", "--label", "tier=1", "--unlabel", "role", "shop"])
        .expect_code(0);
    let listed = |filter: &str| {
        stage
            .kiln(&["ps", "-q", "-f", filter])
            .expect_code(0)
            .text()
    };
    assert_eq!(listed("label=tier=1").trim(), id);
    assert_eq!(listed("project=e2e").trim(), id);
    assert_eq!(listed("label=role"), "");

    stage.kiln(&["restart", "shop"]).expect_code(0);
    let kept = stage.kiln(&["exec", "shop", "--", "cat", "/root/kept"]);
    assert_eq!(kept.expect_code(0).text(), "kept\n");
    let waiting = stage
        .command(&["wait", "shop"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    stage.kiln(&["stop", "shop"]).expect_code(0);
    stage.kiln(&["stop", "shop"]).expect_code(0);
    let waited = finish(waiting).expect_code(0).text();
    assert!(waited.contains("stopped: stopped on request"), "{waited}");
    assert_eq!(listed("state=stopped").trim(), id);
    let refused = stage.kiln(&["--json", "pause", "shop"]);
    assert_eq!(refused.error()["code"], "INVALID_STATE");
    stage.kiln(&["rm", "shop"]).expect_code(0);
    stage.assert_nothing_left();
}

#[test]
fn b1_8_b2_5_a_time_out_holds_over_a_killed_daemon() {
    let stage = Stage::new();
    let sandbox = stage.sandbox(&["--timeout", "20s", "--rm"]);
    assert!(inspect(&stage, &sandbox)["expires_at_ms"].is_u64());
    e2e::signal(stage.daemon_pid(), rustix::process::Signal::KILL);
    // Whoever asks next starts another daemon, which adopts the sandbox and its time-out.
    eventually("the sandbox is gone", || stage.sandboxes().is_empty());
    stage.assert_nothing_left();
}

#[test]
fn a_sandbox_removed_under_its_run_is_no_warning() {
    let stage = Stage::new();
    let run = stage
        .command(&["run", "--name", "short", "--", "sleep", "1000"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    eventually("the sandbox runs", || {
        let running = stage.kiln(&["ps", "-q", "-f", "state=running", "-f", "name=short"]);
        !running.text().is_empty()
    });
    stage.kiln(&["rm", "-f", "short"]).expect_code(0);
    let ran = finish(run);
    assert!(!ran.stderr.contains("could not be removed"), "{ran:?}");
    stage.assert_nothing_left();
}

/// What the kernel says of a VMM: whether calls are filtered, and whether it sees but its own.
fn protections(pid: &Value) -> (bool, bool) {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let filtered = status.lines().any(|line| line == "Seccomp:\t2");
    let namespace = |of: &str| std::fs::read_link(format!("/proc/{of}/ns/pid")).unwrap();
    (filtered, namespace(&pid.to_string()) != namespace("self"))
}

#[test]
fn b1_10_protections_are_left_out_one_by_one_and_that_is_remembered_and_shown() {
    const TEST: &str = "b1_10_protections_are_left_out_one_by_one";
    if !rustix::process::geteuid().is_root() {
        e2e::skip(TEST, "without root there are no jails");
        return;
    }
    let stage = Stage::new();
    let id = stage.sandbox(&["--name", "bare", "--without", "seccomp"]);
    for round in ["as created", "at a later start"] {
        let told = inspect(&stage, &id);
        assert_eq!(protections(&told["pid"]), (false, true), "{round}");
        assert_eq!(told["without"], serde_json::json!(["seccomp"]), "{round}");
        let unprotected = told["unprotected"].as_array().unwrap();
        assert_eq!(unprotected.len(), 1, "{round}: {unprotected:?}");
        let listed = stage.kiln(&["ps"]).expect_code(0).text();
        assert!(listed.contains("1 protections missing"), "{listed}");
        stage.kiln(&["stop", &id]).expect_code(0);
        let listed = stage.kiln(&["ps", "--all"]).expect_code(0).text();
        assert!(listed.contains("stopped, without seccomp"), "{listed}");
        stage.kiln(&["start", &id]).expect_code(0);
    }
    // Another, of which nobody said anything, has all.
    stage.kiln(&["rm", "-f", &id]).expect_code(0);
    let whole = stage.sandbox(&[]);
    let told = inspect(&stage, &whole);
    assert_eq!(protections(&told["pid"]), (true, true));
    assert_eq!(told["unprotected"], serde_json::json!([]));
    stage.kiln(&["rm", "-f", &whole]).expect_code(0);
    stage.assert_nothing_left();
}

#[test]
fn a_main_command_that_fails_runs_again_also_after_the_daemon_was_killed() {
    let stage = Stage::new();
    // Each run says so, and fails when it is told to.
    let script = "echo run >> /root/runs; while ! [ -e /root/fail ]; do sleep 0.1; done
        rm /root/fail; exit 9";
    let args = ["run", "-d", "--name", "web", "--restart", "on-failure:5"];
    let main = ["--", "sh", "-c", script];
    stage.kiln(&[&args[..], &main].concat()).expect_code(0);
    let pid = inspect(&stage, "web")["pid"].clone();
    let fail = || {
        let touch = ["exec", "web", "--", "touch", "/root/fail"];
        stage.kiln(&touch).expect_code(0);
    };
    let runs = || {
        let count = ["exec", "web", "--", "sh", "-c", "wc -l < /root/runs"];
        let text = stage.kiln(&count).text();
        text.trim().parse::<usize>().unwrap_or_default()
    };
    eventually("it runs", || runs() == 1);
    fail();
    eventually("it runs again", || runs() == 2);
    let told = inspect(&stage, "web");
    assert_eq!(told["restarts"], 1);
    assert_eq!(told["main_exit"], serde_json::json!({"code": 9}));
    stage.kill_daemon();
    // The next daemon comes with this command, and hears of what failed.
    fail();
    eventually("it runs once more", || runs() == 3);
    let told = inspect(&stage, "web");
    assert_eq!(told["restarts"], 2);
    assert_eq!(told["pid"], pid, "the machine is the same");
    stage.kiln(&["stop", "web"]).expect_code(0);
    assert_eq!(inspect(&stage, "web")["state"], "stopped");
    stage.kiln(&["rm", "web"]).expect_code(0);
    stage.assert_nothing_left();
}
