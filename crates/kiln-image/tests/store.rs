//! The store publishes whole images or nothing, whatever happens to disk and process.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stderr,
    reason = "tests"
)]

mod support;

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

use kiln_image::{
    Filesystem, ImageError, ImageSource, ImageStore, Limits, Progress, ProgressEvent, Silent,
};
use support::{fsck, is_root, run, skip};

/// A small tree as a tar file.
fn make_tar(directory: &Path, bytes: usize) -> PathBuf {
    let tree = directory.join("tree");
    std::fs::create_dir_all(&tree).unwrap();
    std::fs::write(tree.join("file"), vec![1; bytes]).unwrap();
    std::fs::write(tree.join("other"), b"2").unwrap();
    let archive = directory.join("tree.tar");
    run(Command::new("tar")
        .arg("-C")
        .arg(&tree)
        .arg("-cf")
        .arg(&archive)
        .arg("."));
    archive
}

fn import(store: &ImageStore, path: &Path) -> Result<kiln_image::Image, ImageError> {
    store.import(ImageSource::detect(path)?, &Limits::default(), &Silent)
}

fn assert_nothing_left(root: &Path) {
    for directory in ["tmp", "images", "memo"] {
        let left: Vec<_> = std::fs::read_dir(root.join(directory)).unwrap().collect();
        assert!(left.is_empty(), "{directory}: {left:?}");
    }
}

#[test]
fn an_image_is_found_again_listed_and_removed() {
    let temp = tempfile::tempdir().unwrap();
    let archive = make_tar(temp.path(), 10_000);
    let store = ImageStore::open(temp.path().join("store")).unwrap();
    let image = import(&store, &archive).unwrap();
    assert_eq!(image.filesystem, Filesystem::Ext4);
    assert_eq!(
        image.path.metadata().unwrap().permissions().mode() & 0o777,
        0o444
    );
    assert_eq!(store.list().unwrap(), std::slice::from_ref(&image));
    assert_eq!(store.get(&image.id).unwrap(), Some(image.clone()));
    assert_eq!(import(&store, &archive).unwrap(), image);
    assert_eq!(image.id.to_string().parse(), Ok(image.id));

    let pinned = store.remove(&image.id, &|_| true).unwrap_err();
    assert!(matches!(pinned, ImageError::InUse(_)), "{pinned}");
    let jail = temp.path().join("jail-root.img");
    std::fs::hard_link(&image.path, &jail).unwrap();
    let linked = store.remove(&image.id, &|_| false).unwrap_err();
    assert!(matches!(linked, ImageError::InUse(_)), "{linked}");
    std::fs::remove_file(&jail).unwrap();
    store.remove(&image.id, &|_| false).unwrap();
    let gone = store.remove(&image.id, &|_| false).unwrap_err();
    assert!(matches!(gone, ImageError::NotFound(_)), "{gone}");
    store.sweep().unwrap();
    assert_nothing_left(store.root());
}

#[test]
fn an_unchanged_source_is_not_read_again_and_a_changed_one_is() {
    let temp = tempfile::tempdir().unwrap();
    let archive = make_tar(temp.path(), 10_000);
    let store = ImageStore::open(temp.path().join("store")).unwrap();
    let tree = temp.path().join("tree");
    for source in [&archive, &tree] {
        settle(source);
        let image = import(&store, source).unwrap();
        let detected = ImageSource::detect(source).unwrap();
        assert_eq!(store.lookup(&detected), Some(image));
    }
    std::fs::write(tree.join("other"), b"3").unwrap();
    let detected = ImageSource::detect(&tree).unwrap();
    assert_eq!(store.lookup(&detected), None);
    store
        .remember("debian default", &store.list().unwrap()[0].id)
        .unwrap();
    assert_eq!(
        store.recall("debian default"),
        Some(store.list().unwrap()[0].clone())
    );
    assert_eq!(store.recall("other"), None);
}

/// Waits until a change of the source could not hide in its timestamps any more: until a file made
/// later has a later time, and the margin on top.
fn settle(source: &Path) {
    use std::os::unix::fs::MetadataExt;
    let probe = tempfile::NamedTempFile::new_in(source.parent().unwrap()).unwrap();
    let made = |path: &Path| {
        let metadata = path.symlink_metadata().unwrap();
        metadata.ctime() as i128 * 1_000_000_000 + metadata.ctime_nsec() as i128
    };
    let start = made(source);
    loop {
        std::fs::write(probe.path(), b"x").unwrap();
        if made(probe.path()) - start > 100_000_000 {
            return;
        }
        std::thread::yield_now();
    }
}

