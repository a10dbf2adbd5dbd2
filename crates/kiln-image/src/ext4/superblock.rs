//! Superblock, group descriptors and bitmaps.

use std::io;

use super::bytes::{low16, low32, put16, put32};
use super::crc32c::crc32c;
use super::geometry::{BLOCKS_PER_GROUP, DESCRIPTOR, Geometry};
use super::sink::Sink;
use super::{BLOCK, BLOCK_SIZE, Format, inode};

pub(super) const OFFSET: u64 = 1024;
pub(super) const SIZE: usize = 1024;

/// Features that any kernel since 4.4 mounts; see `geometry` for `sparse_super2`.
const HAS_JOURNAL: u32 = 0x4;
const COMPATIBLE: u32 = 0x8 | 0x20 | 0x200; // ext_attr, dir_index, sparse_super2
// filetype, extents, flex_bg, csum_seed: checksums do not depend on the identity
const INCOMPATIBLE: u32 = 0x2 | 0x40 | 0x200 | 0x2000;
// large_file, huge_file, dir_nlink, extra_isize, metadata_csum
const READ_ONLY_COMPATIBLE: u32 = 0x2 | 0x8 | 0x20 | 0x40 | 0x400;

/// Group flags: nothing in its inode table, nothing in its block bitmap, table known to be zero.
const INODES_UNUSED: u16 = 1;
const BLOCKS_UNUSED: u16 = 2;
const TABLE_ZEROED: u16 = 4;

/// Writes descriptors and bitmaps; groups without anything in them need none, so that an empty disk
/// of any size costs next to nothing.
pub(super) fn write_groups(
    sink: &mut Sink,
    geometry: &Geometry,
    used_inodes: u64,
    directories: &[u16],
    seed: u32,
) -> io::Result<()> {
    let mut descriptors = Vec::with_capacity((geometry.groups * DESCRIPTOR) as usize);
    let mut bitmaps = Vec::new();
    for group in 0..geometry.groups {
        let group_state = Group::new(geometry, group, used_inodes);
        let blocks = group_state.block_bitmap();
        let inodes = group_state.inode_bitmap(geometry);
        let in_use = directories.get(group as usize).copied().unwrap_or(0);
        descriptors.extend(group_state.descriptor(geometry, in_use, &blocks, &inodes, seed));
        if group_state.flags & BLOCKS_UNUSED == 0 {
            bitmaps.push((geometry.block_bitmaps + group, blocks));
        }
        if group_state.flags & INODES_UNUSED == 0 {
            bitmaps.push((geometry.inode_bitmaps + group, inodes));
        }
    }
    sink.seek(BLOCK)?;
    sink.write(&descriptors)?;
    bitmaps.sort_by_key(|(block, _)| *block);
    for (block, bitmap) in bitmaps {
        sink.seek(block * BLOCK)?;
        sink.write(&bitmap)?;
    }
    Ok(())
}

struct Group {
    number: u64,
    used_blocks: u64,
    blocks: u64,
    used_inodes: u64,
    flags: u16,
}

impl Group {
    fn new(geometry: &Geometry, number: u64, used_inodes: u64) -> Group {
        let (first, end) = geometry.group_blocks(number);
        let used_blocks = geometry.used_blocks().clamp(first, end) - first;
        let first_inode = number * geometry.inodes_per_group;
        let used_inodes = used_inodes
            .saturating_sub(first_inode)
            .min(geometry.inodes_per_group);
        let mut flags = TABLE_ZEROED;
        if used_inodes == 0 {
            flags |= INODES_UNUSED;
        }
        // The last group's bitmap must say where the disk ends.
        if used_blocks == 0 && used_inodes == 0 && number + 1 < geometry.groups {
            flags |= BLOCKS_UNUSED;
        }
        Group {
            number,
            used_blocks,
            blocks: end - first,
            used_inodes,
            flags,
        }
    }

    fn block_bitmap(&self) -> [u8; BLOCK_SIZE] {
        let mut bitmap = [0; BLOCK_SIZE];
        if self.flags & BLOCKS_UNUSED == 0 {
            set_bits(&mut bitmap, 0, self.used_blocks);
            set_bits(&mut bitmap, self.blocks, BLOCKS_PER_GROUP);
        }
        bitmap
    }

    fn inode_bitmap(&self, geometry: &Geometry) -> [u8; BLOCK_SIZE] {
        let mut bitmap = [0; BLOCK_SIZE];
        if self.flags & INODES_UNUSED == 0 {
            set_bits(&mut bitmap, 0, self.used_inodes);
            set_bits(&mut bitmap, geometry.inodes_per_group, BLOCKS_PER_GROUP);
        }
        bitmap
    }

