//! What a host keeps: base images by preset, images up to a quota.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a scenario fails by panicking, its helpers too"
)]

use std::fs;
use std::path::Path;

use e2e::{Stage, eventually};
use serde_json::{Value, json};

/// Kernel and root filesystem, and the manifest that describes them.
fn manifest(dir: &Path, id: &str) -> String {
    fs::write(dir.join("vmlinux"), format!("kernel of {id}")).unwrap();
    fs::write(dir.join("rootfs.squashfs"), format!("rootfs of {id}")).unwrap();
    let path = dir.join(format!("{id}.json"));
    let text = json!({
        "schemaVersion": 1,
        "bundleId": id,
        "arch": std::env::consts::ARCH,
        "firecrackerVersion": "v1.16.1",
        "rootfsType": "squashfs",
        "kernel": {"path": "vmlinux"},
        "rootfs": {"path": "rootfs.squashfs"},
    });
    fs::write(&path, text.to_string()).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn a3_7_base_images_are_pulled_listed_verified_and_evicted() {
    let stage = Stage::bare();
    let bundle = |words: &[&str]| stage.kiln(&[&["--json", "image", "bundle"], words].concat());
    let pull = |id: &str| {
        let manifest = manifest(stage.data(), id);
        bundle(&["pull", "hosted", "--manifest", &manifest])
    };
    assert_eq!(bundle(&["ls"]).expect_code(0).json(), json!([]));
    let first = pull("first").expect_code(0).json();
    assert_eq!(first["was_cached"], false);
    let image = &first["image"];
    assert_eq!(
        (&image["id"], &image["train"]),
        (&json!("first"), &json!("v1.16"))
    );
    let args = image["boot_args"].as_str().unwrap();
    assert!(args.ends_with("pci=off ro rootfstype=squashfs"), "{args}");
    let again = pull("first").expect_code(0).json();
    assert_eq!(again["was_cached"], true);
    // Damaged in its place, it is brought again.
    let rootfs = image["rootfs"]["path"].as_str().unwrap();
    fs::write(rootfs, "damage").unwrap();
    assert_eq!(pull("first").expect_code(0).json()["was_cached"], false);
    assert_eq!(fs::read_to_string(rootfs).unwrap(), "rootfs of first");
    // Two are kept.
    pull("second").expect_code(0);
    let third = pull("third").expect_code(0);
    assert!(third.stderr.contains("max_stored_base_images"), "{third:?}");
    assert_eq!(third.json()["evicted"], json!(["first"]));
    let listed = bundle(&["ls"]).expect_code(0).json();
    let ids: Vec<&Value> = listed
        .as_array()
        .unwrap()
        .iter()
        .map(|it| &it["id"])
        .collect();
    assert_eq!(ids, ["third", "second"]);

    let none = bundle(&["pull", "hosted"]).expect_code(125).error();
    assert_eq!(none["code"], "BASE_IMAGE_RESOLVE_FAILED");
    let gone = stage.kiln(&["--json", "run", "--bundle", "first", "true"]);
    let gone = gone.expect_code(125).error();
    assert_eq!(gone["code"], "BASE_IMAGE_RESOLVE_FAILED");
    let both = stage.kiln(&["--json", "run", "--bundle", "lts", "--kernel", "/k", "true"]);
    assert_eq!(both.expect_code(125).error()["code"], "USAGE");
    stage.assert_nothing_left();
}

#[test]
fn a3_1_the_preset_debian_boots_from_the_hosts_own_packages() {
    let stage = Stage::new();
    let ran = stage.kiln(&[
        "run",
        "--bundle",
        "debian",
        "--tmpfs",
        "cat",
        "/etc/debian_version",
    ]);
    let ran = ran.expect_code(0);
    assert!(
        ran.text().starts_with(|c: char| c.is_ascii_digit()),
        "{ran:?}"
    );
    let listed = stage
        .kiln(&["--json", "image", "bundle", "ls"])
        .expect_code(0);
    assert_eq!(listed.json()[0]["preset"], "debian");
    stage.assert_nothing_left();
}

#[test]
fn b1_2_the_disk_is_as_large_as_asked_and_all_of_it_the_guests() {
    let stage = Stage::new();
    let script = "set -- $(df -m / | tail -n 1); echo $2 $4; \
                  dd if=/dev/zero of=/big bs=1M count=200 2>/dev/null && echo written";
    let ran = stage.kiln(&["run", "--disk", "300M", "--", "sh", "-c", script]);
    let ran = ran.expect_code(0).text();
    let numbers: Vec<u64> = ran
        .split_whitespace()
        .filter_map(|it| it.parse().ok())
        .collect();
    let [size, free] = numbers[..] else {
        panic!("{ran}")
    };
    assert!((250..=300).contains(&size), "{ran}");
    // Nothing is kept for root, and next to nothing is used.
    assert!(size - free < 10, "{ran}");
    assert!(ran.ends_with("written\n"), "{ran}");
    stage.assert_nothing_left();
}

#[test]
fn images_go_when_they_exceed_the_quota() {
    let stage = Stage::bare();
    fs::write(
        stage.data().join("images.json"),
        r#"{"keep":{"max_bytes":1}}"#,
    )
    .unwrap();
    let import = |name: &str| {
        let root = stage.path(name);
        fs::create_dir_all(&root).unwrap();
        fs::write(root.join("file"), name).unwrap();
        let reference = format!("example.com/{name}:1");
        let words = ["image", "import", root.to_str().unwrap(), &reference];
        stage.kiln(&words).expect_code(0);
    };
    let names = || {
        let listed = stage.kiln(&["--json", "image", "ls"]).expect_code(0).json();
        let images = listed.as_array().unwrap().clone();
        images
            .iter()
            .map(|it| it["names"][0].as_str().unwrap().to_owned())
            .collect::<Vec<_>>()
    };
    import("first");
    assert_eq!(
        names(),
        ["example.com/first:1"],
        "what was just taken in stays"
    );
    import("second");
    eventually("the older image goes", || {
        names() == ["example.com/second:1"]
    });
    stage.assert_nothing_left();
}
