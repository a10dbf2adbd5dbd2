//! Commands that take what they can, held to limits in a real guest; and watching its files.

#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    reason = "a scenario fails by panicking, its helpers too"
)]

use std::io::{BufRead, BufReader};
use std::process::Stdio;

use e2e::{Stage, finish};

/// Buffers so much in memory; 137 when that is not to be had.
const HOG: &str = "head -c 160000000 /dev/zero | tail -c 150000000 > /dev/null";

#[test]
fn b3_2_a_hog_and_a_fork_bomb_end_within_their_limits_and_the_rest_lives() {
    let stage = Stage::new();
    let sandbox = stage.sandbox(&[]);
    let exec = |options: &[&str], script: &str| {
        let args = [&["exec"], options, &[&sandbox, "--", "sh", "-c", script]].concat();
        stage.kiln(&args)
    };
    exec(&[], HOG).expect_code(0);
    exec(&["--memory", "64m"], HOG).expect_code(137);
    exec(&["--memory", "256M", "--cpus", "2"], HOG).expect_code(0);

    // Each part of it makes two, for ever.
    let bomb = "b() { b | b & }; b; sleep 1000";
    let args = [
        "exec",
        "--pids",
        "32",
        "--cpus",
        "0.5",
        "--timeout",
        "20s",
        &sandbox,
        "--",
        "sh",
        "-c",
        bomb,
    ];
    let bomb = stage
        .command(&args)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("kiln");
    // Meanwhile there is room for others, and they see no more of it than it may be.
    for _ in 0..3 {
        let processes = exec(&[], "ls -d /proc/[0-9]* | wc -l")
            .expect_code(0)
            .text();
        let processes: u32 = processes.trim().parse().expect("a number");
        assert!(processes < 32 + 100, "{processes} processes");
    }
    assert_ne!(finish(bomb).code, Some(0));
    let left = "for i in 1 2 3 4 5 6 7 8 9 10; do \
                  cat /sys/fs/cgroup/kiln-limited-*/cgroup.procs 2>/dev/null | grep -q . || exit 0; \
                  sleep 0.5; done; exit 1";
    exec(&[], left).expect_code(0);

    let own = |file: &str| format!("cat /sys/fs/cgroup$(cut -d: -f3 /proc/self/cgroup)/{file}");
    let spin = format!("timeout 3 sh -c 'while :; do :; done'; {}", own("cpu.stat"));
    let spun = exec(&["--cpus", "0.2"], &spin).expect_code(0).text();
    let throttled = spun.lines().find_map(|it| it.strip_prefix("nr_throttled "));
    let throttled: u32 = throttled.expect("a count").parse().expect("a number");
    assert!(throttled > 0, "{spun}");
    // Who asks for no limits has none, also after others did.
    let limits = format!("{} && {}", own("memory.max"), own("pids.max"));
    assert_eq!(exec(&[], &limits).expect_code(0).text(), "max\nmax\n");
    let limited = exec(&["--memory", "64m", "--pids", "7"], &limits).expect_code(0);
    assert_eq!(limited.text(), "67108864\n7\n");
    stage.kiln(&["rm", "-f", &sandbox]).expect_code(0);
    stage.assert_nothing_left();
}

#[test]
fn b3_4_changes_of_a_guests_files_are_told_as_they_come() {
    let stage = Stage::new();
    let sandbox = stage.sandbox(&[]);
    let sh = |script: &str| {
        let ran = stage.kiln(&["exec", &sandbox, "--", "sh", "-c", script]);
        ran.expect_code(0)
    };
    stage
        .kiln(&[
            "fs",
            "mkdir",
            "-p",
            "--mode",
            "700",
            &sandbox,
            "/srv/in/side",
        ])
        .expect_code(0);
    assert_eq!(sh("stat -c %a /srv/in/side").text(), "700\n");
    let mut watch = stage
        .command(&[
            "watch",
            "--recursive",
            "--verbose",
            "--format",
            "{{.Kind}} {{.Path}}",
        ])
        .args([&sandbox, "/srv/in"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("kiln");
    let mut notes = BufReader::new(watch.stderr.take().expect("stderr")).lines();
    let begun = notes.any(|line| line.is_ok_and(|it| it.contains("watching")));
    assert!(begun, "it does not begin");
    sh(
        "cd /srv/in/side && echo x > file && mv file other && printf 'a\\033[2J' > \"$(printf 'e\\033[2J')\"",
    );
    let mut changes = BufReader::new(watch.stdout.take().expect("stdout")).lines();
    let mut seen = Vec::new();
    while !seen.iter().any(|it: &String| it.contains("/e")) {
        seen.push(changes.next().expect("a change").expect("text"));
    }
    for wanted in [
        "created /srv/in/side/file",
        "modified /srv/in/side/file",
        "moved_from /srv/in/side/file",
        "moved_to /srv/in/side/other",
        "created /srv/in/side/e[2J",
    ] {
        assert!(seen.contains(&wanted.to_owned()), "{wanted}: {seen:?}");
    }
    // What is watched goes, and the watch with it.
    stage
        .kiln(&["fs", "rm", "-r", &sandbox, "/srv/in"])
        .expect_code(0);
    let rest: Vec<_> = changes.map_while(Result::ok).collect();
    assert!(rest.contains(&"removed /srv/in".to_owned()), "{rest:?}");
    finish(watch).expect_code(0);

    sh("mkdir /srv/d && cd /srv/d && echo abc > a && ln -s a b");
    let listed = stage.kiln(&[
        "fs",
        "ls",
        &sandbox,
        "/srv/d",
        "--format",
        "{{.Name}} {{.Size}}",
    ]);
    assert_eq!(listed.expect_code(0).text(), "a 4\nb 1\n");
    stage
        .kiln(&["fs", "mv", &sandbox, "/srv/d/a", "/srv/d/c"])
        .expect_code(0);
    let gone = stage.kiln(&["--json", "fs", "stat", &sandbox, "/srv/d/a"]);
    assert_eq!(gone.error()["code"], "FILE_NOT_FOUND");
    let link = stage.kiln(&[
        "fs",
        "stat",
        &sandbox,
        "/srv/d/b",
        "--format",
        "{{.Kind}} {{.Link}}",
    ]);
    assert_eq!(link.expect_code(0).text(), "symlink a\n");
    let kept = stage.kiln(&["--json", "fs", "rm", &sandbox, "/srv/d", "/srv/d/b"]);
    assert_eq!(
        kept.error()["code"],
        "FILE_FAILED",
        "a directory that holds something"
    );

    // A watch of a sandbox that ends is no success: what changed last was not seen.
    let mut watch = stage
        .command(&["watch", "--verbose", &sandbox, "/srv"])
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("kiln");
    let mut notes = BufReader::new(watch.stderr.take().expect("stderr")).lines();
    assert!(notes.any(|line| line.is_ok_and(|it| it.contains("watching"))));
    stage.kiln(&["rm", "-f", &sandbox]).expect_code(0);
    let ended = finish(watch);
    assert_eq!(ended.code, Some(125));
    stage.assert_nothing_left();
}
