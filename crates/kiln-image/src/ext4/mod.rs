//! Writes ext4 filesystems from a [`Tree`]: read-only images without a byte to spare, and writable
//! disks with a journal. The whole layout is planned from the tree, then written once from front to
//! back; the same tree gives the same bytes. Needs no privilege and mounts nothing.
//!
//! Layout: superblock and descriptors, all bitmaps, all inode tables; then directories, attribute
//! blocks, `lost+found` and journal (writable only), contents with their extent trees.

mod bytes;
mod crc32c;
mod directory;
mod error;
mod extents;
mod geometry;
mod hash;
mod inode;
mod journal;
mod plan;
mod sink;
mod superblock;
mod write;
mod xattr;

pub use error::Ext4Error;
pub(crate) use write::{Unsealed, write};

#[allow(unused_imports, reason = "used by the docs")]
use crate::tree::Tree;

const BLOCK_SIZE: usize = 4096;
const BLOCK: u64 = BLOCK_SIZE as u64;

/// What the tree does not say.
#[derive(Clone, Debug)]
pub(crate) struct Format {
    /// Seeds the checksums of all metadata but the superblock's.
    pub(crate) checksum_seed: u32,
    /// Seeds the hash of names; not all zero.
    pub(crate) hash_seed: [u32; 4],
    /// When the filesystem says it was made, in seconds since 1970.
    pub(crate) clock: u32,
    /// At most 16 bytes.
    pub(crate) label: &'static str,
    pub(crate) room: Room,
}

/// Whether anything can be added later.
#[derive(Clone, Debug)]
pub(crate) enum Room {
    /// Just what the tree needs, padded to 2 MiB; no journal.
    ReadOnly,
    /// A disk of this size with a journal and `lost+found`.
    Writable {
        size_bytes: u64,
        bytes_per_inode: u64,
        journal_blocks: u64,
    },
}

impl Room {
    fn is_writable(&self) -> bool {
        matches!(self, Room::Writable { .. })
    }
}

/// The checksum that a superblock with `metadata_csum` must carry in its last four bytes.
pub(crate) fn superblock_checksum(superblock: &[u8]) -> u32 {
    crc32c::crc32c(!0, &superblock[..superblock::SIZE - 4])
}
