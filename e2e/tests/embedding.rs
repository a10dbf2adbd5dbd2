//! The examples of embedders, on real guests.

#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    reason = "a scenario fails by panicking, its helpers too"
)]

use std::path::PathBuf;
use std::process::{Command, Stdio};

use e2e::{Stage, finish};

/// Builds an example where this test was built.
fn example(name: &str) -> PathBuf {
    let built = Command::new(env!("CARGO"))
        .args(["build", "--quiet", "--package", "kiln", "--example", name])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .status()
        .unwrap();
    assert!(built.success());
    let test = std::env::current_exe().unwrap();
    test.ancestors().nth(2).unwrap().join("examples").join(name)
}

fn run(name: &str) -> String {
    let program = example(name);
    let stage = Stage::new();
    let child = Command::new(program)
        .args([stage.data(), &stage.runtime()])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let ran = finish(child).expect_code(0);
    stage.assert_nothing_left();
    ran.text()
}

#[test]
fn b7_2_the_quick_start_runs() {
    let told = run("quick_start");
    for line in ["is running", "is paused", "its guest has 2", "is stopped"] {
        assert!(told.contains(line), "{told}");
    }
}

#[test]
fn b7_2_create_exec_stop_runs_with_a_hook() {
    let told = run("create_exec_stop");
    for line in [
        "hook: before_create created",
        "hook: after_start running",
        "from Linux",
        "exit code 0",
        "said has 11 bytes",
        "hook: after_stop stopped",
        "sandboxes left: 0",
    ] {
        assert!(told.contains(line), "{told}");
    }
}
