//! How many groups, inodes and blocks, and where the fixed parts stand.
//!
//! All bitmaps and inode tables stand together at the front (`flex_bg`), so that everything behind
//! is one stretch of data. There are no backups of the superblock (`sparse_super2` with none named):
//! a broken image is built again.

use super::{BLOCK, Ext4Error, Room};

pub(super) const BLOCKS_PER_GROUP: u64 = 32768;
/// One bitmap block describes this many inodes.
const MAX_INODES_PER_GROUP: u64 = 32768;
const INODES_PER_BLOCK: u64 = 16;
pub(super) const DESCRIPTOR: u64 = 32;
/// 2 MiB: what huge pages and persistent-memory devices ask for.
const READ_ONLY_ALIGNMENT: u64 = 512;

/// Numbers that the whole layout follows from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Geometry {
    pub(super) total_blocks: u64,
    pub(super) groups: u64,
    pub(super) inodes_per_group: u64,
    pub(super) block_bitmaps: u64,
    pub(super) inode_bitmaps: u64,
    pub(super) inode_tables: u64,
    /// First block behind the fixed parts.
    pub(super) data: u64,
    pub(super) data_blocks: u64,
}

impl Geometry {
    pub(super) fn new(
        used_inodes: u64,
        data_blocks: u64,
        room: &Room,
    ) -> Result<Geometry, Ext4Error> {
        let (fixed_total, inodes) = match room {
            Room::ReadOnly => (None, used_inodes),
            Room::Writable {
                size_bytes,
                bytes_per_inode,
                ..
            } => (
                Some(size_bytes / BLOCK),
                used_inodes.max(size_bytes / bytes_per_inode),
            ),
        };
        // Every pass needs at least as much as the one before, so this ends.
        let mut total = fixed_total.unwrap_or(inodes.div_ceil(MAX_INODES_PER_GROUP).max(1));
        if fixed_total.is_none() && total > 1 {
            total = (total - 1) * BLOCKS_PER_GROUP + 1;
        }
        loop {
            let geometry = Geometry::with_total(total, inodes, data_blocks);
            let needed = geometry.data + data_blocks;
            if needed > u64::from(u32::MAX) || geometry.inodes() > u64::from(u32::MAX) {
                return Err(Ext4Error::TooLarge);
            }
            match fixed_total {
                Some(_) if needed > total => {
                    let size = total * BLOCK;
                    return Err(Ext4Error::DoesNotFit {
                        needed: needed * BLOCK,
                        size,
                    });
                }
                Some(_) if geometry.inodes_per_group > MAX_INODES_PER_GROUP => {
                    return Err(Ext4Error::TooLarge);
                }
                Some(_) => return Ok(geometry),
                None => {}
            }
            let padded = needed.max(total).next_multiple_of(READ_ONLY_ALIGNMENT);
            if padded == total {
                return Ok(geometry);
            }
            total = padded;
        }
    }

    fn with_total(total_blocks: u64, inodes: u64, data_blocks: u64) -> Geometry {
        let groups = total_blocks.div_ceil(BLOCKS_PER_GROUP).max(1);
        let inodes_per_group = inodes.div_ceil(groups).next_multiple_of(INODES_PER_BLOCK);
        let block_bitmaps = 1 + (groups * DESCRIPTOR).div_ceil(BLOCK);
        let inode_bitmaps = block_bitmaps + groups;
        let inode_tables = inode_bitmaps + groups;
        let data = inode_tables + groups * (inodes_per_group / INODES_PER_BLOCK);
        Geometry {
            total_blocks,
            groups,
            inodes_per_group,
            block_bitmaps,
            inode_bitmaps,
            inode_tables,
            data,
            data_blocks,
        }
    }

    pub(super) fn inodes(&self) -> u64 {
        self.groups * self.inodes_per_group
    }

    pub(super) fn inode_table(&self, group: u64) -> u64 {
        self.inode_tables + group * (self.inodes_per_group / INODES_PER_BLOCK)
    }

    /// Blocks in use: all of them at the front.
    pub(super) fn used_blocks(&self) -> u64 {
        self.data + self.data_blocks
    }

    /// First block of a group and the block behind its last.
    pub(super) fn group_blocks(&self, group: u64) -> (u64, u64) {
        let first = group * BLOCKS_PER_GROUP;
        (first, (first + BLOCKS_PER_GROUP).min(self.total_blocks))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn read_only_images_hold_what_they_must(inodes in 11u64..3_000_000, data in 1u64..30_000_000) {
            let geometry = Geometry::new(inodes, data, &Room::ReadOnly).unwrap();
            prop_assert!(geometry.inodes() >= inodes);
            prop_assert!(geometry.inodes_per_group <= MAX_INODES_PER_GROUP);
            prop_assert!(geometry.used_blocks() <= geometry.total_blocks);
            prop_assert_eq!(geometry.total_blocks % READ_ONLY_ALIGNMENT, 0);
            prop_assert_eq!(geometry.groups, geometry.total_blocks.div_ceil(BLOCKS_PER_GROUP));
        }
    }

    #[test]
    fn too_small_disks_say_what_they_need() {
        let room = Room::Writable {
            size_bytes: 1 << 20,
            bytes_per_inode: 16384,
            journal_blocks: 1024,
        };
        let error = Geometry::new(11, 1100, &room).unwrap_err();
        assert!(
            matches!(
                error,
                Ext4Error::DoesNotFit {
                    size: 1_048_576,
                    ..
                }
            ),
            "{error}"
        );
    }
}
