//! Files in and out of a real guest, its figures, and commands with a limit.

#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    reason = "a scenario fails by panicking, its helpers too"
)]

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use e2e::Stage;

#[test]
fn b3_4_b8_1_files_and_trees_are_copied_both_ways() {
    let stage = Stage::new();
    let sandbox = stage.sandbox(&[]);
    let tree = stage.path("tree");
    fs::create_dir_all(tree.join("sub")).unwrap();
    fs::write(tree.join("sub/run"), "#!/bin/sh\necho ran\n").unwrap();
    fs::set_permissions(tree.join("sub/run"), fs::Permissions::from_mode(0o755)).unwrap();
    std::os::unix::fs::symlink("sub/run", tree.join("link")).unwrap();
    let sparse = fs::File::create(tree.join("sparse")).unwrap();
    sparse.set_len(100 << 20).unwrap();

    let at = |path: &str| format!("{sandbox}:{path}");
    let local = tree.to_str().unwrap();
    stage
        .kiln(&["cp", "--user", "nobody", local, &at("/srv")])
        .expect_code(0);
    let script = "cd /srv/tree && ./link && stat -c '%U %a' sub/run && stat -c %s sparse && \
                  test $(du -k sparse | cut -f1) -lt 1024";
    let ran = stage
        .kiln(&["exec", &sandbox, "--", "sh", "-c", script])
        .expect_code(0);
    assert_eq!(ran.text(), "ran\nnobody 755\n104857600\n");

    let back = stage.path("back");
    stage
        .kiln(&["cp", &at("/srv/tree"), back.to_str().unwrap()])
        .expect_code(0);
    assert_eq!(
        fs::read(back.join("link")).unwrap(),
        fs::read(tree.join("sub/run")).unwrap()
    );
    let copied = fs::metadata(back.join("sparse")).unwrap();
    assert_eq!(copied.len(), 100 << 20);
    assert!(copied.blocks() * 512 < 1 << 20);

    let one = stage.path("one");
    fs::write(&one, "one").unwrap();
    stage
        .kiln(&["upload", &sandbox, one.to_str().unwrap(), "--to", "/tmp"])
        .expect_code(0);
    let to = stage.path("got");
    stage
        .kiln(&[
            "download",
            &sandbox,
            "/tmp/one",
            "--to",
            to.to_str().unwrap(),
        ])
        .expect_code(0);
    assert_eq!(fs::read(&to).unwrap(), b"one");

    let missing = stage.kiln(&["--json", "cp", &at("/no/such"), "."]);
    assert_eq!(missing.error()["code"], "FILE_NOT_FOUND");
    let refused = stage.kiln(&["--json", "cp", one.to_str().unwrap(), &at("/no/such/place")]);
    assert_eq!(refused.error()["code"], "FILE_FAILED", "{refused:?}");
    stage.kiln(&["rm", "-f", &sandbox]).expect_code(0);
    stage.assert_nothing_left();
}

#[test]
fn b3_2_a_time_out_kills_the_whole_tree_and_figures_are_told() {
    let stage = Stage::new();
    let sandbox = stage.sandbox(&[]);
    // The child leaves its session and process group, but not its control group.
    let script = "setsid sh -c 'echo $$ > /tmp/child; exec sleep 1000' & sleep 1000";
    stage
        .kiln(&[
            "exec",
            "--timeout",
            "3s",
            &sandbox,
            "--",
            "sh",
            "-c",
            script,
        ])
        .expect_code(124);
    let gone = "p=$(cat /tmp/child); for i in 1 2 3 4 5 6 7 8 9 10; do kill -0 $p 2>/dev/null || exit 0; \
                sleep 0.2; done; exit 1";
    stage
        .kiln(&["exec", &sandbox, "--", "sh", "-c", gone])
        .expect_code(0);
    let stats = stage
        .kiln(&["stats", "--json", &sandbox])
        .expect_code(0)
        .json();
    let stats = &stats[0];
    for field in [
        "mem_total_kib",
        "disk_total_kib",
        "cpus",
        "host_mem_kib",
        "processes",
    ] {
        assert!(stats[field].as_u64().unwrap() > 0, "{field}: {stats}");
    }
    let listed = stage
        .kiln(&["sessions", "--json", &sandbox])
        .expect_code(0)
        .json();
    let main = listed
        .as_array()
        .unwrap()
        .iter()
        .find(|it| it["exit"].is_null())
        .unwrap()
        .clone();
    stage
        .kiln(&["sessions", &sandbox, "--kill", &main["id"].to_string()])
        .expect_code(0);
    stage.kiln(&["rm", "-f", &sandbox]).expect_code(0);
}
