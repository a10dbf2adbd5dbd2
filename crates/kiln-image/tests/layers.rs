//! Layers over layers: what OCI says, what dpkg does, and what hostile archives try.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stderr,
    reason = "tests"
)]

mod support;

use std::collections::BTreeMap;
use std::io::Cursor;

use kiln_image::{ImageError, ImageSource, ImageStore, LayerSource, Limits, Silent};
use support::{Mount, fsck, is_root, skip};

/// An archive written by hand, so that it can say what no tar program would.
#[derive(Default)]
struct Archive(Vec<u8>);

impl Archive {
    fn entry(mut self, kind: u8, path: &str, link: &str, content: &[u8]) -> Archive {
        let mut header = [0u8; 512];
        header[..path.len()].copy_from_slice(path.as_bytes());
        header[100..107].copy_from_slice(if kind == b'5' { b"0000755" } else { b"0000644" });
        let size = format!("{:011o}", content.len());
        header[124..135].copy_from_slice(size.as_bytes());
        header[156] = kind;
        header[157..157 + link.len()].copy_from_slice(link.as_bytes());
        header[257..265].copy_from_slice(b"ustar\x0000");
        header[148..156].fill(b' ');
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        self.0.extend(header);
        self.0.extend(content);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    fn file(self, path: &str, content: &str) -> Archive {
        self.entry(b'0', path, "", content.as_bytes())
    }

    fn directory(self, path: &str) -> Archive {
        self.entry(b'5', path, "", b"")
    }

    fn symlink(self, path: &str, target: &str) -> Archive {
        self.entry(b'2', path, target, b"")
    }

    fn hard_link(self, path: &str, target: &str) -> Archive {
        self.entry(b'1', path, target, b"")
    }

    fn layer(mut self) -> LayerSource {
        self.0.resize(self.0.len() + 1024, 0);
        LayerSource::Stream(Box::new(Cursor::new(self.0)))
    }
}

fn archive() -> Archive {
    Archive::default()
}

fn import(source: ImageSource, limits: &Limits) -> Result<(), ImageError> {
    let temp = tempfile::tempdir().unwrap();
    let store = ImageStore::open(temp.path()).unwrap();
    let result = store
        .import(source, limits, &Silent)
        .map(|image| fsck(&image.path));
    assert_eq!(
        std::fs::read_dir(temp.path().join("tmp")).unwrap().count(),
        0
    );
    if result.is_err() {
        assert!(store.list().unwrap().is_empty());
    }
    result
}

fn refuse(archive: Archive) -> String {
    let source = ImageSource::Layers(vec![archive.layer()]);
    import(source, &Limits::default()).unwrap_err().to_string()
}

/// Contents of the files of the image, link targets with an arrow, directories with a slash.
fn contents(source: ImageSource) -> BTreeMap<String, String> {
    let temp = tempfile::tempdir().unwrap();
    let store = ImageStore::open(temp.path()).unwrap();
    let image = store.import(source, &Limits::default(), &Silent).unwrap();
    fsck(&image.path);
    let mount = Mount::new(&image.path, "ro");
    let mut all = BTreeMap::new();
    for (path, facts) in support::scan(mount.path()) {
        let path = String::from_utf8(path).unwrap();
        let full = mount.path().join(&path);
        let what = match facts.mode & 0o170_000 {
            0o040_000 => "/".into(),
            0o120_000 => format!("-> {}", String::from_utf8(facts.target).unwrap()),
            _ => std::fs::read_to_string(full).unwrap(),
        };
        if !path.is_empty() {
            all.insert(path, what);
        }
    }
    all
}

fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs
        .iter()
        .map(|(path, what)| ((*path).into(), (*what).into()))
        .collect()
}