#[test]
fn existing_filesystems_are_taken_as_they_are() {
    let temp = tempfile::tempdir().unwrap();
    let store = ImageStore::open(temp.path().join("store")).unwrap();
    make_tar(temp.path(), 300_000);
    let tree = temp.path().join("tree");
    // Does not shrink, so that half an image is always too short.
    let noise: Vec<[u8; 8]> = (1u64..40_000)
        .map(|n| n.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes())
        .collect();
    std::fs::write(tree.join("noise"), noise.concat()).unwrap();
    let ext4 = temp.path().join("image.ext4");
    run(Command::new("mke2fs")
        .args(["-q", "-t", "ext4", "-d"])
        .arg(&tree)
        .arg(&ext4)
        .arg("8M"));
    let mut images = vec![(ext4.clone(), Filesystem::Ext4)];
    let squashfs = temp.path().join("image.squashfs");
    let mksquashfs = Command::new("mksquashfs")
        .arg(&tree)
        .arg(&squashfs)
        .arg("-quiet")
        .output();
    match mksquashfs {
        Ok(output) if output.status.success() => images.push((squashfs, Filesystem::Squashfs)),
        _ => skip(
            "existing_filesystems_are_taken_as_they_are (squashfs)",
            "no mksquashfs",
        ),
    }
    let erofs = temp.path().join("image.erofs");
    match Command::new("mkfs.erofs").arg(&erofs).arg(&tree).output() {
        Ok(output) if output.status.success() => images.push((erofs, Filesystem::Erofs)),
        _ => skip(
            "existing_filesystems_are_taken_as_they_are (erofs)",
            "no mkfs.erofs",
        ),
    }
    for (path, filesystem) in images {
        let image = import(&store, &path).unwrap();
        assert_eq!(image.filesystem, filesystem);
        let original = std::fs::read(&path).unwrap();
        let copy = std::fs::read(&image.path).unwrap();
        assert_eq!(copy[..original.len()], original[..]);
        assert_eq!(copy.len() % 4096, 0);
        // Cut off.
        let cut = temp.path().join("cut");
        std::fs::write(&cut, &original[..original.len() / 2]).unwrap();
        let error = import(&store, &cut).unwrap_err();
        assert!(error.to_string().contains("cut off"), "{error}");
    }
    let mut damaged = std::fs::read(&ext4).unwrap();
    damaged[1024 + 8] ^= 1;
    let path = temp.path().join("damaged");
    std::fs::write(&path, damaged).unwrap();
    let error = import(&store, &path).unwrap_err();
    assert!(error.to_string().contains("checksum"), "{error}");
}

#[test]
fn what_is_no_image_is_refused_by_name() {
    let temp = tempfile::tempdir().unwrap();
    let store = ImageStore::open(temp.path().join("store")).unwrap();
    let missing = import(&store, &temp.path().join("missing")).unwrap_err();
    assert!(matches!(missing, ImageError::Open { .. }), "{missing}");
    for (name, content) in [
        ("text", &b"hello"[..]),
        ("empty", b""),
        ("zeros", &[0; 4096]),
    ] {
        let path = temp.path().join(name);
        std::fs::write(&path, content).unwrap();
        let error = import(&store, &path).unwrap_err();
        assert!(matches!(error, ImageError::Unknown(_)), "{error}");
        assert!(error.to_string().contains(name));
    }
    let gzip = temp.path().join("broken.tar.gz");
    std::fs::write(&gzip, b"\x1f\x8b\x08\0garbage").unwrap();
    assert!(matches!(
        import(&store, &gzip).unwrap_err(),
        ImageError::Read { .. }
    ));
    assert_nothing_left(store.root());
}

