//! What the tests of images share: a nasty tree, a scan of a tree that misses nothing, and mounts
//! that go away again.
#![allow(dead_code, reason = "each test binary uses a part")]
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "tests"
)]

pub(crate) mod registry;

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::{AtFlags, CWD, FileType, Mode, Timespec, Timestamps, XattrFlags};

pub(crate) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Says why a test did not run.
pub(crate) fn skip(test: &str, why: &str) {
    eprintln!("SKIPPED: {test}: {why}");
}

/// Runs a tool and returns what it printed; fails the test if it fails.
pub(crate) fn run(command: &mut Command) -> String {
    let output = command
        .output()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let text = String::from_utf8_lossy(&output.stdout).into_owned()
        + &String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "{command:?}: {}\n{text}",
        output.status
    );
    text
}

/// The filesystem is whole, and says so without changing anything.
pub(crate) fn fsck(image: &Path) {
    run(Command::new("e2fsck").arg("-fn").arg(image));
}

/// Everything that can be known of a file without its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Facts {
    pub(crate) mode: u32,
    pub(crate) owner: (u32, u32),
    pub(crate) modified: (i64, i64),
    pub(crate) links: u64,
    pub(crate) size: u64,
    pub(crate) device: u64,
    pub(crate) target: Vec<u8>,
    pub(crate) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    pub(crate) content: Vec<u8>,
    /// The first name of the same file.
    pub(crate) same_as: Vec<u8>,
}

/// All files below `root`, by path.
pub(crate) fn scan(root: &Path) -> BTreeMap<Vec<u8>, Facts> {
    let mut all = BTreeMap::new();
    let mut todo = vec![Vec::new()];
    while let Some(path) = todo.pop() {
        let full = root.join(OsStr::from_bytes(&path));
        let metadata = full.symlink_metadata().unwrap();
        if metadata.is_dir() {
            for entry in std::fs::read_dir(&full).unwrap() {
                let name = entry.unwrap().file_name();
                let separator: &[u8] = if path.is_empty() { b"" } else { b"/" };
                todo.push([&path, separator, name.as_bytes()].concat());
            }
        }
        all.insert(path, facts(&full, &metadata));
    }
    name_links(root, &mut all);
    all
}

fn facts(full: &Path, metadata: &std::fs::Metadata) -> Facts {
    let is_directory = metadata.is_dir();
    Facts {
        mode: metadata.mode(),
        owner: (metadata.uid(), metadata.gid()),
        modified: (metadata.mtime(), metadata.mtime_nsec()),
        links: if is_directory { 0 } else { metadata.nlink() },
        size: if is_directory { 0 } else { metadata.size() },
        device: metadata.rdev(),
        target: if metadata.is_symlink() {
            std::fs::read_link(full)
                .unwrap()
                .as_os_str()
                .as_bytes()
                .to_vec()
        } else {
            Vec::new()
        },
        xattrs: xattrs(full),
        content: if metadata.is_file() {
            digest(full)
        } else {
            Vec::new()
        },
        same_as: Vec::new(),
    }
}

fn name_links(root: &Path, all: &mut BTreeMap<Vec<u8>, Facts>) {
    let mut first = BTreeMap::new();
    for (path, facts) in all {
        if facts.links > 1 {
            let inode = root
                .join(OsStr::from_bytes(path))
                .symlink_metadata()
                .unwrap()
                .ino();
            facts.same_as = first.entry(inode).or_insert_with(|| path.clone()).clone();
        }
    }
}

fn xattrs(path: &Path) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut names = vec![0; 1 << 16];
    let length = rustix::fs::llistxattr(path, &mut names[..]).unwrap_or(0);
    let names = names[..length]
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty());
    let mut all: Vec<_> = names
        .map(|name| {
            let mut value = vec![0; 1 << 16];
            let length = rustix::fs::lgetxattr(path, name, &mut value[..]).unwrap();
            (name.to_vec(), value[..length].to_vec())
        })
        .collect();
    all.sort();
    all
}

/// Content of a file that may be mostly hole.
fn digest(path: &Path) -> Vec<u8> {
    use sha2::{Digest, Sha256};
    let file = File::open(path).unwrap();
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    let mut at = 0;
    loop {
        let length = file.read_at(&mut buffer, at).unwrap();
        if length == 0 {
            return hash.finalize().to_vec();
        }
        if buffer[..length].iter().any(|byte| *byte != 0) {
            hash.update(at.to_le_bytes());
            hash.update(&buffer[..length]);
        }
        at += length as u64;
    }
}

