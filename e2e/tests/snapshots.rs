//! Snapshots of real guests: what goes on from one, what is apart, and what they reach.

#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::panic,
    reason = "a scenario fails by panicking, its helpers too"
)]

mod lab;

use std::time::{SystemTime, UNIX_EPOCH};

use e2e::{Stage, eventually};
use lab::{ALLOWED, Lab, PRIVATE, ask, serve_in_guest};
use serde_json::Value;

/// Little memory, so that little is written.
const SMALL: [&str; 2] = ["-m", "192"];
/// Counts in its memory, under a word that only its memory knows.
const COUNTER: &str = "word=$(cat /proc/sys/kernel/random/uuid); i=0
    while :; do i=$((i+1)); echo $word $i > /tmp/state.new
    mv /tmp/state.new /tmp/state; sleep 0.1; done";

fn sh(stage: &Stage, key: &str, script: &str) -> String {
    let ran = stage.kiln(&["exec", key, "--", "sh", "-c", script]);
    ran.expect_code(0).text().trim_end().to_owned()
}

/// The counter's word and number.
fn counted(stage: &Stage, key: &str) -> (String, u64) {
    let mut told = String::new();
    eventually("the counter has begun", || {
        told = sh(stage, key, "cat /tmp/state 2>/dev/null || true");
        !told.is_empty()
    });
    let (word, number) = told.split_once(' ').unwrap();
    (word.to_owned(), number.parse().unwrap())
}

#[track_caller]
fn goes_on(stage: &Stage, key: &str, word: &str, from: u64) {
    eventually("it counts on", || {
        let (now, number) = counted(stage, key);
        assert_eq!(now, word, "{key}");
        number > from
    });
}

fn inspect(stage: &Stage, key: &str) -> Value {
    let told = stage.kiln(&["inspect", "--json", key]).expect_code(0);
    told.json()[0].clone()
}

fn refused(stage: &Stage, args: &[&str]) -> Value {
    let words = [&["--json"], args].concat();
    stage.kiln(&words).expect_code(125).error()["code"].clone()
}

#[test]
fn b6_1_b1_7_a_guest_goes_on_in_two_sandboxes_at_once() {
    let stage = Stage::new();
    let main = [
        "create", "--name", "source", "-m", "192", "--", "sh", "-c", COUNTER,
    ];
    stage.kiln(&main).expect_code(0);
    stage.kiln(&["start", "source"]).expect_code(0);
    let (word, then) = counted(&stage, "source");
    sh(
        &stage,
        "source",
        "echo kept > /root/kept; sync; echo fresh > /root/fresh",
    );
    let made = ["snapshot", "create", "source", "--name", "golden", "--json"];
    let made = stage.kiln(&made).expect_code(0).json();
    assert_eq!(inspect(&stage, "source")["state"], "running");
    goes_on(&stage, "source", &word, then);

    for name in ["one", "two"] {
        let create = ["create", "--snapshot", "golden", "--name", name];
        stage.kiln(&create).expect_code(0);
    }
    stage.kiln(&["start", "one", "two"]).expect_code(0);
    for name in ["one", "two"] {
        goes_on(&stage, name, &word, then);
        assert_eq!(
            sh(&stage, name, "cat /root/kept /root/fresh"),
            "kept\nfresh"
        );
        assert_eq!(sh(&stage, name, "hostname"), name);
        let clock: u64 = sh(&stage, name, "date +%s").parse().unwrap();
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap()
            .as_secs();
        assert!(
            now.abs_diff(clock) < 60,
            "{name} is at {clock}, and it is {now}"
        );
        let seen = inspect(&stage, name);
        assert_eq!(seen["snapshot"], made["id"]);
        assert_eq!(
            seen["main_session"],
            inspect(&stage, "source")["main_session"]
        );
        sh(&stage, name, &format!("echo {name} > /root/own; sync"));
    }
    let random = |name: &str| sh(&stage, name, "head -c 16 /dev/urandom | od -An -tx1");
    assert_ne!(
        random("one"),
        random("two"),
        "each has random numbers of its own"
    );
    assert_eq!(sh(&stage, "one", "cat /root/own"), "one");
    assert_eq!(sh(&stage, "two", "cat /root/own"), "two");
    assert_eq!(sh(&stage, "source", "ls /root"), "fresh\nkept");

    assert_eq!(
        refused(&stage, &["snapshot", "rm", "golden"]),
        "SNAPSHOT_IN_USE"
    );
    assert_eq!(
        refused(&stage, &["snapshot", "create", "one"]),
        "SNAPSHOT_UNSUPPORTED"
    );
    stage.kill_daemon();
    goes_on(&stage, "one", &word, then);
    assert_eq!(
        refused(&stage, &["snapshot", "rm", "golden"]),
        "SNAPSHOT_IN_USE"
    );

    // What was in its memory is gone; its disk and its command are not.
    stage.kiln(&["restart", "one"]).expect_code(0);
    eventually("it has booted and counts anew", || {
        counted(&stage, "one").0 != word
    });
    assert_eq!(sh(&stage, "one", "cat /root/own /root/kept"), "one\nkept");
    stage
        .kiln(&["snapshot", "create", "one", "--name", "second"])
        .expect_code(0);

    stage
        .kiln(&["rm", "-f", "two", "one", "source"])
        .expect_code(0);
    stage
        .kiln(&["snapshot", "rm", "golden", "second"])
        .expect_code(0);
    stage.assert_nothing_left();
}