    fn descriptor(
        &self,
        geometry: &Geometry,
        directories: u16,
        block_bitmap: &[u8],
        inode_bitmap: &[u8],
        seed: u32,
    ) -> [u8; DESCRIPTOR as usize] {
        let mut raw = [0; DESCRIPTOR as usize];
        let free_inodes = geometry.inodes_per_group - self.used_inodes;
        put32(&mut raw, 0, low32(geometry.block_bitmaps + self.number));
        put32(&mut raw, 4, low32(geometry.inode_bitmaps + self.number));
        put32(&mut raw, 8, low32(geometry.inode_table(self.number)));
        put16(&mut raw, 12, low16(self.blocks - self.used_blocks));
        put16(&mut raw, 14, low16(free_inodes));
        put16(&mut raw, 16, directories);
        put16(&mut raw, 18, self.flags);
        if self.flags & BLOCKS_UNUSED == 0 {
            put16(&mut raw, 24, low16(crc32c(seed, block_bitmap).into()));
        }
        if self.flags & INODES_UNUSED == 0 {
            let described = (geometry.inodes_per_group / 8) as usize;
            put16(
                &mut raw,
                26,
                low16(crc32c(seed, &inode_bitmap[..described]).into()),
            );
        }
        // Inodes are used from the front, so all free ones are the unused tail.
        put16(&mut raw, 28, low16(free_inodes));
        let checksum = crc32c(seed, &low32(self.number).to_le_bytes());
        let checksum = crc32c(checksum, &raw);
        put16(&mut raw, 30, low16(checksum.into()));
        raw
    }
}

fn set_bits(bitmap: &mut [u8], from: u64, to: u64) {
    let mut bit = from;
    while bit < to {
        let byte = (bit / 8) as usize;
        if bit.is_multiple_of(8) && to - bit >= 8 {
            bitmap[byte] = 0xff;
            bit += 8;
        } else {
            bitmap[byte] |= 1 << (bit % 8);
            bit += 1;
        }
    }
}

/// The superblock, but for its identity and checksum.
pub(super) fn encode(
    geometry: &Geometry,
    format: &Format,
    used_inodes: u64,
    journal: Option<(&[u8; 60], u64)>,
) -> [u8; SIZE] {
    let mut raw = [0; SIZE];
    put32(&mut raw, 0, low32(geometry.inodes()));
    put32(&mut raw, 4, low32(geometry.total_blocks));
    put32(
        &mut raw,
        12,
        low32(geometry.total_blocks - geometry.used_blocks()),
    );
    put32(&mut raw, 16, low32(geometry.inodes() - used_inodes));
    put32(&mut raw, 24, 2); // block size 1024 << 2
    put32(&mut raw, 28, 2);
    put32(&mut raw, 32, low32(BLOCKS_PER_GROUP));
    put32(&mut raw, 36, low32(BLOCKS_PER_GROUP));
    put32(&mut raw, 40, low32(geometry.inodes_per_group));
    put32(&mut raw, 48, format.clock);
    put16(&mut raw, 54, u16::MAX); // never check by mount count
    put16(&mut raw, 56, 0xEF53);
    put16(&mut raw, 58, 1); // clean
    put16(&mut raw, 60, 1); // go on after errors
    put32(&mut raw, 64, format.clock);
    put32(&mut raw, 76, 1); // revision
    put32(&mut raw, 84, super::plan::FIRST_INODE);
    put16(&mut raw, 88, inode::SIZE as u16);
    put32(
        &mut raw,
        92,
        COMPATIBLE | if journal.is_some() { HAS_JOURNAL } else { 0 },
    );
    put32(&mut raw, 96, INCOMPATIBLE);
    put32(&mut raw, 100, READ_ONLY_COMPATIBLE);
    let label = &format.label.as_bytes()[..format.label.len().min(16)];
    raw[120..120 + label.len()].copy_from_slice(label);
    for (word, at) in format.hash_seed.iter().zip((236..).step_by(4)) {
        put32(&mut raw, at, *word);
    }
    raw[252] = 1; // half MD4
    put32(&mut raw, 256, 0xC); // user_xattr, acl
    put32(&mut raw, 264, format.clock);
    put16(&mut raw, 348, inode::EXTRA);
    put16(&mut raw, 350, inode::EXTRA);
    put32(&mut raw, 352, 2); // names hash as unsigned characters
    raw[372] = 4; // 16 groups per flex group
    raw[373] = 1; // CRC-32C
    put32(&mut raw, 624, format.checksum_seed);
    if let Some((map, blocks)) = journal {
        put_journal(&mut raw, map, blocks);
    }
    raw
}

/// Puts in the identity and the checksum.
pub(super) fn seal(raw: &mut [u8; SIZE], uuid: &[u8; 16]) {
    raw[104..120].copy_from_slice(uuid);
    let checksum = crc32c(!0, &raw[..SIZE - 4]);
    put32(raw, SIZE - 4, checksum);
}

/// The journal's inode, and a copy of where it stands for repair tools.
fn put_journal(raw: &mut [u8], map: &[u8; 60], blocks: u64) {
    put32(raw, 224, super::plan::JOURNAL_INODE);
    raw[253] = 1;
    raw[268..328].copy_from_slice(map);
    put32(raw, 328, low32((blocks * BLOCK) >> 32));
    put32(raw, 332, low32(blocks * BLOCK));
}