/// Fails with the first differences of two scans.
pub(crate) fn assert_same(expected: &BTreeMap<Vec<u8>, Facts>, found: &BTreeMap<Vec<u8>, Facts>) {
    let mut differences = Vec::new();
    for path in expected.keys().chain(found.keys()) {
        if expected.get(path) != found.get(path) {
            differences.push(format!(
                "{}:\n  expected {:?}\n  found    {:?}",
                path.escape_ascii(),
                expected.get(path),
                found.get(path)
            ));
        }
    }
    let shown = &differences[..differences.len().min(10)];
    assert!(
        differences.is_empty(),
        "{} differences:\n{}",
        differences.len(),
        shown.join("\n")
    );
}

/// A loop mount that ends with its value.
pub(crate) struct Mount(PathBuf);

impl Mount {
    pub(crate) fn new(image: &Path, options: &str) -> Mount {
        let point = tempfile::tempdir().unwrap().keep();
        run(Command::new("mount")
            .arg("-o")
            .arg(format!("loop,{options}"))
            .arg(image)
            .arg(&point));
        Mount(point)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
        let _ = std::fs::remove_dir(&self.0);
    }
}

fn write(path: &Path, content: &[u8], mode: u32) {
    std::fs::write(path, content).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

fn set_time(path: &Path, seconds: i64, nanoseconds: i64) {
    let time = Timespec {
        tv_sec: seconds,
        tv_nsec: nanoseconds,
    };
    let times = Timestamps {
        last_access: time,
        last_modification: time,
    };
    rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

fn set_xattr(path: &Path, name: &str, value: &[u8]) {
    rustix::fs::lsetxattr(path, name, value, XattrFlags::empty()).unwrap();
}

/// One of everything that breaks image builders. Needs root.
pub(crate) fn make_nasty_tree(root: &Path) {
    let at = |name: &str| root.join(name);
    make_names(root);
    make_modes(root);
    make_links(root);
    make_devices(root);
    make_xattrs(root);
    make_sparse(root);
    std::fs::create_dir(at("many")).unwrap();
    for number in 0..3000 {
        let content = format!("{number} ").repeat(number % 50);
        write(
            &at(&format!("many/file_number_{number:05}.pyc")),
            content.as_bytes(),
            0o644,
        );
    }
    let times = [(0, 0), (-1_000_000, 0), (-2, 750_000_000), (1, 123_456_789)];
    let late = [
        (1_700_000_000, 999_999_999),
        ((1 << 31) + 5, 5),
        ((1 << 32) + 7, 1),
    ];
    for (number, (seconds, nanoseconds)) in times.into_iter().chain(late).enumerate() {
        let path = at(&format!("time{number}"));
        write(&path, b"t", 0o644);
        set_time(&path, seconds, nanoseconds);
    }
    for size in [0, 1, 4095, 4096, 4097, 49_152, 49_153, 131_073, 1 << 20] {
        let content: Vec<u8> = (0..size)
            .map(|byte: usize| (byte * 7 + size) as u8)
            .collect();
        write(&at(&format!("size{size}")), &content, 0o644);
    }
}

fn make_names(root: &Path) {
    write(&root.join("n".repeat(255)), b"long", 0o644);
    write(&root.join("\u{e9}".repeat(127)), b"utf-8", 0o644);
    write(
        &root.join(OsStr::from_bytes(b"latin1-\xff\xfe-name")),
        b"not utf-8",
        0o644,
    );
    write(&root.join("new\nline \"quote' \\x"), b"control", 0o644);
    let mut deep = root.to_path_buf();
    for level in 0..12 {
        deep.push(format!("deep{level:02}-{}", "d".repeat(60)));
        std::fs::create_dir(&deep).unwrap();
    }
    write(&deep.join("leaf"), b"leaf", 0o644);
    std::fs::create_dir(root.join("empty")).unwrap();
}

fn make_modes(root: &Path) {
    for (name, mode) in [
        ("setuid", 0o4755),
        ("setgid", 0o2755),
        ("none", 0),
        ("all", 0o777),
    ] {
        write(&root.join(name), b"x", mode);
    }
    std::fs::create_dir(root.join("sticky")).unwrap();
    std::fs::set_permissions(root.join("sticky"), PermissionsExt::from_mode(0o1777)).unwrap();
    let owned = root.join("owned");
    write(&owned, b"x", 0o600);
    std::os::unix::fs::lchown(&owned, Some(123_456), Some(4_000_000)).unwrap();
}

fn make_links(root: &Path) {
    write(
        &root.join("linked"),
        &b"linked content\n".repeat(1000),
        0o644,
    );
    std::fs::hard_link(root.join("linked"), root.join("linked2")).unwrap();
    std::fs::create_dir(root.join("other")).unwrap();
    std::fs::hard_link(root.join("linked"), root.join("other/linked3")).unwrap();
    for (name, length) in [("sl1", 1), ("sl59", 59), ("sl60", 60), ("sl4000", 4000)] {
        std::os::unix::fs::symlink("t".repeat(length), root.join(name)).unwrap();
    }
    // `std::fs::hard_link` does not follow.
    std::fs::hard_link(root.join("sl59"), root.join("sl59-again")).unwrap();
}

fn make_devices(root: &Path) {
    let nodes = [
        ("null", FileType::CharacterDevice, 1, 3),
        ("big", FileType::BlockDevice, 259, 70_000),
        ("zero", FileType::CharacterDevice, 0, 0),
        ("fifo", FileType::Fifo, 0, 0),
    ];
    for (name, kind, major, minor) in nodes {
        let device = rustix::fs::makedev(major, minor);
        let mode = Mode::from_raw_mode(0o640);
        rustix::fs::mknodat(CWD, root.join(name), kind, mode, device).unwrap();
    }
}

fn make_xattrs(root: &Path) {
    let small = root.join("xattrs");
    write(&small, b"x", 0o644);
    set_xattr(&small, "user.small", b"v");
    set_xattr(&small, "user.big", &[b'B'; 3000]);
    set_xattr(&small, "user.empty", b"");
    set_xattr(&small, "user.lines", b"a\nb=c\n9 x=y\n\0z");
    let huge = root.join("xattr-huge");
    write(&huge, b"x", 0o644);
    set_xattr(&huge, "user.huge", &[b'H'; 3900]);
    let ping = root.join("capable");
    write(&ping, b"x", 0o755);
    let capability = [
        1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
    ];
    set_xattr(&ping, "security.capability", &capability);
    let directory = root.join("xattr-dir");
    std::fs::create_dir(&directory).unwrap();
    set_xattr(&directory, "trusted.t", b"tv");
    set_xattr(&directory, "user.binary", &(0..=255).collect::<Vec<u8>>());
    let entry = |tag: u16, bits: u16, id: u32| {
        [
            &tag.to_le_bytes()[..],
            &bits.to_le_bytes(),
            &id.to_le_bytes(),
        ]
        .concat()
    };
    let list = [
        vec![2, 0, 0, 0],
        entry(1, 6, u32::MAX),
        entry(2, 6, 1234),
        entry(4, 4, u32::MAX),
        entry(8, 4, 99),
        entry(16, 6, u32::MAX),
        entry(32, 4, u32::MAX),
    ];
    let list = list.concat();
    let acl = root.join("acl");
    write(&acl, b"x", 0o664);
    set_xattr(&acl, "system.posix_acl_access", &list);
    set_xattr(&directory, "system.posix_acl_default", &list);
}

fn make_sparse(root: &Path) {
    let sparse = File::create(root.join("sparse")).unwrap();
    sparse.set_len(1 << 26).unwrap();
    sparse.write_all_at(&[b'A'; 4096], 0).unwrap();
    sparse.write_all_at(&[b'M'; 5000], 1 << 25).unwrap();
    File::create(root.join("hole"))
        .unwrap()
        .set_len(20 << 20)
        .unwrap();
    // More pieces than an inode's extents, and than one header's sparse map.
    let pieces = File::create(root.join("pieces")).unwrap();
    pieces.set_len(40 << 20).unwrap();
    for piece in 0..900u64 {
        pieces
            .write_all_at(&[piece as u8 | 1; 100], piece * 40_960 + 100)
            .unwrap();
    }
    write(&root.join("zeros"), &vec![0; 1 << 20], 0o644);
}
