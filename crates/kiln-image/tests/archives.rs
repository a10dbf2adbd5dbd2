//! Images from files: archives as Docker, Podman and skopeo write them, and bare root filesystems.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "tests"
)]

mod support;

use std::path::{Path, PathBuf};
use std::process::Command;

use kiln_image::library::{ImageLibrary, ImageQuery, ImportRequest, LibraryConfig, LibraryError};
use kiln_image::oci::{ImageConfig, Platform};
use kiln_image::{ArchiveError, Limits, Silent};
use support::registry::{Layout, Packing, have_tools, noise, tar_of};
use support::{fsck, run, skip};

struct Bench {
    directory: tempfile::TempDir,
}

impl Bench {
    fn new() -> Bench {
        Bench {
            directory: tempfile::tempdir().unwrap(),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn library(&self, name: &str) -> ImageLibrary {
        ImageLibrary::open(self.path(name), LibraryConfig::default()).unwrap()
    }

    /// A layout with one image of two layers.
    fn layout(&self) -> Layout {
        self.layout_packed(Packing::Zstd)
    }

    fn layout_packed(&self, second: Packing) -> Layout {
        let mut layout = Layout::new(self.path("layout"));
        let layers = [
            (
                tar_of(&[("etc/a", b"1"), ("big", &noise(1, 300_000))]),
                Packing::Gzip,
            ),
            (tar_of(&[("etc/b", b"2"), ("etc/.wh.a", b"")]), second),
        ];
        let image = layout.image(
            &Platform::host().architecture,
            r#"{"Cmd":["/bin/b"]}"#,
            &layers,
        );
        layout.tag(&image, "example.com/app:1");
        layout
    }
}

fn import(
    library: &ImageLibrary,
    path: &Path,
) -> Result<Vec<kiln_image::library::ImageInfo>, LibraryError> {
    library.import(&ImportRequest::new(path), &Silent)
}

#[test]
fn layouts_and_their_archives_give_one_image() {
    let bench = Bench::new();
    let layout = bench.layout();
    let archive = bench.path("image.tar");
    run(Command::new("tar")
        .arg("-C")
        .arg(&layout.path)
        .arg("-cf")
        .arg(&archive)
        .arg("."));
    let packed = bench.path("image.tar.gz");
    run(Command::new("sh")
        .arg("-c")
        .arg("gzip -c \"$0\" > \"$1\"")
        .arg(&archive)
        .arg(&packed));
    let mut rootfs = Vec::new();
    for (number, path) in [&layout.path, &archive, &packed].into_iter().enumerate() {
        let library = bench.library(&format!("store{number}"));
        let [image] = &import(&library, path).unwrap()[..] else {
            panic!("one image")
        };
        fsck(&image.rootfs.path);
        assert_eq!(image.names, ["example.com/app:1"]);
        assert_eq!(
            (image.layers.len(), image.config.cmd.as_slice()),
            (2, &["/bin/b".to_owned()][..])
        );
        assert!(image.manifest.is_some());
        rootfs.push(std::fs::read(&image.rootfs.path).unwrap());
        // Again: the same, from what is here.
        assert_eq!(import(&library, path).unwrap()[0].id, image.id);
        assert_eq!(library.list(&ImageQuery { all: true }).unwrap().len(), 1);
        assert_eq!(
            std::fs::read_dir(library.store().root().join("tmp"))
                .unwrap()
                .count(),
            0
        );
    }
    assert!(rootfs.iter().all(|bytes| *bytes == rootfs[0]));
}

#[test]
fn what_docker_saves_is_loaded() {
    if !have_tools() {
        return skip("what_docker_saves_is_loaded", "no skopeo");
    }
    let bench = Bench::new();
    let layout = bench.layout_packed(Packing::Gzip);
    let saved = bench.path("saved.tar");
    run(Command::new("skopeo")
        .args(["copy", "--quiet", "--insecure-policy"])
        .arg(format!("oci:{}:example.com/app:1", layout.path.display()))
        .arg(format!(
            "docker-archive:{}:example.com/saved:2",
            saved.display()
        )));
    let library = bench.library("store");
    let [image] = &import(&library, &saved).unwrap()[..] else {
        panic!("one image")
    };
    fsck(&image.rootfs.path);
    assert_eq!(image.names, ["example.com/saved:2"]);
    assert_eq!(image.config.cmd, ["/bin/b"]);
    // The same layers as the layout's, however they were packed: the same block image.
    let [direct] = &import(&library, &layout.path).unwrap()[..] else {
        panic!("one image")
    };
    assert_eq!(direct.rootfs.id, image.rootfs.id);
}

/// As Dockers before 25 wrote: a directory per layer, equal layers as symlinks.
#[test]
fn old_docker_archives_with_links_are_loaded() {
    let bench = Bench::new();
    let tree = bench.path("old");
    let id = "ab".repeat(32);
    let other = "cd".repeat(32);
    let layer = tar_of(&[("f", b"x")]);
    std::fs::create_dir_all(tree.join(&id)).unwrap();
    std::fs::create_dir_all(tree.join(&other)).unwrap();
    std::fs::write(tree.join(&id).join("layer.tar"), &layer).unwrap();
    std::os::unix::fs::symlink(
        format!("../{id}/layer.tar"),
        tree.join(&other).join("layer.tar"),
    )
    .unwrap();
    let diff_id = kiln_image::oci::Digest::of(&layer);
    let config = format!(
        r#"{{"architecture":"{}","os":"linux","config":{{}},"rootfs":{{"type":"layers","diff_ids":["{diff_id}","{diff_id}"]}}}}"#,
        Platform::host().architecture
    );
    std::fs::write(tree.join(format!("{id}.json")), config).unwrap();
    let manifest = format!(
        r#"[{{"Config":"{id}.json","RepoTags":["old:1","bad name"],"Layers":["{id}/layer.tar","{other}/layer.tar"]}}]"#
    );
    std::fs::write(tree.join("manifest.json"), &manifest).unwrap();
    let archive = bench.path("old.tar");
    run(Command::new("tar")
        .arg("-C")
        .arg(&tree)
        .arg("-cf")
        .arg(&archive)
        .arg("."));
    let library = bench.library("store");
    let [image] = &import(&library, &archive).unwrap()[..] else {
        panic!("one image")
    };
    assert_eq!(image.names, ["docker.io/library/old:1"]);
    fsck(&image.rootfs.path);
    // Named by the caller.
    let request = ImportRequest {
        name: Some("mine:3".parse().unwrap()),
        ..ImportRequest::new(&archive)
    };
    let [image] = &library.import(&request, &Silent).unwrap()[..] else {
        panic!("one image")
    };
    assert_eq!(image.names.len(), 2);
    // A layer that is not there, and ones that lead out, to where it is.
    std::fs::write(bench.path("outside"), &layer).unwrap();
    std::os::unix::fs::symlink("../outside", tree.join("link")).unwrap();
    std::os::unix::fs::symlink(bench.path("outside"), tree.join("absolute")).unwrap();
    let outside = bench.path("outside").display().to_string();
    for (path, what) in [
        ("gone/layer.tar", "missing"),
        ("../outside", "missing"),
        ("link", "missing"),
        ("absolute", "missing"),
        (&outside, "missing"),
    ] {
        std::fs::write(
            tree.join("manifest.json"),
            manifest.replace(&format!("{other}/layer.tar"), path),
        )
        .unwrap();
        run(Command::new("tar")
            .arg("-C")
            .arg(&tree)
            .arg("-cf")
            .arg(&archive)
            .arg("."));
        for source in [&archive, &tree] {
            let error = import(&library, source).unwrap_err().to_string();
            assert!(error.contains(what), "{error}");
        }
    }
}

#[test]
fn bare_root_filesystems_get_a_config_from_the_caller() {
    let bench = Bench::new();
    let tree = bench.path("tree");
    std::fs::create_dir_all(tree.join("bin")).unwrap();
    std::fs::write(tree.join("bin/x"), b"x").unwrap();
    // A file of that name says nothing by itself.
    std::fs::write(tree.join("manifest.json"), b"{}").unwrap();
    let tar = bench.path("tree.tar");
    run(Command::new("tar")
        .arg("-C")
        .arg(&tree)
        .arg("-cf")
        .arg(&tar)
        .arg("."));
    let mut sources = vec![tree.clone(), tar.clone()];
    for (program, ending) in [("gzip", "gz"), ("xz", "xz"), ("zstd", "zst")] {
        let packed = bench.path(&format!("tree.tar.{ending}"));
        let output = Command::new(program).arg("-c").arg(&tar).output();
        match output {
            Ok(output) if output.status.success() => {
                std::fs::write(&packed, output.stdout).unwrap();
                sources.push(packed);
            }
            _ => skip(
                "bare_root_filesystems_get_a_config_from_the_caller",
                program,
            ),
        }
    }
    let library = bench.library("store");
    let config = ImageConfig {
        cmd: vec!["/bin/x".into()],
        ..ImageConfig::default()
    };
    for source in &sources {
        let request = ImportRequest {
            name: Some("bare:1".parse().unwrap()),
            config: config.clone(),
            ..ImportRequest::new(source)
        };
        let [image] = &library.import(&request, &Silent).unwrap()[..] else {
            panic!("one image")
        };
        fsck(&image.rootfs.path);
        assert_eq!(
            (image.config.clone(), image.layers.len()),
            (config.clone(), 0)
        );
        assert_eq!(library.inspect("bare:1").unwrap().id, image.id);
    }
    // The tars are one image, the directory (with its own times of directories) perhaps another.
    assert!(library.list(&ImageQuery { all: true }).unwrap().len() <= 2);
    let unnamed = import(&library, &tar).unwrap();
    assert_eq!(unnamed.len(), 1);
}

#[test]
fn lying_and_damaged_archives_are_refused_whole() {
    let bench = Bench::new();
    let layout = bench.layout();
    let library = bench.library("store");
    let blobs = layout.path.join("blobs/sha256");
    let whole: Vec<(PathBuf, Vec<u8>)> = std::fs::read_dir(&blobs)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .map(|path| (path.clone(), std::fs::read(&path).unwrap()))
        .collect();
    for (path, bytes) in &whole {
        let mut damaged = bytes.clone();
        let middle = damaged.len() / 2;
        damaged[middle] ^= 1;
        for wrong in [damaged, bytes[..middle].to_vec(), Vec::new()] {
            std::fs::write(path, wrong).unwrap();
            let error = import(&library, &layout.path).unwrap_err();
            let archive = matches!(
                error,
                LibraryError::Archive {
                    source: ArchiveError::WrongDigest(_),
                    ..
                }
            );
            assert!(archive, "{error}");
        }
        std::fs::remove_file(path).unwrap();
        let error = import(&library, &layout.path).unwrap_err();
        let missing = matches!(
            error,
            LibraryError::Archive {
                source: ArchiveError::Missing(_),
                ..
            }
        );
        assert!(missing, "{error}");
        std::fs::write(path, bytes).unwrap();
    }
    assert!(library.store().list().unwrap().is_empty());
    assert!(library.list(&ImageQuery { all: true }).unwrap().is_empty());
    // Longer than its descriptor says.
    let (path, bytes) = whole.iter().max_by_key(|(_, bytes)| bytes.len()).unwrap();
    std::fs::write(path, [&bytes[..], b"more"].concat()).unwrap();
    assert!(import(&bench.library("fresh"), &layout.path).is_err());
}

#[test]
fn limits_hold_for_archives_too() {
    let bench = Bench::new();
    let layout = bench.layout();
    let config = LibraryConfig {
        limits: Limits {
            layer_bytes: 100_000,
            ..Limits::default()
        },
        ..LibraryConfig::default()
    };
    let library = ImageLibrary::open(bench.path("store"), config).unwrap();
    let error = import(&library, &layout.path).unwrap_err();
    assert!(error.to_string().contains("100000 bytes"), "{error}");
    assert!(library.store().list().unwrap().is_empty());
}
