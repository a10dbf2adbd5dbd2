use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use super::super::bzimage::tests::{bzimage, lz4_legacy_payload};
use super::super::elf::tests::tiny_vmlinux;
use super::super::modinfo::tests::module;
use super::super::{ElfError, KernelError, KernelSource, KernelStore};
use crate::progress::{Progress, ProgressEvent, Silent};

const RELEASE: &str = "6.1.0-test";

/// A bootable set of modules in the layout of `/lib/modules/<release>`.
fn module_tree(root: &Path, release: &str) -> PathBuf {
    let tree = root.join("modules");
    fs::create_dir_all(tree.join("kernel/drivers")).unwrap();
    for (name, depends) in [
        ("virtio", "virtio_ring"),
        ("virtio_ring", ""),
        ("virtio_mmio", "virtio,virtio_ring"),
        ("virtio_blk", "virtio,virtio_ring"),
        ("overlay", ""),
    ] {
        let bytes = module(&format!("depends={depends};vermagic={release} SMP"));
        let packed = zstd::encode_all(bytes.as_slice(), 1).unwrap();
        fs::write(tree.join(format!("kernel/drivers/{name}.ko.zst")), packed).unwrap();
    }
    fs::write(tree.join("modules.builtin"), "kernel/fs/ext4/ext4.ko\n").unwrap();
    tree
}

fn local(root: &Path) -> KernelSource {
    let kernel = root.join("vmlinuz");
    let vmlinux = tiny_vmlinux(b"code");
    fs::write(
        &kernel,
        bzimage(&lz4_legacy_payload(&vmlinux), &format!("{RELEASE} #1")),
    )
    .unwrap();
    KernelSource::Local {
        kernel,
        modules: Some(module_tree(root, RELEASE)),
    }
}

fn files(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).unwrap();
    entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect()
}

/// Remembers what it is told.
#[derive(Default)]
struct Heard(Mutex<Vec<ProgressEvent>>);

impl Progress for Heard {
    fn report(&self, event: ProgressEvent) {
        self.0.lock().unwrap().push(event);
    }
}

#[test]
fn b1_4_a_kernel_by_its_path_becomes_a_bundle_and_is_reused() {
    let directory = tempfile::tempdir().unwrap();
    let source = local(directory.path());
    let store = KernelStore::open(&directory.path().join("store")).unwrap();
    let bundle = store.ensure(&source, &Silent).unwrap();
    assert_eq!(bundle.release, RELEASE);
    assert_eq!(fs::read(&bundle.vmlinux).unwrap(), tiny_vmlinux(b"code"));
    let names: Vec<&str> = bundle
        .modules
        .iter()
        .map(|module| module.file.as_str())
        .collect();
    let expected = [
        "virtio_ring",
        "virtio",
        "virtio_mmio",
        "virtio_blk",
        "overlay",
    ];
    assert_eq!(names, expected.map(|name| format!("{name}.ko")));
    assert_eq!(store.ensure(&source, &Silent).unwrap(), bundle);
    assert_eq!(files(&directory.path().join("store/bundles")), [bundle.id]);
}

#[test]
fn a_changed_kernel_or_module_gives_another_bundle() {
    let directory = tempfile::tempdir().unwrap();
    let source = local(directory.path());
    let store = KernelStore::open(&directory.path().join("store")).unwrap();
    let first = store.ensure(&source, &Silent).unwrap();
    let vmlinux = tiny_vmlinux(b"other code");
    let image = bzimage(&lz4_legacy_payload(&vmlinux), &format!("{RELEASE} #2"));
    fs::write(directory.path().join("vmlinuz"), image).unwrap();
    let second = store.ensure(&source, &Silent).unwrap();
    assert_ne!(first.id, second.id);
    let added = directory.path().join("modules/kernel/drivers/squashfs.ko");
    fs::write(added, module("depends=;x=y")).unwrap();
    let third = store.ensure(&source, &Silent).unwrap();
    assert!(
        third
            .modules
            .iter()
            .any(|module| module.file == "squashfs.ko")
    );
}

#[test]
fn every_damaged_file_is_noticed_and_repaired() {
    let directory = tempfile::tempdir().unwrap();
    let source = local(directory.path());
    let root = directory.path().join("store");
    let bundle = KernelStore::open(&root)
        .unwrap()
        .ensure(&source, &Silent)
        .unwrap();
    let home = root.join("bundles").join(&bundle.id);
    for file in ["vmlinux", "bundle.json", "modules/virtio.ko"] {
        let path = home.join(file);
        let mut bytes = fs::read(&path).unwrap();
        bytes[20] ^= 1;
        fs::write(&path, &bytes).unwrap();
        let store = KernelStore::open(&root).unwrap();
        assert_eq!(store.get(&bundle.id), None, "{file}");
        let heard = Heard::default();
        assert_eq!(store.ensure(&source, &heard).unwrap(), bundle, "{file}");
        assert!(matches!(
            heard.0.lock().unwrap()[..],
            [ProgressEvent::Note(_)]
        ));
        fs::remove_file(&path).unwrap();
        // The same store has verified the file before and must not rely on that.
        assert_eq!(store.ensure(&source, &Silent).unwrap(), bundle, "{file}");
    }
    assert_eq!(files(&root.join("bundles")), [bundle.id]);
}

