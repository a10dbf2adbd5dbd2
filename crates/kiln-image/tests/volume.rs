//! Volumes are whole ext4 disks whatever happens, grow, and are never changed under a user.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stderr,
    reason = "tests"
)]

mod support;

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use kiln_image::{E2fsError, VolumeError, VolumeName, VolumeStore};
use support::{Mount, fsck, is_root, run, skip};

const MIB: u64 = 1 << 20;

fn name(text: &str) -> VolumeName {
    text.parse().unwrap()
}

fn nobody(_: &VolumeName) -> bool {
    false
}

fn assert_no_drafts(root: &Path) {
    let left: Vec<_> = std::fs::read_dir(root.join("tmp")).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn volumes_of_every_size_are_clean_sparse_and_listed() {
    let temp = tempfile::tempdir().unwrap();
    let store = VolumeStore::open(temp.path()).unwrap();
    for (text, mib) in [("small", 8), ("middle", 700), ("large", 100 << 10)] {
        let volume = store.create(&name(text), mib * MIB - 5).unwrap();
        assert_eq!(volume.size_bytes, mib * MIB);
        fsck(&volume.path);
        let metadata = volume.path.metadata().unwrap();
        assert_eq!(
            (metadata.len(), metadata.mode() & 0o777),
            (mib * MIB, 0o600)
        );
        let allocated = volume.allocated_bytes;
        assert!(allocated < 40 * MIB, "{mib} MiB take {allocated} bytes");
        assert_eq!(store.get(&volume.name).unwrap(), Some(volume));
    }
    let names: Vec<String> = store
        .list()
        .unwrap()
        .iter()
        .map(|v| v.name.to_string())
        .collect();
    assert_eq!(names, ["large", "middle", "small"]);
    let taken = store.create(&name("small"), 8 * MIB).unwrap_err();
    assert!(matches!(taken, VolumeError::Exists(_)), "{taken}");
    for size in [0, MIB, u64::MAX] {
        let error = store.create(&name("odd"), size).unwrap_err();
        assert!(matches!(error, VolumeError::Size { .. }), "{error}");
    }
    store.remove(&name("small"), &nobody).unwrap();
    let gone = store.remove(&name("small"), &nobody).unwrap_err();
    assert!(matches!(gone, VolumeError::NotFound(_)), "{gone}");
    assert_no_drafts(temp.path());
}

#[test]
fn a_volume_grows_and_keeps_what_it_holds() {
    if !is_root() {
        return skip(
            "a_volume_grows_and_keeps_what_it_holds",
            "needs root to mount",
        );
    }
    let temp = tempfile::tempdir().unwrap();
    let store = VolumeStore::open(temp.path()).unwrap();
    let volume = store.create(&name("data"), 16 * MIB).unwrap();
    {
        let mount = Mount::new(&volume.path, "rw");
        std::fs::write(mount.path().join("kept"), vec![7; 3 << 20]).unwrap();
    }
    let grown = store.resize(&volume.name, 3 << 30, &nobody).unwrap();
    assert_eq!(grown.size_bytes, 3 << 30);
    assert_eq!(grown.path.metadata().unwrap().uid(), 0);
    fsck(&grown.path);
    {
        let mount = Mount::new(&grown.path, "rw");
        assert_eq!(
            std::fs::read(mount.path().join("kept")).unwrap(),
            vec![7; 3 << 20]
        );
        let space = rustix::fs::statvfs(mount.path()).unwrap();
        assert!(space.f_blocks * space.f_frsize > 2 << 30);
        // The same size again is no work and no error.
        std::fs::write(mount.path().join("more"), b"more").unwrap();
    }
    assert_eq!(
        store
            .resize(&volume.name, 3 << 30, &nobody)
            .unwrap()
            .size_bytes,
        3 << 30
    );
    let less = store.resize(&volume.name, 16 * MIB, &nobody).unwrap_err();
    assert!(matches!(less, VolumeError::Shrink { .. }), "{less}");
}

#[test]
fn clones_and_exports_are_apart_from_what_they_came_from() {
    if !is_root() {
        let test = "clones_and_exports_are_apart_from_what_they_came_from";
        return skip(test, "needs root to mount");
    }
    let temp = tempfile::tempdir().unwrap();
    let store = VolumeStore::open(temp.path().join("store")).unwrap();
    let volume = store.create(&name("first"), 1 << 30).unwrap();
    std::fs::write(Mount::new(&volume.path, "rw").path().join("file"), b"1").unwrap();
    let copy = store
        .clone_volume(&volume.name, &name("copy"), &nobody)
        .unwrap();
    assert!(copy.allocated_bytes < 100 * MIB, "{}", copy.allocated_bytes);
    std::fs::write(Mount::new(&copy.path, "rw").path().join("file"), b"2").unwrap();
    let read = |path: &Path| std::fs::read(Mount::new(path, "ro").path().join("file")).unwrap();
    assert_eq!(
        (read(&volume.path), read(&copy.path)),
        (b"1".to_vec(), b"2".to_vec())
    );

    let file = temp.path().join("exported.ext4");
    store.export(&copy.name, &file, &nobody).unwrap();
    assert!(file.metadata().unwrap().blocks() * 512 < 100 * MIB);
    let twice = store.export(&copy.name, &file, &nobody).unwrap_err();
    assert!(matches!(twice, VolumeError::Io { .. }), "{twice}");
    let back = store.import(&name("back"), &file, Some(2 << 30)).unwrap();
    assert_eq!(back.size_bytes, 2 << 30);
    fsck(&back.path);
    assert_eq!(read(&back.path), b"2");
    let same = store
        .clone_volume(&volume.name, &volume.name, &nobody)
        .unwrap_err();
    assert!(matches!(same, VolumeError::Exists(_)), "{same}");
    let left = std::fs::read_dir(temp.path()).unwrap().count();
    assert_eq!(left, 2, "half an export is left");
}

#[test]
fn only_clean_ext4_is_imported() {
    let temp = tempfile::tempdir().unwrap();
    let store = VolumeStore::open(temp.path().join("store")).unwrap();
    let file = temp.path().join("file");
    std::fs::write(&file, b"text").unwrap();
    let text = store.import(&name("text"), &file, None).unwrap_err();
    assert!(matches!(text, VolumeError::NotExt4(_)), "{text}");
    run(Command::new("mke2fs")
        .args(["-q", "-t", "ext4"])
        .arg(&file)
        .arg("32M"));
    let small = store
        .import(&name("small"), &file, Some(8 * MIB))
        .unwrap_err();
    assert!(matches!(small, VolumeError::Shrink { .. }), "{small}");
    std::fs::File::options()
        .write(true)
        .open(&file)
        .unwrap()
        .set_len(20 * MIB)
        .unwrap();
    let cut = store.import(&name("cut"), &file, None).unwrap_err();
    assert!(matches!(cut, VolumeError::Damaged { .. }), "{cut}");
    assert!(store.list().unwrap().is_empty());
    assert_no_drafts(&temp.path().join("store"));
}

#[test]
fn nothing_is_done_to_a_volume_in_use() {
    let temp = tempfile::tempdir().unwrap();
    let store = VolumeStore::open(temp.path()).unwrap();
    let volume = store.create(&name("used"), 16 * MIB).unwrap();
    let before = std::fs::read(&volume.path).unwrap();
    let used = |asked: &VolumeName| *asked == volume.name;
    let refusals = [
        store.remove(&volume.name, &used).unwrap_err(),
        store.resize(&volume.name, 32 * MIB, &used).unwrap_err(),
        store
            .clone_volume(&volume.name, &name("copy"), &used)
            .unwrap_err(),
        store
            .export(&volume.name, &temp.path().join("out"), &used)
            .unwrap_err(),
    ];
    for error in refusals {
        assert!(matches!(error, VolumeError::InUse(_)), "{error}");
    }
    assert_eq!(store.list().unwrap(), std::slice::from_ref(&volume));
    assert_eq!(std::fs::read(&volume.path).unwrap(), before);
    assert_no_drafts(temp.path());
}

/// A guest wrote nonsense over its volume: the host says so and does not hang.
#[test]
fn a_ruined_volume_is_refused_by_its_tools() {
    let temp = tempfile::tempdir().unwrap();
    let store = VolumeStore::open(temp.path()).unwrap();
    let volume = store.create(&name("ruined"), 16 * MIB).unwrap();
    std::fs::write(&volume.path, vec![0xff; 16 << 20]).unwrap();
    let error = store.resize(&volume.name, 32 * MIB, &nobody).unwrap_err();
    assert!(
        matches!(error, VolumeError::E2fs(E2fsError::Failed { .. })),
        "{error}"
    );
    assert!(!error.to_string().contains(char::is_control), "{error:?}");
    // Neither this volume nor the others are lost to its owner.
    let store = VolumeStore::open(temp.path()).unwrap();
    assert_eq!(store.list().unwrap().len(), 1);
    store.remove(&volume.name, &nobody).unwrap();
}

/// Not a test of its own: the process that the next test kills.
#[test]
fn child_that_dies() {
    let Ok(root) = std::env::var("DIE_STORE") else {
        return;
    };
    let store = VolumeStore::open(root).unwrap();
    let _ = store.create(&name("new"), 300 * MIB);
    store.resize(&name("old"), 900 * MIB, &nobody).unwrap();
    let _ = store.clone_volume(&name("old"), &name("twin"), &nobody);
    let _ = store.remove(&name("new"), &nobody);
}

/// A program that the killed process was just starting may hold its lock for a moment longer; the
/// sweep leaves such work to the next one.
fn open_swept(root: &Path) -> VolumeStore {
    let end = Instant::now() + Duration::from_secs(20);
    loop {
        let store = VolumeStore::open(root).unwrap();
        let drafts = std::fs::read_dir(root.join("tmp")).unwrap().count();
        if drafts == 0 {
            return store;
        }
        assert!(Instant::now() < end, "drafts are left");
        std::thread::yield_now();
    }
}

#[test]
fn killed_at_any_instant_every_volume_is_whole() {
    let temp = tempfile::tempdir().unwrap();
    let mut kills = 0;
    for instant in 0.. {
        let root = temp.path().join(format!("store{instant}"));
        let store = VolumeStore::open(&root).unwrap();
        store.create(&name("old"), 40 * MIB).unwrap();
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child_that_dies"])
            .env("DIE_STORE", &root)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        // The instants are spread; none of them waits for anything.
        let end = Instant::now() + Duration::from_millis(3 * instant);
        let mut done = false;
        while !done && Instant::now() < end {
            done = child.try_wait().unwrap().is_some();
            std::thread::yield_now();
        }
        // Not its children: what they still do is the next opener's business.
        let _ = child.kill();
        child.wait().unwrap();
        let store = open_swept(&root);
        for volume in store.list().unwrap() {
            fsck(&volume.path);
            assert_eq!(volume.path.metadata().unwrap().len(), volume.size_bytes);
        }
        assert!(store.get(&name("old")).unwrap().is_some());
        std::fs::remove_dir_all(&root).unwrap();
        if done {
            break;
        }
        kills += 1;
    }
    eprintln!("killed at {kills} instants");
    assert!(kills > 5, "only {kills} kills");
}

/// Not a test of its own: the process of the next test, with an `e2fsck` that tells who runs it.
#[test]
fn child_with_another_e2fsck() {
    let Ok(root) = std::env::var("TELLING_STORE") else {
        return;
    };
    let store = VolumeStore::open(root).unwrap();
    let error = store.resize(&name("old"), 90 * MIB, &nobody).unwrap_err();
    assert!(
        error.to_string().contains("uid=65534(nobody) gid=65534"),
        "{error}"
    );
    assert!(!error.to_string().contains("groups=0"), "{error}");
}

/// A disk that a hostile guest wrote is not read with root's rights.
#[test]
fn disks_of_guests_are_checked_as_nobody() {
    use std::os::unix::fs::PermissionsExt;
    if !is_root() {
        return skip(
            "disks_of_guests_are_checked_as_nobody",
            "needs root to become nobody",
        );
    }
    let temp = tempfile::tempdir().unwrap();
    let tools = temp.path().join("tools");
    std::fs::create_dir(&tools).unwrap();
    std::fs::write(tools.join("e2fsck"), "#!/bin/sh\n/usr/bin/id\nexit 8\n").unwrap();
    for path in [temp.path(), &tools, &tools.join("e2fsck")] {
        std::fs::set_permissions(path, PermissionsExt::from_mode(0o755)).unwrap();
    }
    let root = temp.path().join("store");
    let store = VolumeStore::open(&root).unwrap();
    store.create(&name("old"), 40 * MIB).unwrap();
    run(Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child_with_another_e2fsck"])
        .env("PATH", &tools)
        .env("TELLING_STORE", &root));
}