#[test]
fn upper_layers_win_as_oci_says() {
    if !is_root() {
        return skip("upper_layers_win_as_oci_says", "needs root to mount");
    }
    let lower = archive()
        .directory("a/")
        .file("a/kept", "1")
        .file("a/gone", "1")
        .directory("opaque/")
        .file("opaque/old", "1")
        .file("becomes-dir", "1")
        .directory("becomes-file/")
        .file("becomes-file/x", "1")
        .file("again", "1")
        .directory("usr/lib/")
        .symlink("lib", "usr/lib")
        .symlink("escape", "../../../../etc")
        .file("linked", "lower")
        .hard_link("linked2", "linked");
    let upper = archive()
        // Order within a layer does not matter for whiteouts.
        .file("opaque/new", "2")
        .file("opaque/.wh..wh..opq", "")
        .file("a/.wh.gone", "")
        .file("again", "2")
        .file(".wh.again", "")
        .file(".wh.never-there", "")
        .file("becomes-dir/x", "2")
        .file("becomes-file", "2")
        .file("lib/through-link", "2")
        .file("escape/passwd", "2")
        .file("linked", "upper")
        .hard_link("./third", "/linked2")
        .file("implicit/parents/file", "2")
        .file("twice", "first")
        .file("twice", "second")
        .file("/absolute", "2");
    let layers = ImageSource::Layers(vec![lower.layer(), upper.layer()]);
    let expected = map(&[
        ("a", "/"),
        ("a/kept", "1"),
        ("opaque", "/"),
        ("opaque/new", "2"),
        ("becomes-dir", "/"),
        ("becomes-dir/x", "2"),
        ("becomes-file", "2"),
        ("again", "2"),
        ("usr", "/"),
        ("usr/lib", "/"),
        ("usr/lib/through-link", "2"),
        ("lib", "-> usr/lib"),
        ("escape", "-> ../../../../etc"),
        ("etc", "/"),
        ("etc/passwd", "2"),
        ("linked", "upper"),
        ("linked2", "lower"),
        ("third", "lower"),
        ("implicit", "/"),
        ("implicit/parents", "/"),
        ("implicit/parents/file", "2"),
        ("twice", "second"),
        ("absolute", "2"),
    ]);
    assert_eq!(contents(layers), expected);
}

#[test]
fn packages_keep_directories_and_links_to_them() {
    if !is_root() {
        return skip(
            "packages_keep_directories_and_links_to_them",
            "needs root to mount",
        );
    }
    let base = || {
        archive()
            .directory("./usr/lib/")
            .symlink("./lib", "usr/lib")
    };
    let package = || {
        archive()
            .directory("./lib/")
            .file("./lib/x", "1")
            .file("./.wh.lib", "kept")
    };
    let packages = ImageSource::Packages(vec![base().layer(), package().layer()]);
    let expected = map(&[
        ("usr", "/"),
        ("usr/lib", "/"),
        ("usr/lib/x", "1"),
        ("lib", "-> usr/lib"),
        (".wh.lib", "kept"),
    ]);
    assert_eq!(contents(packages), expected);
}

#[test]
fn what_leads_out_of_the_image_or_nowhere_is_refused() {
    let cases = [
        (archive().file("../x", ""), "../x"),
        (archive().file("a/../../x", ""), "`..`"),
        (archive().hard_link("x", "../../etc/shadow"), "`..`"),
        (archive().hard_link("x", "missing"), "missing"),
        (archive().directory("d/").hard_link("x", "d"), "directory"),
        (
            archive()
                .symlink("a", "b")
                .symlink("b", "a")
                .file("a/x", ""),
            "symbolic links",
        ),
        (archive().symlink("x", ""), "link target"),
        (archive().file("", ""), "name"),
        (archive().file("./", "root as a file"), "root"),
        (archive().file(".wh.", ""), "whiteout"),
        (archive().entry(b'M', "volume", "", b""), "'M'"),
        (
            archive()
                .file("x", "")
                .entry(b'L', "././@LongLink", "", b"name"),
            "describes nothing",
        ),
    ];
    for (archive, expected) in cases {
        let message = refuse(archive);
        assert!(message.contains(expected), "{message}");
    }
}

