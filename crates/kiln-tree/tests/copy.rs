//! Trees there and back, and trees that nobody should have.

#![allow(missing_docs)]
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "helpers of tests fail by panic"
)]

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use kiln_tree::wire::{Decoder, encode};
use kiln_tree::{
    Entry, Follow, Item, Kind, ReadError, TreeReader, TreeWriter, WriteError, WriteOptions,
};
use tempfile::tempdir;

/// Every item of a tree, through its bytes.
fn items(from: &Path) -> Vec<Item> {
    let mut reader = TreeReader::open(from, Follow::No).unwrap();
    let mut wire = Vec::new();
    loop {
        let item = reader.next_item().unwrap();
        encode(&item, &mut wire);
        if item == Item::End {
            break;
        }
    }
    let mut decoder = Decoder::default();
    decoder.push(&wire);
    std::iter::from_fn(|| decoder.next_item().unwrap()).collect()
}

fn write(items: &[Item], to: &Path) -> Result<Vec<std::path::PathBuf>, WriteError> {
    let mut writer = TreeWriter::new(to, WriteOptions::default());
    for item in items {
        writer.put(item)?;
    }
    writer.finish()
}

fn file(path: &str, size: u64) -> Item {
    Item::Entry(Entry {
        path: path.into(),
        mode: 0o644,
        size,
        ..Entry::default()
    })
}

fn directory(path: &str) -> Item {
    Item::Entry(Entry {
        path: path.into(),
        kind: Kind::Directory,
        mode: 0o755,
        ..Entry::default()
    })
}

fn link(path: &str, to: &str) -> Item {
    Item::Entry(Entry {
        path: path.into(),
        kind: Kind::Symlink,
        link: to.into(),
        ..Entry::default()
    })
}

#[test]
fn b3_4_a_tree_comes_over_with_modes_links_times_and_holes() {
    let dir = tempdir().unwrap();
    let from = dir.path().join("from");
    fs::create_dir_all(from.join("sub/deep")).unwrap();
    fs::write(from.join("sub/run.sh"), "#!/bin/sh\n").unwrap();
    fs::write(from.join("sub/deep/large"), vec![7u8; 100_000]).unwrap();
    fs::write(from.join("empty"), "").unwrap();
    symlink("sub/run.sh", from.join("link")).unwrap();
    symlink("/no/such/place", from.join("dangling")).unwrap();
    let sparse = fs::File::create(from.join("sparse")).unwrap();
    sparse.set_len(64 << 20).unwrap();
    fs::set_permissions(from.join("sub/run.sh"), fs::Permissions::from_mode(0o750)).unwrap();
    fs::set_permissions(from.join("sub/deep"), fs::Permissions::from_mode(0o555)).unwrap();

    let to = dir.path().join("to");
    assert!(write(&items(&from), &to).unwrap().is_empty());
    let meta = |path: &str| fs::symlink_metadata(to.join(path)).unwrap();
    assert_eq!(meta("sub/run.sh").mode() & 0o7777, 0o750);
    assert_eq!(meta("sub/deep").mode() & 0o7777, 0o555);
    assert_eq!(
        fs::read(to.join("sub/deep/large")).unwrap(),
        vec![7u8; 100_000]
    );
    assert_eq!(meta("empty").len(), 0);
    assert_eq!(
        fs::read_link(to.join("link")).unwrap(),
        Path::new("sub/run.sh")
    );
    assert_eq!(
        fs::read_link(to.join("dangling")).unwrap(),
        Path::new("/no/such/place")
    );
    assert_eq!(meta("sparse").len(), 64 << 20);
    assert!(
        meta("sparse").blocks() * 512 < 1 << 20,
        "a hole is no bytes"
    );
    for path in ["sub/run.sh", "sub", "link"] {
        let before = fs::symlink_metadata(from.join(path)).unwrap();
        assert_eq!(meta(path).mtime_nsec(), before.mtime_nsec(), "{path}");
    }
    // Again, over what is there.
    write(&items(&from), &to).unwrap();
    fs::set_permissions(from.join("sub/deep"), fs::Permissions::from_mode(0o755)).unwrap();
    fs::set_permissions(to.join("sub/deep"), fs::Permissions::from_mode(0o755)).unwrap();
}

