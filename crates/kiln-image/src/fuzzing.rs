//! Doors for the fuzz targets; nothing for users.

use std::io::Cursor;
use std::os::fd::AsFd;

use crate::content::Contents;
use crate::ext4::{self, Format, Room};
use crate::limits::{Budget, Limits};
use crate::oci::{Document, ImageDocument, Overrides, Reference};
use crate::tree::{LayerRules, Tree};

/// Takes the bytes for two layers, split by the first byte, and writes what comes of them.
pub fn layers(bytes: &[u8]) {
    let Some((split, bytes)) = bytes.split_first() else {
        return;
    };
    let mut bytes = bytes.to_vec();
    bytes.chunks_exact_mut(512).for_each(sum_up);
    let split = bytes.len().min(usize::from(*split) * 512);
    let (lower, upper) = bytes.split_at(split);
    let limits = Limits {
        file_bytes: 1 << 40,
        entries: 10_000,
        ..Limits::default()
    };
    let budget = Budget::new(&limits);
    let mut tree = Tree::new();
    let mut contents = Contents::default();
    for (number, layer) in (0u32..).zip([lower, upper]) {
        if tree
            .apply(Cursor::new(layer), number, LayerRules::Overlay, &budget)
            .is_err()
        {
            return;
        }
        let Ok(file) = memory_file(layer) else { return };
        contents.layers.push(file);
    }
    let Ok(out) = memory_file(b"") else { return };
    let format = Format {
        checksum_seed: 7,
        hash_seed: [1, 2, 3, 4],
        clock: 1,
        label: "fuzz",
        room: Room::ReadOnly,
    };
    if let Ok(unsealed) = ext4::write(&tree, &contents, &out, &format, &mut |_| {})
        && unsealed.seal(&out, &[7; 16]).is_ok()
    {
        crate::export::fuzz(&out);
    }
}

/// Takes the bytes for changes to a small image (place and value), and exports what comes of them.
pub fn export(bytes: &[u8]) {
    let Ok(image) = memory_file(SMALL_IMAGE.get_or_init(small_image)) else {
        return;
    };
    for change in bytes.chunks_exact(4) {
        let place = u64::from(u32::from_le_bytes([change[0], change[1], change[2], 0]));
        if std::os::unix::fs::FileExt::write_all_at(&image, &change[3..], place).is_err() {
            return;
        }
    }
    crate::export::fuzz(&image);
}

static SMALL_IMAGE: std::sync::OnceLock<Vec<u8>> = std::sync::OnceLock::new();

/// One file, one symlink, one directory.
fn small_image() -> Vec<u8> {
    let mut layer = Vec::new();
    for (name, kind, link, size) in [
        ("d/", b'5', "", 0),
        ("d/f", b'0', "", 600),
        ("s", b'2', "d/f", 0),
    ] {
        let mut block = [0; 512];
        block[..name.len()].copy_from_slice(name.as_bytes());
        block[100..107].copy_from_slice(b"0000644");
        block[124..135].copy_from_slice(format!("{size:011o}").as_bytes());
        block[156] = kind;
        block[157..157 + link.len()].copy_from_slice(link.as_bytes());
        block[257..265].copy_from_slice(b"ustar\x0000");
        sum_up(&mut block);
        layer.extend(block);
        layer.resize(layer.len() + usize::div_ceil(size, 512) * 512, b'x');
    }
    let budget = Budget::new(&Limits::default());
    let mut tree = Tree::new();
    let mut contents = Contents::default();
    let applied = tree.apply(Cursor::new(&layer), 0, LayerRules::Plain, &budget);
    let (Ok(()), Ok(file), Ok(out)) = (applied, memory_file(&layer), memory_file(b"")) else {
        return Vec::new();
    };
    contents.layers.push(file);
    let format = Format {
        checksum_seed: 7,
        hash_seed: [1, 2, 3, 4],
        clock: 1,
        label: "fuzz",
        room: Room::ReadOnly,
    };
    if let Ok(unsealed) = ext4::write(&tree, &contents, &out, &format, &mut |_| {}) {
        let _ = unsealed.seal(&out, &[7; 16]);
    }
    let mut image = vec![0; out.metadata().map_or(0, |metadata| metadata.len()) as usize];
    let _ = std::os::unix::fs::FileExt::read_exact_at(&out, &mut image, 0);
    image
}

/// Takes the bytes for every kind of text that a registry, an archive or a user gives, by the first
/// byte.
pub fn oci(bytes: &[u8]) {
    let Some((kind, bytes)) = bytes.split_first() else {
        return;
    };
    let text = String::from_utf8_lossy(bytes);
    match kind % 8 {
        0 => {
            if let Ok(reference) = text.parse::<Reference>() {
                assert_eq!(reference.to_string().parse().as_ref(), Ok(&reference));
                assert_eq!(reference.familiar().parse().as_ref(), Ok(&reference));
            }
        }
        1 => {
            let _ = Document::parse(bytes);
        }
        2 => {
            if let Ok(document) = ImageDocument::parse(bytes) {
                let _ = document.config.process(&Overrides::default());
                let again = ImageDocument::parse(&document.to_bytes());
                assert!(again.is_ok_and(|again| again.config == document.config));
            }
        }
        3 => crate::registry::fuzz_challenge(&text),
        4 => crate::registry::fuzz_retry_after(&text),
        5 => crate::bundle::fuzz_listing(&text),
        6 => crate::bundle::fuzz_manifest(bytes),
        _ => {
            let mut archive = bytes.to_vec();
            archive.chunks_exact_mut(512).for_each(sum_up);
            crate::archive::fuzz(&archive);
        }
    }
}

/// Gives what looks like a header a right checksum, which chance would never find.
fn sum_up(block: &mut [u8]) {
    if &block[257..262] == b"ustar" {
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        block[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    }
}

fn memory_file(bytes: &[u8]) -> std::io::Result<std::fs::File> {
    let memory = rustix::fs::memfd_create("fuzz", rustix::fs::MemfdFlags::CLOEXEC)?;
    rustix::io::write(memory.as_fd(), bytes)?;
    Ok(memory.into())
}