#[test]
fn a_full_disk_publishes_nothing_and_leaves_nothing() {
    if !is_root() {
        return skip(
            "a_full_disk_publishes_nothing_and_leaves_nothing",
            "needs root for a tmpfs",
        );
    }
    let temp = tempfile::tempdir().unwrap();
    let small = temp.path().join("small");
    std::fs::create_dir(&small).unwrap();
    run(Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=8m", "tmpfs"])
        .arg(&small));
    struct Unmount<'a>(&'a Path);
    impl Drop for Unmount<'_> {
        fn drop(&mut self) {
            let _ = Command::new("umount").arg(self.0).status();
        }
    }
    let _unmount = Unmount(&small);
    let store = ImageStore::open(small.join("store")).unwrap();
    let archive = make_tar(temp.path(), 12 << 20);
    // Used in place, so the image itself does not fit; then the spool does not fit.
    let stream = ImageSource::Stream(Box::new(std::fs::File::open(&archive).unwrap()));
    for source in [ImageSource::Tar(archive), stream] {
        let error = store
            .import(source, &Limits::default(), &Silent)
            .unwrap_err();
        assert!(error.is_disk_full(), "{error:?}");
        assert_nothing_left(store.root());
    }
}

/// Kills its process at the n-th event.
struct DieAt(AtomicUsize);

impl Progress for DieAt {
    fn report(&self, _event: ProgressEvent) {
        if self.0.fetch_sub(1, Ordering::Relaxed) == 1 {
            let me = rustix::process::getpid();
            rustix::process::kill_process(me, rustix::process::Signal::KILL).unwrap();
        }
    }
}

/// Not a test of its own: the process that the next test kills.
#[test]
fn child_that_dies() {
    let (Ok(root), Ok(archive)) = (std::env::var("DIE_STORE"), std::env::var("DIE_SOURCE")) else {
        return;
    };
    let at = std::env::var("DIE_AT").unwrap().parse().unwrap();
    let store = ImageStore::open(root).unwrap();
    let source = ImageSource::detect(archive).unwrap();
    store
        .import(source, &Limits::default(), &DieAt(AtomicUsize::new(at)))
        .unwrap();
}

#[test]
fn killed_at_any_step_it_publishes_nothing_and_the_next_start_sweeps() {
    let temp = tempfile::tempdir().unwrap();
    let archive = make_tar(temp.path(), 600_000);
    let packed = temp.path().join("tree.tar.gz");
    run(Command::new("gzip").arg("-k").arg(&archive));
    let root = temp.path().join("store");
    for step in 1.. {
        let status = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child_that_dies"])
            .env("DIE_STORE", &root)
            .env("DIE_SOURCE", &packed)
            .env("DIE_AT", step.to_string())
            .stdout(std::process::Stdio::null())
            .status()
            .unwrap();
        if status.success() {
            assert!(step > 5, "only {step} steps were killed");
            break;
        }
        // Another process that lives is not disturbed by the sweep.
        let store = ImageStore::open(&root).unwrap();
        assert_nothing_left(&root);
        assert!(store.list().unwrap().is_empty());
    }
    let store = ImageStore::open(&root).unwrap();
    let [image] = &store.list().unwrap()[..] else {
        panic!("one image")
    };
    fsck(&image.path);
}

#[test]
fn the_sweep_leaves_work_in_progress_alone() {
    struct SweepMeanwhile(PathBuf);
    impl Progress for SweepMeanwhile {
        fn report(&self, _event: ProgressEvent) {
            ImageStore::open(&self.0).unwrap();
        }
    }
    let temp = tempfile::tempdir().unwrap();
    let archive = make_tar(temp.path(), 10_000);
    let root = temp.path().join("store");
    let store = ImageStore::open(&root).unwrap();
    let source = ImageSource::Stream(Box::new(std::fs::File::open(&archive).unwrap()));
    let image = store
        .import(source, &Limits::default(), &SweepMeanwhile(root))
        .unwrap();
    fsck(&image.path);
}

#[test]
fn many_at_once_make_one_image() {
    let temp = tempfile::tempdir().unwrap();
    let archive = make_tar(temp.path(), 200_000);
    let root = temp.path().join("store");
    let ids: Vec<_> = std::thread::scope(|scope| {
        let importers: Vec<_> = (0..8)
            .map(|_| {
                scope.spawn(|| {
                    let store = ImageStore::open(&root).unwrap();
                    import(&store, &archive).unwrap().id
                })
            })
            .collect();
        importers
            .into_iter()
            .map(|importer| importer.join().unwrap())
            .collect()
    });
    assert!(ids.iter().all(|id| *id == ids[0]));
    assert_eq!(ImageStore::open(&root).unwrap().list().unwrap().len(), 1);
}