#[test]
fn a_single_file_and_what_a_link_points_to() {
    let dir = tempdir().unwrap();
    fs::write(dir.path().join("one"), "one").unwrap();
    write(&items(&dir.path().join("one")), &dir.path().join("two")).unwrap();
    assert_eq!(fs::read(dir.path().join("two")).unwrap(), b"one");
    symlink("one", dir.path().join("link")).unwrap();
    let followed = TreeReader::open(&dir.path().join("link"), Follow::Yes).unwrap();
    assert_eq!(followed.root().unwrap().kind, Kind::File);
    let kept = TreeReader::open(&dir.path().join("link"), Follow::No).unwrap();
    assert_eq!(kept.root().unwrap().kind, Kind::Symlink);
    let missing = TreeReader::open(&dir.path().join("three"), Follow::No);
    assert!(matches!(missing, Err(ReadError::Io { .. })));
}

#[test]
fn devices_pipes_and_set_id_bits_are_not_made() {
    let dir = tempdir().unwrap();
    let pipe = Item::Entry(Entry {
        path: "pipe".into(),
        kind: Kind::Other,
        ..Entry::default()
    });
    let set_id = Item::Entry(Entry {
        path: "su".into(),
        mode: 0o6755,
        ..Entry::default()
    });
    let to = dir.path().join("to");
    let skipped = write(&[directory(""), pipe, set_id, Item::End], &to).unwrap();
    assert_eq!(skipped, [to.join("pipe")]);
    assert!(!to.join("pipe").exists());
    let mode = fs::metadata(to.join("su")).unwrap().mode();
    assert_eq!(mode & 0o7777, 0o755);
    // Nor is one waited for that stands in a file's place.
    let pipe = dir.path().join("fifo");
    rustix::fs::mkfifoat(
        rustix::fs::CWD,
        &pipe,
        rustix::fs::Mode::from_raw_mode(0o600),
    )
    .unwrap();
    write(&[file("", 0), Item::End], &pipe).unwrap_err();
    assert!(fs::symlink_metadata(&pipe).unwrap().file_type().is_fifo());
}

/// Each of these would write outside of the place that was chosen.
#[test]
fn b3_4_hostile_trees_are_refused() {
    let outside = tempdir().unwrap();
    let victim = outside.path().join("victim");
    fs::write(&victim, "as it was").unwrap();
    let out = outside.path().to_str().unwrap();
    let trees: Vec<Vec<Item>> = vec![
        vec![directory(""), file("../victim", 1), Item::Data(vec![0])],
        vec![directory(""), file("/etc/victim", 1)],
        vec![directory(""), directory("a"), file("a/../../victim", 1)],
        // A link, and then something beneath it.
        vec![directory(""), link("a", out), file("a/victim", 1)],
        // A link, and then a directory of its name.
        vec![
            directory(""),
            link("a", out),
            directory("a"),
            file("a/victim", 0),
        ],
        // A link, and then a file of its name.
        vec![
            directory(""),
            link("a", victim.to_str().unwrap()),
            file("a", 0),
        ],
        // The root as a link, and then something beneath it.
        vec![link("", out), file("victim", 0)],
        // No directory before it, or one that was left.
        vec![directory(""), file("b/c", 0)],
        vec![file("", 0), file("c", 0)],
        vec![
            directory(""),
            directory("a"),
            directory("b"),
            file("a/x", 0),
        ],
        // More bytes than were told, fewer, and bytes of nothing.
        vec![directory(""), file("a", 1), Item::Data(vec![0; 2])],
        vec![directory(""), file("a", 1), Item::Hole(u64::MAX)],
        vec![directory(""), file("a", 2), Item::Data(vec![0]), Item::End],
        vec![directory(""), Item::Data(vec![0])],
        vec![directory(""), directory("")],
        vec![directory(""), Item::End, file("a", 0)],
        vec![directory(""), Item::Failed("no".to_owned())],
        vec![directory("")],
    ];
    for (number, tree) in trees.iter().enumerate() {
        let dir = tempdir().unwrap();
        let refused = write(tree, &dir.path().join("to"));
        assert!(refused.is_err(), "tree {number} was taken");
        assert_eq!(fs::read(&victim).unwrap(), b"as it was", "tree {number}");
        let names: Vec<_> = fs::read_dir(outside.path()).unwrap().flatten().collect();
        assert_eq!(names.len(), 1, "tree {number}: {names:?}");
    }
}

#[test]
fn a_link_that_stands_in_the_way_is_not_followed() {
    let (dir, outside) = (tempdir().unwrap(), tempdir().unwrap());
    let to = dir.path().join("to");
    fs::create_dir(&to).unwrap();
    symlink(outside.path(), to.join("sub")).unwrap();
    let tree = [directory(""), directory("sub"), file("sub/x", 0), Item::End];
    let refused = write(&tree, &to).unwrap_err();
    assert!(
        matches!(refused, WriteError::InTheWay { .. }),
        "{refused:?}"
    );
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
}
