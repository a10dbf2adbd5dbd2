//! A kernel bundle from the real package archive, through the host's apt.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "a test fails by panicking and tells what it skips and measures"
)]

use std::path::Path;
use std::process::Command;
use std::time::Instant;

use kiln_image::debian::AptSource;
use kiln_image::initramfs;
use kiln_image::kernel::{Architecture, KernelSource, KernelStore, check_vmlinux, module_info};
use kiln_image::{Progress, ProgressEvent, Silent};

struct Print;

impl Progress for Print {
    fn report(&self, event: ProgressEvent) {
        eprintln!("{event:?}");
    }
}

/// The store of a real Debian kernel, or `None` where this machine cannot have one.
fn debian_store(test: &str, root: &Path) -> Option<KernelStore> {
    let has_apt = Command::new("apt-get").arg("--version").output().is_ok();
    if !has_apt {
        eprintln!("SKIPPED: {test}: apt is not installed");
        return None;
    }
    let store = KernelStore::open(root).unwrap();
    let begin = Instant::now();
    match store.ensure(&KernelSource::Debian, &Print) {
        Ok(bundle) => {
            eprintln!("{} in {:?}", bundle.source, begin.elapsed());
            Some(store)
        }
        Err(error @ kiln_image::kernel::KernelError::Apt(_)) => {
            eprintln!(
                "SKIPPED: {test}: {error}: {:?}",
                std::error::Error::source(&error)
            );
            None
        }
        Err(error) => panic!("{error}: {:?}", std::error::Error::source(&error)),
    }
}

#[test]
fn a_debian_kernel_becomes_a_bundle_that_repairs_itself() {
    let directory = tempfile::tempdir().unwrap();
    let test = "a_debian_kernel_becomes_a_bundle_that_repairs_itself";
    let Some(store) = debian_store(test, directory.path()) else {
        return;
    };

    let begin = Instant::now();
    let bundle = store.ensure(&KernelSource::Debian, &Silent).unwrap();
    eprintln!("again in {:?}", begin.elapsed());
    let vmlinux = std::fs::read(&bundle.vmlinux).unwrap();
    check_vmlinux(&vmlinux, Architecture::host()).unwrap();
    eprintln!(
        "vmlinux: {} bytes, release {}",
        vmlinux.len(),
        bundle.release
    );
    assert!(bundle.source.contains(&bundle.release));
    assert!(bundle.config.is_some());

    let names: Vec<&str> = bundle
        .modules
        .iter()
        .map(|module| module.file.as_str())
        .collect();
    eprintln!("{names:?}");
    let place = |file: &str| names.iter().position(|name| *name == file);
    if Architecture::host() == Architecture::X86_64 {
        assert!(place("virtio_ring.ko") < place("virtio.ko"));
        assert!(place("vsock.ko") < place("vmw_vsock_virtio_transport.ko"));
        for file in [
            "virtio_blk.ko",
            "overlay.ko",
            "virtio_console.ko",
            "virtio-rng.ko",
        ] {
            assert!(place(file).is_some(), "{file}");
        }
    }
    for module in &bundle.modules {
        let info = module_info(&std::fs::read(&module.path).unwrap()).unwrap();
        assert!(info.vermagic.starts_with(&bundle.release));
    }

    let agent = vec![0x5a; 1_500_000];
    let begin = Instant::now();
    let archive = initramfs::build(&agent, &bundle).unwrap();
    eprintln!(
        "initramfs: {} bytes in {:?}",
        archive.len(),
        begin.elapsed()
    );
    assert!(archive.len() < 6 << 20);

    std::fs::write(&bundle.modules[0].path, b"damaged").unwrap();
    assert_eq!(store.get(&bundle.id), None);
    // A new store has no memory of what was verified; the package is still here.
    let store = KernelStore::open(directory.path()).unwrap();
    assert_eq!(
        store.ensure(&KernelSource::Debian, &Silent).unwrap(),
        bundle
    );
}

#[test]
fn a_host_without_package_lists_gets_its_own() {
    let test = "a_host_without_package_lists_gets_its_own";
    if Command::new("apt-get").arg("--version").output().is_err() {
        eprintln!("SKIPPED: {test}: apt is not installed");
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let begin = Instant::now();
    let apt = match AptSource::open_fresh(directory.path(), &Print) {
        Ok(apt) => apt,
        Err(error) => {
            eprintln!("SKIPPED: {test}: {error}");
            return;
        }
    };
    eprintln!("fresh lists in {:?}", begin.elapsed());
    let package = apt.candidate("base-files").unwrap();
    let debs = apt
        .download(std::slice::from_ref(&package), &Silent)
        .unwrap();
    assert_eq!(std::fs::metadata(&debs[0]).unwrap().len(), package.size);
    let lists = std::fs::read_dir(directory.path().join("state/lists")).unwrap();
    assert!(lists.count() > 2, "the lists are ours, not the host's");
}
