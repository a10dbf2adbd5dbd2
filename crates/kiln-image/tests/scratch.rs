//! Scratch disks are whole filesystems of any size, cheap, and the kernel writes to them.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stderr,
    reason = "tests"
)]

mod support;

use std::os::unix::fs::MetadataExt;
use std::process::Command;
use std::time::Instant;

use kiln_image::{ScratchDisks, ScratchError, free_space};
use support::{Mount, fsck, is_root, run, skip};

#[test]
fn b1_2_disks_of_every_size_are_clean_sparse_quick_and_all_the_guests() {
    let temp = tempfile::tempdir().unwrap();
    let disks = ScratchDisks::new(temp.path());
    for mib in [
        8u64,
        16,
        63,
        64,
        127,
        128,
        129,
        1000,
        10 * 1024,
        256 * 1024,
        2 << 20,
    ] {
        let path = temp.path().join(format!("disk{mib}"));
        disks.create(&path, mib << 20).unwrap();
        fsck(&path);
        let metadata = path.metadata().unwrap();
        assert_eq!(metadata.len(), mib << 20);
        assert_eq!(metadata.mode() & 0o777, 0o600);
        let facts = run(Command::new("dumpe2fs").arg("-h").arg(&path));
        let reserved = facts
            .lines()
            .find_map(|line| line.strip_prefix("Reserved block count:"));
        assert_eq!(reserved.map(str::trim), Some("0"), "{facts}");
        assert!(
            metadata.blocks() * 512 < 8 << 20,
            "{mib} MiB take {}",
            metadata.blocks() * 512
        );
    }
    let best = (0..20)
        .map(|number| {
            let start = Instant::now();
            disks
                .create(&temp.path().join(format!("quick{number}")), 10 << 30)
                .unwrap();
            start.elapsed()
        })
        .min();
    eprintln!("10 GiB scratch disk: {:?}", best.unwrap());
}

#[test]
fn impossible_sizes_are_refused() {
    let temp = tempfile::tempdir().unwrap();
    let disks = ScratchDisks::new(temp.path());
    for size in [0, 1 << 20, 16 << 40, u64::MAX] {
        let path = temp.path().join("disk");
        let error = disks.create(&path, size).unwrap_err();
        assert!(
            matches!(error, ScratchError::Size { .. }),
            "{size}: {error}"
        );
        assert!(!path.exists());
    }
}

#[test]
fn the_kernel_writes_to_them_and_leaves_them_clean() {
    if !is_root() {
        return skip(
            "the_kernel_writes_to_them_and_leaves_them_clean",
            "needs root to mount",
        );
    }
    let temp = tempfile::tempdir().unwrap();
    let disks = ScratchDisks::new(temp.path());
    for mib in [8u64, 700] {
        let path = temp.path().join(format!("disk{mib}"));
        disks.create(&path, mib << 20).unwrap();
        {
            let mount = Mount::new(&path, "rw");
            for number in 0..300 {
                let directory = mount.path().join(format!("directory{}", number % 7));
                std::fs::create_dir_all(&directory).unwrap();
                let name = directory.join(format!("file{number}-{}", "x".repeat(100)));
                std::fs::write(&name, vec![1; number * 20]).unwrap();
                if number % 3 == 0 {
                    std::fs::remove_file(&name).unwrap();
                }
            }
        }
        fsck(&path);
    }
}

#[test]
fn free_space_is_what_the_filesystem_says() {
    let temp = tempfile::tempdir().unwrap();
    assert!(free_space(temp.path()).unwrap() > 0);
    assert!(free_space(&temp.path().join("missing")).is_err());
}
