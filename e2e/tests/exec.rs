//! `kiln exec`: many commands in one guest.

#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    reason = "a scenario fails by panicking, its helpers too"
)]

use std::process::Stdio;

use e2e::{Stage, finish};

#[test]
fn several_commands_run_at_once_in_one_guest() {
    let stage = Stage::new();
    let sandbox = stage.sandbox(&[]);
    let children: Vec<_> = (0..8)
        .map(|number| {
            let script = format!("sleep 1; echo {number}; exit {number}");
            stage
                .command(&["exec", &sandbox, "--", "sh", "-c", &script])
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .expect("kiln")
        })
        .collect();
    for (number, child) in (0..).zip(children) {
        assert_eq!(
            finish(child).expect_code(number).text(),
            format!("{number}\n")
        );
    }
    stage.kiln(&["rm", "-f", &sandbox]).expect_code(0);
    stage.assert_nothing_left();
}

#[test]
fn a_flood_of_output_arrives_whole() {
    let stage = Stage::new();
    let sandbox = stage.sandbox(&[]);
    let script = "head -c 33554432 /dev/zero | tr '\\0' 'x'; echo end >&2";
    let ran = stage
        .kiln(&["exec", &sandbox, "--", "sh", "-c", script])
        .expect_code(0);
    assert_eq!(ran.stdout.len(), 32 << 20);
    assert!(ran.stdout.iter().all(|&byte| byte == b'x'));
    assert_eq!(ran.stderr, "end\n");
    stage.kiln(&["rm", "-f", &sandbox]).expect_code(0);
}

#[test]
fn a_command_that_is_left_behind_is_ended_with_its_children() {
    let stage = Stage::new();
    let sandbox = stage.sandbox(&[]);
    let mut child = stage
        .command(&[
            "exec",
            &sandbox,
            "--",
            "sh",
            "-c",
            "sleep 4242 & sleep 4242 & wait",
        ])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("kiln");
    let sleepers = || {
        // The pattern is not itself an argument that it matches.
        let count = "grep -lazx '424[2]' /proc/[0-9]*/cmdline 2>/dev/null | wc -l";
        stage
            .kiln(&["exec", &sandbox, "--", "sh", "-c", count])
            .text()
            .trim()
            .to_owned()
    };
    e2e::eventually("the sleepers run", || sleepers() == "2");
    child.kill().expect("kill");
    child.wait().expect("wait");
    e2e::eventually("the sleepers are gone", || sleepers() == "0");
    stage.kiln(&["rm", "-f", &sandbox]).expect_code(0);
}
