//! A tree with one of everything goes through every form of source and comes out the same.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stderr,
    reason = "tests"
)]

mod support;

use std::path::Path;
use std::process::Command;

use kiln_image::{Image, ImageSource, ImageStore, Limits, Silent};
use support::{Mount, assert_same, fsck, is_root, make_nasty_tree, run, scan, skip};

fn import(store: &ImageStore, path: &Path) -> Image {
    let source = ImageSource::detect(path).unwrap();
    store.import(source, &Limits::default(), &Silent).unwrap()
}

fn pack(tree: &Path, archive: &Path, options: &[&str]) {
    let mut tar = Command::new("tar");
    tar.args(options)
        .arg("-C")
        .arg(tree)
        .arg("-cf")
        .arg(archive)
        .arg(".");
    run(&mut tar);
}

const EVERYTHING: [&str; 3] = ["--acls", "--xattrs", "--xattrs-include=*"];

#[test]
fn every_source_gives_the_same_tree() {
    if !is_root() {
        return skip(
            "every_source_gives_the_same_tree",
            "needs root for owners and devices",
        );
    }
    let temp = tempfile::tempdir().unwrap();
    let tree = temp.path().join("tree");
    std::fs::create_dir(&tree).unwrap();
    make_nasty_tree(&tree);
    let expected = scan(&tree);
    let store = ImageStore::open(temp.path().join("store")).unwrap();
    let check = |image: &Image| {
        fsck(&image.path);
        let mount = Mount::new(&image.path, "ro");
        assert_same(&expected, &scan(mount.path()));
    };
    check(&import(&store, &tree));
    for sparse in [None, Some("0.0"), Some("0.1"), Some("1.0")] {
        let archive = temp.path().join("tree.tar");
        let version = sparse.map(|version| format!("--sparse-version={version}"));
        let mut options = vec!["--format=posix"];
        options.extend(EVERYTHING);
        if let Some(version) = &version {
            options.extend(["--sparse", version.as_str()]);
        }
        pack(&tree, &archive, &options);
        check(&import(&store, &archive));
    }
}

/// GNU's own format keeps neither fractions of seconds nor attributes.
#[test]
fn the_gnu_format_gives_what_it_can_hold() {
    if !is_root() {
        return skip(
            "the_gnu_format_gives_what_it_can_hold",
            "needs root for owners and devices",
        );
    }
    let temp = tempfile::tempdir().unwrap();
    let tree = temp.path().join("tree");
    std::fs::create_dir(&tree).unwrap();
    make_nasty_tree(&tree);
    let mut expected = scan(&tree);
    for facts in expected.values_mut() {
        facts.modified.1 = 0;
        facts.xattrs.clear();
    }
    let store = ImageStore::open(temp.path().join("store")).unwrap();
    for options in [&["--format=gnu"][..], &["--format=gnu", "--sparse"]] {
        let archive = temp.path().join("tree.tar");
        pack(&tree, &archive, options);
        let image = import(&store, &archive);
        fsck(&image.path);
        let mount = Mount::new(&image.path, "ro");
        assert_same(&expected, &scan(mount.path()));
    }
}

#[test]
fn compression_and_repetition_do_not_change_a_byte() {
    let temp = tempfile::tempdir().unwrap();
    let tree = temp.path().join("tree");
    std::fs::create_dir_all(tree.join("usr/lib")).unwrap();
    for number in 0..500 {
        std::fs::write(
            tree.join(format!("usr/lib/file{number}")),
            vec![7; number * 9],
        )
        .unwrap();
    }
    let archive = temp.path().join("tree.tar");
    pack(&tree, &archive, &["--format=posix"]);
    let first = ImageStore::open(temp.path().join("first")).unwrap();
    let second = ImageStore::open(temp.path().join("second")).unwrap();
    let one = import(&first, &archive);
    for tool in ["gzip", "xz", "zstd"] {
        run(Command::new(tool).arg("-k").arg(&archive));
        let packed = archive.with_extension(match tool {
            "gzip" => "tar.gz",
            "xz" => "tar.xz",
            _ => "tar.zst",
        });
        let other = import(&second, &packed);
        assert_eq!(one.id, other.id);
        assert_eq!(
            std::fs::read(&one.path).unwrap(),
            std::fs::read(&other.path).unwrap()
        );
        second.remove(&other.id, &|_| false).unwrap();
    }
    fsck(&one.path);
    assert_eq!(one.size_bytes % (2 << 20), 0);
    assert_eq!(
        import(&first, &tree).id,
        import(&second, &tree).id,
        "directories too"
    );
}
