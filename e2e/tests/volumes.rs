//! Volumes: what a guest writes to one outlives its sandbox, and nobody writes beside it.

use e2e::Stage;
use serde_json::json;

#[test]
fn a_volume_outlives_its_sandboxes() {
    let stage = Stage::new();
    let volume = |words: &[&str]| stage.kiln(&[&["volume"], words, &["--json"]].concat());
    let size = |ran: e2e::Ran| ran.json()["size_bytes"].clone();
    let created = volume(&["create", "data", "--size", "64M"]).expect_code(0);
    assert_eq!(size(created), 64 << 20);
    let taken = volume(&["create", "data"]).expect_code(125);
    assert_eq!(taken.error()["code"], "NAME_TAKEN");
    let run = |mount: &str, script: &str| {
        let args = [
            "run", "--json", "--tmpfs", "--volume", mount, "--", "sh", "-c", script,
        ];
        stage.kiln(&args)
    };

    // Written by a sandbox that is removed as soon as its command ends.
    run("data:/srv/data", "echo kept >/srv/data/file").expect_code(0);
    let missing = run("nosuch:/data", "true").expect_code(125);
    assert_eq!(missing.error()["code"], "VOLUME_NOT_FOUND");

    // Larger, and in two places at once as long as both only read.
    assert_eq!(
        size(volume(&["resize", "data", "128M"]).expect_code(0)),
        128 << 20
    );
    let reader = stage.sandbox(&["--tmpfs", "--volume", "data:/data:ro"]);
    let script = "cat /data/file; touch /data/x || echo refused; \
                  set -- $(df -m /data | tail -n 1); [ \"$2\" -gt 100 ] && echo grown";
    let ran = run("data:/data:ro", script).expect_code(0);
    assert_eq!(ran.text(), "kept\nrefused\ngrown\n");
    for refused in [
        run("data:/data", "true"),
        volume(&["rm", "data"]),
        volume(&["resize", "data", "256M"]),
    ] {
        let refused = refused.expect_code(125);
        assert_eq!(refused.error()["code"], "VOLUME_IN_USE", "{refused:?}");
        let message = refused.error()["message"].to_string();
        assert!(message.contains(&reader), "{message}");
    }
    volume(&["clone", "data", "copy"]).expect_code(0);
    stage.kiln(&["rm", "--force", &reader]).expect_code(0);

    // What happens to one does not happen to the other.
    run("copy:/data", "rm /data/file").expect_code(0);
    let ran = run("data:/data", "cat /data/file").expect_code(0);
    assert_eq!(ran.text(), "kept\n");
    volume(&["rm", "data", "copy"]).expect_code(0);
    assert_eq!(volume(&["ls"]).expect_code(0).json(), json!([]));
    stage.assert_nothing_left();
}