#[test]
fn b6_1_the_source_may_stay_paused_or_stop_and_runs_begin_from_it() {
    let stage = Stage::new();
    let source = stage.sandbox(&SMALL);
    sh(&stage, &source, "echo kept > /root/kept");
    let paused = [
        "snapshot",
        "create",
        &source,
        "--no-resume",
        "--name",
        "paused",
    ];
    stage.kiln(&paused).expect_code(0);
    assert_eq!(inspect(&stage, &source)["state"], "paused");
    stage.kiln(&["resume", &source]).expect_code(0);
    let stopped = ["snapshot", "create", &source, "--stop", "--name", "stopped"];
    stage.kiln(&stopped).expect_code(0);
    assert_eq!(inspect(&stage, &source)["state"], "stopped");
    for name in ["paused", "stopped"] {
        let run = ["run", "--snapshot", name, "--", "cat", "/root/kept"];
        assert_eq!(stage.kiln(&run).expect_code(0).text(), "kept\n", "{name}");
    }
    let listed = stage
        .kiln(&["snapshot", "ls", "--json"])
        .expect_code(0)
        .json();
    assert_eq!(listed.as_array().unwrap().len(), 2);
    assert_eq!(
        refused(&stage, &["snapshot", "create", &source]),
        "INVALID_STATE"
    );
    let unknown = ["create", "--snapshot", "nothing"];
    assert_eq!(refused(&stage, &unknown), "SNAPSHOT_NOT_FOUND");

    // A file that somebody has changed since is not restored.
    let id = stage
        .kiln(&["snapshot", "inspect", "paused", "--json"])
        .json()["id"]
        .clone();
    let dir = stage.data().join("snapshots").join(id.as_str().unwrap());
    let memory = dir.join("memory");
    let mut content = std::fs::read(&memory).unwrap();
    content[20 << 20] ^= 1;
    std::fs::remove_file(&memory).unwrap();
    std::fs::write(&memory, content).unwrap();
    let run = ["run", "--snapshot", "paused", "--", "true"];
    assert_eq!(refused(&stage, &run), "SNAPSHOT_DAMAGED");

    stage
        .kiln(&["snapshot", "rm", "paused", "stopped"])
        .expect_code(0);
    stage.kiln(&["rm", &source]).expect_code(0);
    stage.assert_nothing_left();
}

#[test]
fn b1_7_each_has_the_same_address_in_a_network_of_its_own() {
    let Some(lab) = Lab::new("b1_7_each_has_the_same_address_in_a_network_of_its_own") else {
        return;
    };
    let stage = lab.stage();
    let options = [
        "--network=default",
        "--publish=8080:80",
        "--allow-cidr",
        ALLOWED,
    ];
    let source = lab::sandbox(&stage, &options);
    serve_in_guest(&stage, &source);
    let answers = |at: &str| {
        eventually("the published port answers", || {
            lab.fetch(&lab.world, at) == "from the guest"
        });
    };
    answers("203.0.113.2:8080");
    stage
        .kiln(&["snapshot", "create", &source, "--name", "golden"])
        .expect_code(0);

    // The policy comes along; ports of the host are not taken twice, and others can be had.
    let one = [
        "create",
        "--snapshot",
        "golden",
        "--name",
        "one",
        "--network=default",
    ];
    stage.kiln(&one).expect_code(0);
    let two = [
        &one[..3],
        &["--name", "two", "--network=default", "-p", "8081:80"],
    ]
    .concat();
    stage.kiln(&two).expect_code(0);
    stage.kiln(&["start", "one", "two"]).expect_code(0);
    let inspected = |name: &str| {
        let told = stage
            .kiln(&["network", "inspect", name, "--json"])
            .expect_code(0);
        told.json()
    };
    let addresses = |name: &str| sh(&stage, name, "ip -o -4 addr show eth0 | cut -d' ' -f7");
    assert_eq!(addresses("one"), addresses("two"));
    assert_ne!(inspected("one")["interface"], inspected("two")["interface"]);
    let (allowed, private) = (format!("tcp:{ALLOWED}:80"), format!("tcp:{PRIVATE}:80"));
    assert_eq!(ask(&stage, "one", &[&allowed]), "answered");
    assert_ne!(ask(&stage, "one", &[&private]), "answered");
    // Its server was running when the snapshot was made.
    answers("203.0.113.2:8081");
    answers("203.0.113.2:8080");
    let deny = ["network", "update", "one", "--network-policy", "deny-all"];
    stage.kiln(&deny).expect_code(0);
    assert_ne!(ask(&stage, "one", &[&allowed]), "answered");
    assert_eq!(ask(&stage, &source, &[&allowed]), "answered");
    let none = ["create", "--snapshot", "golden", "--network", "none"];
    assert_eq!(refused(&stage, &none), "INVALID_SPEC");

    // An address in a network that is shared cannot be had twice.
    stage.kiln(&["network", "create", "lan"]).expect_code(0);
    let member = lab::sandbox(&stage, &["--network=lan"]);
    assert_eq!(
        refused(&stage, &["snapshot", "create", &member]),
        "SNAPSHOT_UNSUPPORTED"
    );
    stage.kiln(&["rm", "-f", &member]).expect_code(0);
    stage.kiln(&["network", "rm", "lan"]).expect_code(0);

    stage
        .kiln(&["rm", "-f", "one", "two", &source])
        .expect_code(0);
    stage.kiln(&["snapshot", "rm", "golden"]).expect_code(0);
    lab.assert_host_is_clean(&stage);
}
