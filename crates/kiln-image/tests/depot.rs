//! Kernels and root filesystems by name, from a server on loopback and from nothing.
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "tests")]

mod support;

use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::fs::MetadataExt;

use kiln_image::download::Download;
use kiln_image::{Depot, DepotError, Silent};
use support::fsck;

/// Answers every request with these bytes; says where.
fn server(content: &'static [u8]) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/file", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut byte = [0];
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") && stream.read(&mut byte).unwrap_or(0) == 1 {
                request.push(byte[0]);
            }
            let head = format!(
                "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
                content.len()
            );
            let _ = stream.write_all(&[head.as_bytes(), content].concat());
        }
    });
    url
}

fn depot() -> (tempfile::TempDir, Depot) {
    let temp = tempfile::tempdir().unwrap();
    let depot = Depot::new(temp.path().join("data"), temp.path().join("run"));
    (temp, depot)
}

#[test]
fn a2_3_kernels_and_root_filesystems_are_fetched_by_url_under_a_name() {
    let (_temp, depot) = depot();
    let url = server(b"a kernel");
    let kernel = depot
        .fetch_kernel("vmlinux-6.1", &Download::unpinned(&url), &Silent)
        .unwrap();
    assert_eq!(kernel, depot.kernels_dir().join("vmlinux-6.1"));
    assert_eq!(std::fs::read(&kernel).unwrap(), b"a kernel");
    let rootfs = depot
        .fetch_rootfs("ubuntu.ext4", &Download::unpinned(&url), &Silent)
        .unwrap();
    assert_eq!(rootfs, depot.rootfs_dir().join("ubuntu.ext4"));
    // Other bytes than were promised: what was there stays, and nothing else comes.
    let pinned = Download::new(&url, "00");
    let error = depot
        .fetch_kernel("vmlinux-6.1", &pinned, &Silent)
        .unwrap_err();
    assert_eq!(error.code(), "DOWNLOAD_FAILED");
    assert_eq!(std::fs::read(&kernel).unwrap(), b"a kernel");
    assert_eq!(std::fs::read_dir(depot.kernels_dir()).unwrap().count(), 1);
    for name in ["", ".", "..", "../x", "a/b", ".hidden", "a b"] {
        let error = depot.fetch_kernel(name, &pinned, &Silent).unwrap_err();
        assert!(matches!(error, DepotError::Name(_)), "{name}: {error}");
    }
}

#[test]
fn a2_4_a_blank_root_filesystem_is_made_and_cloned_without_its_holes() {
    let (_temp, depot) = depot();
    let blank = depot.create_rootfs("blank.ext4", 64).unwrap();
    fsck(&blank);
    let data = std::fs::metadata(&blank).unwrap();
    assert_eq!(data.len(), 64 << 20);
    assert!(data.blocks() * 512 < 8 << 20, "{} blocks", data.blocks());
    let copy = depot.clone_rootfs(&blank, "copy.ext4").unwrap();
    assert!(std::fs::read(&copy).unwrap() == std::fs::read(&blank).unwrap());
    assert!(std::fs::metadata(&copy).unwrap().blocks() <= data.blocks());
    // Neither replaces what is there, nor leaves anything behind.
    let taken = depot.create_rootfs("copy.ext4", 64).unwrap_err();
    assert_eq!(taken.code(), "ROOTFS_CREATE_FAILED");
    let missing = depot
        .clone_rootfs(&depot.rootfs_dir().join("missing"), "other")
        .unwrap_err();
    assert_eq!(missing.code(), "ROOTFS_CLONE_FAILED");
    for size in [0, 7, u64::MAX] {
        let error = depot.create_rootfs("other", size).unwrap_err();
        assert!(matches!(error, DepotError::Size { .. }), "{size}: {error}");
    }
    assert_eq!(std::fs::read_dir(depot.rootfs_dir()).unwrap().count(), 2);
}

#[test]
fn a2_5_every_path_is_known_before_it_exists() {
    let depot = Depot::new("/data", "/run/kiln");
    let tag = "v1.16.1".parse().unwrap();
    let arch = std::env::consts::ARCH;
    let shown = |path: std::path::PathBuf| path.display().to_string();
    assert_eq!(shown(depot.bin_dir()), "/data/bin");
    assert_eq!(shown(depot.kernels_dir()), "/data/kernels");
    assert_eq!(shown(depot.rootfs_dir()), "/data/rootfs");
    assert_eq!(shown(depot.sockets_dir()), "/run/kiln");
    assert_eq!(
        shown(depot.firecracker(&tag)),
        format!("/data/bin/v1.16.1-{arch}/firecracker")
    );
    assert_eq!(
        shown(depot.jailer(&tag)),
        format!("/data/bin/v1.16.1-{arch}/jailer")
    );
    for (id, name) in [
        ("a.b_c-1", "a.b_c-1"),
        ("../../etc/passwd", "....etcpasswd"),
        ("", "vm"),
        ("..", "vm"),
        ("/", "vm"),
    ] {
        let socket = depot.socket(id);
        assert_eq!(socket.parent().unwrap(), depot.sockets_dir(), "{id}");
        assert_eq!(shown(socket), format!("/run/kiln/{name}.sock"), "{id}");
    }
}

#[test]
fn a9_failures_of_images_have_the_codes_that_callers_know() {
    use kiln_image::bundle::{BundleSource, BundleStore};
    use kiln_image::firecracker::ReleaseError;
    let temp = tempfile::tempdir().unwrap();
    let limit = BundleStore::open(temp.path(), 0).unwrap_err();
    assert_eq!(limit.code(), "INVALID_BASE_IMAGE_CACHE_LIMIT");
    let none = BundleSource::hosted(None).unwrap_err();
    assert_eq!(none.code(), "BASE_IMAGE_RESOLVE_FAILED");
    let release = ReleaseError::NoLatest {
        url: String::new(),
        found: String::new(),
    };
    assert_eq!(release.code(), "VERSION_FETCH_FAILED");
    // INVALID_BASE_IMAGE_MANIFEST, BASE_IMAGE_MANIFEST_FAILED and BASE_IMAGE_PREPARE_FAILED: see
    // the tests of bundles; DOWNLOAD_FAILED and ROOTFS_*: above.
}

#[test]
fn what_a_killed_caller_left_goes_with_the_next_call_and_what_is_in_use_stays() {
    let (_temp, depot) = depot();
    for dir in [depot.rootfs_dir(), depot.kernels_dir()] {
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join(".partial-Ab3dE6"), "half").unwrap();
        std::fs::write(dir.join(".partial-theirs-and-not-ours"), "").unwrap();
        let held = std::fs::File::create(dir.join(".partial-Held00")).unwrap();
        rustix::fs::flock(&held, rustix::fs::FlockOperation::LockExclusive).unwrap();
        // Whoever holds it lives as long as the test.
        std::mem::forget(held);
    }
    depot.create_rootfs("blank", 16).unwrap();
    let url = server(b"a kernel");
    depot
        .fetch_kernel("vmlinux", &Download::unpinned(&url), &Silent)
        .unwrap();
    for (dir, name) in [
        (depot.rootfs_dir(), "blank"),
        (depot.kernels_dir(), "vmlinux"),
    ] {
        let mut left: Vec<_> = std::fs::read_dir(&dir)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        left.sort();
        assert_eq!(
            left,
            [".partial-Held00", ".partial-theirs-and-not-ours", name]
        );
    }
}