#[test]
fn every_limit_stops_something() {
    let layers = |archive: Archive| ImageSource::Layers(vec![archive.layer()]);
    let defaults = Limits::default;
    let many = || {
        (0..100).fold(archive(), |archive, n| {
            archive.file(&format!("file{n}"), "x")
        })
    };
    let hidden = || (0..20).fold(archive(), |a, n| a.file(&format!("{n}/{n}/{n}/x"), ""));
    let pax = "30 SCHILY.xattr.user.a=xxxxxx\n";
    assert_eq!(pax.len(), 30);
    let cases = [
        (
            many(),
            Limits {
                entries: 99,
                ..defaults()
            },
            "99 entries",
        ),
        (
            hidden(),
            Limits {
                entries: 79,
                ..defaults()
            },
            "79 entries",
        ),
        (
            many(),
            Limits {
                metadata_bytes: 400,
                ..defaults()
            },
            "400 bytes of names",
        ),
        (
            many(),
            Limits {
                layer_bytes: 10_000,
                ..defaults()
            },
            "10000 bytes",
        ),
        (
            many(),
            Limits {
                total_bytes: 10_000,
                ..defaults()
            },
            "10000 bytes",
        ),
        (
            many(),
            Limits {
                path_bytes: 4,
                ..defaults()
            },
            "4 bytes",
        ),
        (
            many(),
            Limits {
                path_steps: 0,
                ..defaults()
            }
            .clone(),
            "",
        ),
        (
            archive()
                .entry(b'x', "pax", "", pax.as_bytes())
                .file("x", ""),
            Limits {
                xattr_bytes: 11,
                ..defaults()
            },
            "11 bytes",
        ),
        (
            archive()
                .entry(b'x', "pax", "", pax.as_bytes())
                .file("x", ""),
            Limits {
                extended_header_bytes: 29,
                ..defaults()
            },
            "29 bytes",
        ),
        (
            archive().file("x", "12345"),
            Limits {
                file_bytes: 4,
                ..defaults()
            },
            "`x`: file larger than 4",
        ),
        (
            archive().file("a/b/c/x", ""),
            Limits {
                path_steps: 2,
                ..defaults()
            },
            "2 directory",
        ),
        (
            archive().file("x", ""),
            Limits {
                layers: 0,
                ..defaults()
            },
            "at most 0",
        ),
    ];
    for (archive, limits, expected) in cases {
        match import(layers(archive), &limits) {
            Ok(()) => assert_eq!(expected, "", "{limits:?}"),
            Err(error) => assert!(error.to_string().contains(expected), "{error}"),
        }
    }
}

#[test]
fn a_decompression_bomb_stops_at_the_limit() {
    let zeros = std::io::Read::take(std::io::repeat(0), 1 << 30);
    let mut bomb = Vec::new();
    zstd::stream::copy_encode(zeros, &mut bomb, 1).unwrap();
    let source = ImageSource::Stream(Box::new(Cursor::new(bomb)));
    let limits = Limits {
        layer_bytes: 16 << 20,
        ..Limits::default()
    };
    let error = import(source, &limits).unwrap_err();
    assert!(matches!(error, ImageError::LayerTooLarge { .. }), "{error}");
}

#[test]
fn archives_that_were_cut_off_are_refused() {
    let Archive(whole) = archive().file("a", "12345").file("b", &"x".repeat(2000));
    for length in [100, 512 + 3, 1024 + 100, 1536 + 1000] {
        let cut = whole[..length].to_vec();
        let source = ImageSource::Stream(Box::new(Cursor::new(cut)));
        let error = import(source, &Limits::default()).unwrap_err();
        assert!(error.to_string().contains("too early"), "{length}: {error}");
    }
}

#[test]
fn images_without_files_are_refused() {
    for source in [
        ImageSource::Layers(Vec::new()),
        ImageSource::Layers(vec![archive().layer()]),
        ImageSource::Stream(Box::new(Cursor::new(Vec::new()))),
    ] {
        let error = import(source, &Limits::default()).unwrap_err();
        assert!(matches!(error, ImageError::Empty(_)), "{error}");
    }
}
