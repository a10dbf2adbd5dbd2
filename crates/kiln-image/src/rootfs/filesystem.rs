//! Existing filesystem images: told by their magic, checked as far as a superblock tells. What lies
//! deeper is for the guest's kernel, never for the host's.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// Filesystem of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Filesystem {
    /// Any of ext2 to ext4 that the ext4 driver mounts.
    Ext4,
    /// Squashfs 4.0.
    Squashfs,
    /// EROFS.
    Erofs,
}

impl Filesystem {
    /// The name under which Linux mounts it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Filesystem::Ext4 => "ext4",
            Filesystem::Squashfs => "squashfs",
            Filesystem::Erofs => "erofs",
        }
    }
}

/// What is wrong with a filesystem image.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FilesystemFault {
    /// The file is shorter than the filesystem in it.
    #[error("{filesystem} image is cut off: {expected} bytes expected, {found} found")]
    CutOff {
        /// Which.
        filesystem: &'static str,
        /// Bytes that the superblock tells of.
        expected: u64,
        /// Bytes of the file.
        found: u64,
    },
    /// The superblock makes no sense.
    #[error("{filesystem} image has a damaged superblock ({what})")]
    Superblock {
        /// Which.
        filesystem: &'static str,
        /// What makes no sense.
        what: &'static str,
    },
    /// The journal must be replayed first, which a read-only mount cannot.
    #[error("ext4 image was not unmounted cleanly; run `e2fsck -f` on it first")]
    Unclean,
}

/// The superblocks all lie within this.
const HEAD: usize = 4096;

/// Tells which filesystem a file holds; `None` if none that is known.
pub(crate) fn identify(file: &File) -> io::Result<Option<Result<Filesystem, FilesystemFault>>> {
    let length = file.metadata()?.len();
    let mut head = [0; HEAD];
    let read = read_up_to(file, &mut head)?;
    Ok(identify_head(&head[..read], length))
}

fn read_up_to(file: &File, buffer: &mut [u8]) -> io::Result<usize> {
    let mut read = 0;
    while read < buffer.len() {
        match file.read_at(&mut buffer[read..], read as u64)? {
            0 => break,
            length => read += length,
        }
    }
    Ok(read)
}

fn identify_head(head: &[u8], length: u64) -> Option<Result<Filesystem, FilesystemFault>> {
    if head.starts_with(b"hsqs") {
        return Some(check_squashfs(head, length).map(|()| Filesystem::Squashfs));
    }
    match head.get(1024..2048) {
        Some(superblock) if superblock[56..58] == [0x53, 0xEF] => {
            Some(check_ext4(superblock, length).map(|()| Filesystem::Ext4))
        }
        Some(superblock) if superblock[..4] == [0xE2, 0xE1, 0xF5, 0xE0] => {
            Some(check_erofs(superblock, length).map(|()| Filesystem::Erofs))
        }
        _ => None,
    }
}

fn u16_at(bytes: &[u8], at: usize) -> u64 {
    bytes
        .get(at..at + 2)
        .map_or(0, |b| u64::from(u16::from_le_bytes([b[0], b[1]])))
}

fn u32_at(bytes: &[u8], at: usize) -> u64 {
    u16_at(bytes, at) | (u16_at(bytes, at + 2) << 16)
}

fn check_length(
    filesystem: &'static str,
    expected: u64,
    found: u64,
) -> Result<(), FilesystemFault> {
    if found < expected {
        return Err(FilesystemFault::CutOff {
            filesystem,
            expected,
            found,
        });
    }
    Ok(())
}

fn check_ext4(superblock: &[u8], length: u64) -> Result<(), FilesystemFault> {
    const NEEDS_RECOVERY: u64 = 0x4;
    const JOURNAL_DEVICE: u64 = 0x8;
    const SIXTY_FOUR_BIT: u64 = 0x80;
    const METADATA_CSUM: u64 = 0x400;
    let broken = |what| FilesystemFault::Superblock {
        filesystem: "ext4",
        what,
    };
    let block_bits = u32_at(superblock, 24);
    if block_bits > 6 {
        return Err(broken("block size"));
    }
    let incompatible = u32_at(superblock, 96);
    if incompatible & JOURNAL_DEVICE != 0 {
        return Err(broken("it is a journal device"));
    }
    let high = if incompatible & SIXTY_FOUR_BIT != 0 {
        u32_at(superblock, 0x150) << 32
    } else {
        0
    };
    let blocks = high | u32_at(superblock, 4);
    if blocks == 0 || u32_at(superblock, 0) == 0 || u32_at(superblock, 40) == 0 {
        return Err(broken("counts"));
    }
    if u32_at(superblock, 100) & METADATA_CSUM != 0
        && u32_at(superblock, 1020) != u64::from(crate::ext4::superblock_checksum(superblock))
    {
        return Err(broken("checksum"));
    }
    check_length("ext4", blocks.saturating_mul(1024 << block_bits), length)?;
    if incompatible & NEEDS_RECOVERY != 0 {
        return Err(FilesystemFault::Unclean);
    }
    Ok(())
}

fn check_squashfs(head: &[u8], length: u64) -> Result<(), FilesystemFault> {
    let broken = |what| FilesystemFault::Superblock {
        filesystem: "squashfs",
        what,
    };
    if head.len() < 96 {
        return Err(broken("length"));
    }
    if (u16_at(head, 28), u16_at(head, 30)) != (4, 0) {
        return Err(broken("version is not 4.0"));
    }
    let (block_size, block_log) = (u32_at(head, 12), u16_at(head, 22));
    if !(12..=20).contains(&block_log) || block_size != 1 << block_log {
        return Err(broken("block size"));
    }
    check_length(
        "squashfs",
        u32_at(head, 40) | (u32_at(head, 44) << 32),
        length,
    )
}

fn check_erofs(superblock: &[u8], length: u64) -> Result<(), FilesystemFault> {
    let block_bits = superblock[12];
    if !(9..=16).contains(&block_bits) {
        return Err(FilesystemFault::Superblock {
            filesystem: "erofs",
            what: "block size",
        });
    }
    check_length("erofs", u32_at(superblock, 36) << block_bits, length)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_bytes_are_judged_without_a_panic(
            mut head in proptest::collection::vec(any::<u8>(), 0..4096),
            which in 0..4,
            length in any::<u64>(),
        ) {
            let magic: (usize, &[u8]) = match which {
                0 => (0, b"hsqs"),
                1 => (1080, &[0x53, 0xEF]),
                2 => (1024, &[0xE2, 0xE1, 0xF5, 0xE0]),
                _ => (0, b""),
            };
            if let Some(place) = head.get_mut(magic.0..magic.0 + magic.1.len()) {
                place.copy_from_slice(magic.1);
            }
            identify_head(&head, length);
        }
    }
}
