//! Images written out again: as files for any tar, as archives for any container tool.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "tests"
)]

mod support;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use kiln_image::library::{
    ImageInfo, ImageLibrary, ImportRequest, LibraryConfig, LibraryError, PruneRequest,
};
use kiln_image::oci::{ImageConfig, Platform};
use kiln_image::{ExportError, Silent};
use support::registry::{Layout, Packing, have_tools, noise, tar_of};
use support::{Mount, assert_same, fsck, is_root, make_nasty_tree, run, scan, skip};

fn library(root: &Path) -> ImageLibrary {
    ImageLibrary::open(root, LibraryConfig::default()).unwrap()
}

fn import(library: &ImageLibrary, path: &Path, name: &str) -> ImageInfo {
    let request = ImportRequest {
        name: Some(name.parse().unwrap()),
        config: ImageConfig {
            cmd: vec!["/bin/x".into()],
            ..ImageConfig::default()
        },
        ..ImportRequest::new(path)
    };
    library.import(&request, &Silent).unwrap().remove(0)
}

fn export(library: &ImageLibrary, key: &str, to: &Path) {
    library
        .export(key, &mut File::create(to).unwrap(), &Silent)
        .unwrap();
}

fn save(library: &ImageLibrary, key: &str, to: &Path) {
    library
        .save(key, &mut File::create(to).unwrap(), &Silent)
        .unwrap();
}

#[test]
fn what_is_exported_is_what_was_imported_whatever_it_was() {
    if !is_root() {
        return skip(
            "what_is_exported_is_what_was_imported_whatever_it_was",
            "needs root for devices and mounts",
        );
    }
    let temp = tempfile::tempdir().unwrap();
    let tree = temp.path().join("tree");
    std::fs::create_dir(&tree).unwrap();
    make_nasty_tree(&tree);
    // Archives cannot hold them.
    for entry in std::fs::read_dir(&tree).unwrap() {
        use std::os::unix::fs::FileTypeExt;
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_socket() {
            std::fs::remove_file(entry.path()).unwrap();
        }
    }
    let library = library(&temp.path().join("store"));
    let first = import(&library, &tree, "nasty:1");
    let (tar, again) = (temp.path().join("out.tar"), temp.path().join("again.tar"));
    export(&library, "nasty:1", &tar);
    let second = import(&library, &tar, "nasty:2");
    fsck(&second.rootfs.path);
    export(&library, "nasty:2", &again);
    assert!(
        std::fs::read(&tar).unwrap() == std::fs::read(&again).unwrap(),
        "exports differ"
    );
    let (a, b) = (
        Mount::new(&first.rootfs.path, "ro"),
        Mount::new(&second.rootfs.path, "ro"),
    );
    assert_same(&scan(a.path()), &scan(b.path()));
    // Holes stayed holes: the tree has many times its data in them.
    assert!(tar.metadata().unwrap().len() < 40 << 20);
    // A second opinion on the archive.
    let unpacked = temp.path().join("unpacked");
    std::fs::create_dir(&unpacked).unwrap();
    run(Command::new("tar")
        .args(["--xattrs", "--xattrs-include=*", "--numeric-owner", "-C"])
        .arg(&unpacked)
        .arg("-xf")
        .arg(&tar));
    let (mut theirs, mut ours) = (scan(&unpacked), scan(a.path()));
    for facts in theirs.values_mut().chain(ours.values_mut()) {
        // GNU tar does not restore access lists that come as attributes.
        facts
            .xattrs
            .retain(|(name, _)| !name.starts_with(b"system."));
    }
    assert_same(&ours, &theirs);
}

fn layered(temp: &Path) -> PathBuf {
    let mut layout = Layout::new(temp.join("layout"));
    let layers = [
        (
            tar_of(&[("etc/a", b"1"), ("big", &noise(1, 200_000))]),
            Packing::Gzip,
        ),
        (tar_of(&[("etc/b", b"2")]), Packing::Gzip),
    ];
    let image = layout.image(
        &Platform::host().architecture,
        r#"{"Cmd":["/bin/b"],"User":"7:8"}"#,
        &layers,
    );
    layout.tag(&image, "example.com/app:1");
    layout.path
}

#[test]
fn a_saved_image_keeps_its_layers_and_digests() {
    let temp = tempfile::tempdir().unwrap();
    let layout = layered(temp.path());
    let first = library(&temp.path().join("store"));
    let image = first
        .import(&ImportRequest::new(&layout), &Silent)
        .unwrap()
        .remove(0);
    first
        .tag("example.com/app:1", &"other:2".parse().unwrap())
        .unwrap();
    let (saved, again) = (temp.path().join("saved.tar"), temp.path().join("again.tar"));
    save(&first, "other:2", &saved);
    save(&first, &image.id.hex(), &again);
    assert!(std::fs::read(&saved).unwrap() == std::fs::read(&again).unwrap());
    let second = library(&temp.path().join("store2"));
    let images = second.import(&ImportRequest::new(&saved), &Silent).unwrap();
    assert_eq!(images.len(), 2, "one per name");
    for loaded in &images {
        assert_eq!(
            (loaded.id, loaded.manifest, &loaded.layers),
            (image.id, image.manifest, &image.layers)
        );
    }
    assert_eq!(second.inspect("other:2").unwrap().names.len(), 2);
    if !have_tools() {
        return skip(
            "a_saved_image_keeps_its_layers_and_digests (skopeo)",
            "no skopeo",
        );
    }
    // As OCI, and as what Docker loads.
    first.remove("other:2", false, &|_| false).unwrap();
    save(&first, "example.com/app:1", &saved);
    for kind in ["oci-archive", "docker-archive"] {
        let copy = temp.path().join(kind);
        run(Command::new("skopeo")
            .args(["copy", "--quiet", "--insecure-policy"])
            .arg(format!("{kind}:{}", saved.display()))
            .arg(format!("oci:{}:x", copy.display())));
        let third = library(&temp.path().join(format!("store-{kind}")));
        let loaded = third
            .import(&ImportRequest::new(&copy), &Silent)
            .unwrap()
            .remove(0);
        assert_eq!(loaded.rootfs.id, image.rootfs.id, "{kind}");
        assert_eq!(loaded.config, image.config);
    }
}

