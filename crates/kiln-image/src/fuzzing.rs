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
        uuid: [7; 16],
        hash_seed: [1, 2, 3, 4],
        clock: 1,
        label: "fuzz",
        room: Room::ReadOnly,
    };
    let _ = ext4::write(&tree, &contents, &out, &format, &mut |_| {});
}

/// Takes the bytes for every kind of text that a registry, an archive or a user gives, by the first
/// byte.
pub fn oci(bytes: &[u8]) {
    let Some((kind, bytes)) = bytes.split_first() else {
        return;
    };
    let text = String::from_utf8_lossy(bytes);
    match kind % 6 {
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