#[test]
fn a_record_that_was_edited_is_not_believed() {
    let directory = tempfile::tempdir().unwrap();
    let source = local(directory.path());
    let root = directory.path().join("store");
    let store = KernelStore::open(&root).unwrap();
    let bundle = store.ensure(&source, &Silent).unwrap();
    let record = root.join("bundles").join(&bundle.id).join("bundle.json");
    let edited = fs::read_to_string(&record)
        .unwrap()
        .replace(RELEASE, "6.1.0-evil");
    fs::write(&record, edited).unwrap();
    assert_eq!(store.get(&bundle.id), None);
    assert_eq!(store.ensure(&source, &Silent).unwrap(), bundle);
}

#[test]
fn what_a_killed_builder_left_is_swept() {
    let directory = tempfile::tempdir().unwrap();
    let source = local(directory.path());
    let root = directory.path().join("store");
    let store = KernelStore::open(&root).unwrap();
    fs::create_dir_all(root.join("bundles/.partial-old/modules")).unwrap();
    fs::write(root.join("sources/garbage.json"), b"{").unwrap();
    let bundle = store.ensure(&source, &Silent).unwrap();
    assert_eq!(files(&root.join("bundles")), [bundle.id]);
}

#[test]
fn many_at_once_build_one_bundle() {
    let directory = tempfile::tempdir().unwrap();
    let source = local(directory.path());
    let root = directory.path().join("store");
    std::thread::scope(|scope| {
        // A store each, as in several processes: only the lock file stands between them.
        let build = || {
            KernelStore::open(&root)
                .unwrap()
                .ensure(&source, &Silent)
                .unwrap()
                .id
        };
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(build)).collect();
        let ids: Vec<String> = threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .collect();
        assert!(ids.iter().all(|id| *id == ids[0]));
    });
    assert_eq!(files(&root.join("bundles")).len(), 1);
}

#[test]
fn what_is_not_a_kernel_is_named_and_leaves_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let kernel = directory.path().join("kernel");
    let root = directory.path().join("store");
    let store = KernelStore::open(&root).unwrap();
    let source = KernelSource::Local {
        kernel: kernel.clone(),
        modules: None,
    };
    assert!(matches!(
        store.ensure(&source, &Silent),
        Err(KernelError::Io { .. })
    ));

    fs::write(&kernel, "#!/bin/sh\n").unwrap();
    let error = store.ensure(&source, &Silent).unwrap_err();
    let KernelError::NotAKernel {
        origin,
        source: cause,
    } = error
    else {
        panic!("{error}")
    };
    assert_eq!(origin, kernel.display().to_string());
    assert_eq!(cause, ElfError::NotElf { found: "a script" });

    fs::write(&kernel, bzimage(b"BZh9", "")).unwrap();
    assert!(matches!(
        store.ensure(&source, &Silent),
        Err(KernelError::Extract { .. })
    ));
    fs::write(&kernel, bzimage(&lz4_legacy_payload(b"not elf"), "")).unwrap();
    assert!(matches!(
        store.ensure(&source, &Silent),
        Err(KernelError::NotAKernel { .. })
    ));
    fs::write(&kernel, [0x1f, 0x8b, 8, 0, 0]).unwrap();
    assert!(matches!(
        store.ensure(&source, &Silent),
        Err(KernelError::Decompress { .. })
    ));
    assert!(files(&root.join("bundles")).is_empty());
    assert!(files(&root.join("sources")).is_empty());
}

#[test]
fn plain_and_compressed_kernels_are_accepted_without_modules() {
    let directory = tempfile::tempdir().unwrap();
    let kernel = directory.path().join("vmlinux");
    let store = KernelStore::open(&directory.path().join("store")).unwrap();
    let source = KernelSource::Local {
        kernel: kernel.clone(),
        modules: None,
    };
    let vmlinux = tiny_vmlinux(b"LLinux version 6.1.155+ (builder) #1\n");
    for bytes in [
        vmlinux.clone(),
        zstd::encode_all(vmlinux.as_slice(), 1).unwrap(),
    ] {
        fs::write(&kernel, bytes).unwrap();
        let bundle = store.ensure(&source, &Silent).unwrap();
        assert_eq!(bundle.release, "6.1.155+");
        assert!(bundle.modules.is_empty());
        assert_eq!(fs::read(&bundle.vmlinux).unwrap(), vmlinux);
    }
}

#[test]
fn modules_of_another_kernel_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let source = local(directory.path());
    module_tree(directory.path(), "5.10.0-other");
    let store = KernelStore::open(&directory.path().join("store")).unwrap();
    let error = store.ensure(&source, &Silent).unwrap_err();
    assert!(matches!(error, KernelError::WrongModules { .. }), "{error}");
}