#[test]
fn without_its_layers_an_image_is_saved_as_one() {
    let temp = tempfile::tempdir().unwrap();
    let layout = layered(temp.path());
    let first = library(&temp.path().join("store"));
    let image = first
        .import(&ImportRequest::new(&layout), &Silent)
        .unwrap()
        .remove(0);
    let pruned = first
        .prune(
            &PruneRequest {
                layers: true,
                ..PruneRequest::default()
            },
            &|_| false,
        )
        .unwrap();
    assert!(pruned.freed_bytes > 100_000 && pruned.images.is_empty());
    let saved = temp.path().join("saved.tar");
    save(&first, "example.com/app:1", &saved);
    let second = library(&temp.path().join("store2"));
    let loaded = second
        .import(&ImportRequest::new(&saved), &Silent)
        .unwrap()
        .remove(0);
    assert_eq!(
        (&loaded.config, loaded.layers.len(), &loaded.names),
        (&image.config, 1, &image.names)
    );
    fsck(&loaded.rootfs.path);
    if is_root() {
        let (a, b) = (
            Mount::new(&image.rootfs.path, "ro"),
            Mount::new(&loaded.rootfs.path, "ro"),
        );
        assert_same(&scan(a.path()), &scan(b.path()));
    }
    if have_tools() {
        run(Command::new("skopeo")
            .args(["inspect", "--config"])
            .arg(format!("oci-archive:{}", saved.display())));
    }
}

#[test]
fn names_that_would_delete_are_not_put_into_a_layer() {
    let temp = tempfile::tempdir().unwrap();
    let tree = temp.path().join("tree");
    std::fs::create_dir(&tree).unwrap();
    std::fs::write(tree.join(".wh.x"), b"a file like any other").unwrap();
    let library = library(&temp.path().join("store"));
    import(&library, &tree, "odd:1");
    let error = library
        .save("odd:1", &mut std::io::sink(), &Silent)
        .unwrap_err();
    assert!(
        matches!(
            error,
            LibraryError::Export {
                source: ExportError::Whiteout(_),
                ..
            }
        ),
        "{error}"
    );
    // As files they are nothing special.
    export(&library, "odd:1", &temp.path().join("out.tar"));
}

#[test]
fn other_peoples_filesystems_are_read_as_far_as_they_are_known() {
    let temp = tempfile::tempdir().unwrap();
    let tree = temp.path().join("tree");
    std::fs::create_dir_all(tree.join("d")).unwrap();
    std::fs::write(tree.join("d/f"), noise(3, 100_000)).unwrap();
    std::os::unix::fs::symlink("d/f", tree.join("s")).unwrap();
    let library = library(&temp.path().join("store"));
    for (number, features) in [
        "ext4",
        "ext4 -O ^64bit,^metadata_csum -b 1024",
        "ext4 -I 128",
    ]
    .iter()
    .enumerate()
    {
        let image = temp.path().join(format!("image{number}"));
        run(Command::new("mke2fs")
            .args(["-q", "-t"])
            .args(features.split(' '))
            .arg("-d")
            .arg(&tree)
            .arg(&image)
            .arg("16M"));
        let name = format!("theirs:{number}");
        import(&library, &image, &name);
        let tar = temp.path().join("out.tar");
        export(&library, &name, &tar);
        let out = temp.path().join(format!("out{number}"));
        std::fs::create_dir(&out).unwrap();
        run(Command::new("tar").arg("-C").arg(&out).arg("-xf").arg(&tar));
        assert!(
            std::fs::read(out.join("d/f")).unwrap() == noise(3, 100_000),
            "{features}"
        );
        assert_eq!(std::fs::read_link(out.join("s")).unwrap(), Path::new("d/f"));
    }
    // Without extents it is another format: refused, not mangled.
    let old = temp.path().join("old");
    run(Command::new("mke2fs")
        .args(["-q", "-t", "ext2", "-d"])
        .arg(&tree)
        .arg(&old)
        .arg("16M"));
    import(&library, &old, "old:1");
    let error = library
        .export("old:1", &mut std::io::sink(), &Silent)
        .unwrap_err();
    assert!(
        matches!(
            error,
            LibraryError::Export {
                source: ExportError::Unsupported(_),
                ..
            }
        ),
        "{error}"
    );
}
