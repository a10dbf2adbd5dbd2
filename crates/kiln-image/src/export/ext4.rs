//! Reading ext4: inodes, directories, extents and attributes, without a mount. Checksums are not
//! checked: a damaged image gives damaged files, never more than it holds.

use std::fs::File;
use std::os::unix::fs::FileExt;

use super::ExportError;
use crate::acl;
use crate::inode::{DataRange, DeviceNumber, Timestamp, Xattr};
use crate::limits::Budget;

/// Features without which a filesystem reads the same for us: filetype, recover, extents, 64bit,
/// flex_bg, csum_seed, largedir, casefold.
const KNOWN: u32 = 0x2 | 0x4 | 0x40 | 0x80 | 0x200 | 0x2000 | 0x4000 | 0x20000;
const FILETYPE: u32 = 0x2;
const SIXTY_FOUR_BIT: u32 = 0x80;
const BIGALLOC: u32 = 0x200;
const EXTENTS: u32 = 0x8_0000;
const XATTR_MAGIC: u32 = 0xEA02_0000;
const EXTENT_MAGIC: u16 = 0xF30A;
/// ext4's own bound on the depth of extent trees.
const MAX_DEPTH: u16 = 5;
/// Symlinks are shorter than a page.
const MAX_TARGET: u64 = 4096;
/// More bytes of names than any directory of an image has.
const MAX_DIRECTORY: u64 = 1 << 30;

pub(crate) struct Ext4Reader<'a> {
    file: &'a File,
    block: u64,
    blocks: u64,
    inodes: u32,
    inodes_per_group: u32,
    inode_size: u64,
    tables: Vec<u64>,
    has_types: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum InodeKind {
    Directory,
    Regular,
    Symlink,
    CharacterDevice(DeviceNumber),
    BlockDevice(DeviceNumber),
    Fifo,
    Socket,
}

/// One file.
pub(super) struct Inode {
    pub(super) kind: InodeKind,
    pub(super) mode: u16,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) size: u64,
    pub(super) links: u16,
    pub(super) modified: Timestamp,
    pub(super) xattrs: Vec<Xattr>,
    flags: u32,
    has_blocks: bool,
    map: [u8; 60],
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    let pair = bytes.get(at..at + 2).and_then(|pair| pair.try_into().ok());
    u16::from_le_bytes(pair.unwrap_or_default())
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let four = bytes.get(at..at + 4).and_then(|four| four.try_into().ok());
    u32::from_le_bytes(four.unwrap_or_default())
}

impl<'a> Ext4Reader<'a> {
    pub(crate) const ROOT: u32 = 2;

    pub(crate) fn open(file: &'a File) -> Result<Ext4Reader<'a>, ExportError> {
        let length = file.metadata().map_err(ExportError::Read)?.len();
        let mut superblock = [0; 1024];
        file.read_exact_at(&mut superblock, 1024)
            .map_err(ExportError::Read)?;
        if u16_at(&superblock, 56) != 0xEF53 {
            return Err(ExportError::Unsupported("a filesystem other than ext4"));
        }
        let features = u32_at(&superblock, 96);
        if features & !KNOWN != 0 || u32_at(&superblock, 100) & BIGALLOC != 0 {
            return Err(ExportError::Unsupported(
                "an ext4 filesystem with rare features",
            ));
        }
        let block_bits = u32_at(&superblock, 24);
        if block_bits > 6 {
            return Err(ExportError::Damaged("block size"));
        }
        let block = 1024_u64 << block_bits;
        let (per_group, blocks_per_group) = (u32_at(&superblock, 40), u32_at(&superblock, 32));
        let is_old = u32_at(&superblock, 76) == 0;
        let inode_size = if is_old {
            128
        } else {
            u64::from(u16_at(&superblock, 88))
        };
        let high = if features & SIXTY_FOUR_BIT != 0 {
            u32_at(&superblock, 0x150)
        } else {
            0
        };
        let blocks = (u64::from(high) << 32) | u64::from(u32_at(&superblock, 4));
        let fits = blocks
            .checked_mul(block)
            .is_some_and(|bytes| bytes <= length);
        if !fits || per_group == 0 || blocks_per_group == 0 || !(128..=4096).contains(&inode_size) {
            return Err(ExportError::Damaged("superblock"));
        }
        let mut reader = Ext4Reader {
            file,
            block,
            blocks,
            inodes: u32_at(&superblock, 0),
            inodes_per_group: per_group,
            inode_size,
            tables: Vec::new(),
            has_types: features & FILETYPE != 0,
        };
        reader.read_tables(&superblock, features, blocks_per_group)?;
        Ok(reader)
    }

    fn read_tables(
        &mut self,
        superblock: &[u8],
        features: u32,
        blocks_per_group: u32,
    ) -> Result<(), ExportError> {
        let first = u64::from(u32_at(superblock, 20));
        let groups = self
            .blocks
            .saturating_sub(first)
            .div_ceil(u64::from(blocks_per_group));
        let wide = features & SIXTY_FOUR_BIT != 0;
        let size = if wide {
            u64::from(u16_at(superblock, 254)).max(32)
        } else {
            32
        };
        let bytes = groups
            .checked_mul(size)
            .filter(|bytes| *bytes <= self.blocks * self.block);
        let bytes = bytes.ok_or(ExportError::Damaged("number of groups"))?;
        let mut descriptors = vec![0; bytes as usize];
        let at = (first + 1) * self.block;
        self.file
            .read_exact_at(&mut descriptors, at)
            .map_err(ExportError::Read)?;
        self.tables = descriptors
            .chunks_exact(size as usize)
            .map(|descriptor| {
                let high = if size >= 64 {
                    u32_at(descriptor, 40)
                } else {
                    0
                };
                (u64::from(high) << 32) | u64::from(u32_at(descriptor, 8))
            })
            .collect();
        Ok(())
    }

    fn read_block(&self, number: u64) -> Result<Vec<u8>, ExportError> {
        if number >= self.blocks {
            return Err(ExportError::Damaged("a block outside of the filesystem"));
        }
        let mut bytes = vec![0; self.block as usize];
        self.file
            .read_exact_at(&mut bytes, number * self.block)
            .map_err(ExportError::Read)?;
        Ok(bytes)
    }

    pub(super) fn inode(&self, number: u32) -> Result<Inode, ExportError> {
        if number == 0 || number > self.inodes {
            return Err(ExportError::Damaged("an inode outside of the filesystem"));
        }
        let (group, index) = (
            (number - 1) / self.inodes_per_group,
            (number - 1) % self.inodes_per_group,
        );
        let table = self
            .tables
            .get(group as usize)
            .ok_or(ExportError::Damaged("number of inodes"))?;
        let at = table
            .checked_mul(self.block)
            .and_then(|at| at.checked_add(u64::from(index) * self.inode_size));
        let at = at.filter(|at| at + self.inode_size <= self.blocks * self.block);
        let at = at.ok_or(ExportError::Damaged(
            "an inode table outside of the filesystem",
        ))?;
        let mut raw = vec![0; self.inode_size as usize];
        self.file
            .read_exact_at(&mut raw, at)
            .map_err(ExportError::Read)?;
        self.decode(&raw)
    }

    fn decode(&self, raw: &[u8]) -> Result<Inode, ExportError> {
        let mode = u16_at(raw, 0);
        let mut map = [0; 60];
        map.copy_from_slice(&raw[40..100]);
        let extra = if raw.len() > 128 {
            usize::from(u16_at(raw, 128))
        } else {
            0
        };
        let epoch = if extra >= 12 { u32_at(raw, 136) } else { 0 };
        let seconds = u32_at(raw, 16) as i32;
        let block = u64::from(u32_at(raw, 104)) | (u64::from(u16_at(raw, 118)) << 32);
        let mut xattrs = Vec::new();
        let inline = raw.get(128 + extra..).unwrap_or_default();
        if u32_at(inline, 0) == XATTR_MAGIC {
            read_xattrs(inline, 4, 4, &mut xattrs)?;
        }
        if block != 0 {
            let bytes = self.read_block(block)?;
            if u32_at(&bytes, 0) != XATTR_MAGIC {
                return Err(ExportError::Damaged("attributes"));
            }
            read_xattrs(&bytes, 32, 0, &mut xattrs)?;
        }
        xattrs.sort();
        let sectors = u64::from(u32_at(raw, 28)) | (u64::from(u16_at(raw, 116)) << 32);
        let for_xattrs = if block != 0 { self.block / 512 } else { 0 };
        Ok(Inode {
            kind: kind_of(mode, &map)?,
            mode: mode & 0o7777,
            uid: u32::from(u16_at(raw, 2)) | (u32::from(u16_at(raw, 120)) << 16),
            gid: u32::from(u16_at(raw, 24)) | (u32::from(u16_at(raw, 122)) << 16),
            size: u64::from(u32_at(raw, 4)) | (u64::from(u32_at(raw, 108)) << 32),
            links: u16_at(raw, 26),
            modified: Timestamp {
                seconds: i64::from(seconds) + (i64::from(epoch & 3) << 32),
                nanoseconds: (epoch >> 2).min(999_999_999),
            },
            xattrs,
            flags: u32_at(raw, 32),
            has_blocks: sectors > for_xattrs,
            map,
        })
    }

    /// Where the file's bytes stand in the image; what is left out is a hole.
    pub(super) fn ranges(
        &self,
        inode: &Inode,
        budget: &Budget,
    ) -> Result<Vec<DataRange>, ExportError> {
        let limit = budget.limits().file_bytes;
        if inode.size > limit {
            return Err(ExportError::Damaged("a file is larger than allowed"));
        }
        if inode.flags & EXTENTS == 0 {
            if !inode.has_blocks {
                return Ok(Vec::new());
            }
            return Err(ExportError::Unsupported(
                "an ext2 or ext3 file without extents",
            ));
        }
        let mut ranges = Vec::new();
        self.extents(&inode.map, MAX_DEPTH, inode.size, budget, &mut ranges)?;
        let mut end = 0;
        for range in &ranges {
            if range.offset < end {
                return Err(ExportError::Damaged("extents overlap"));
            }
            end = range.offset + range.length;
        }
        Ok(ranges)
    }

    fn extents(
        &self,
        node: &[u8],
        deepest: u16,
        size: u64,
        budget: &Budget,
        ranges: &mut Vec<DataRange>,
    ) -> Result<(), ExportError> {
        let (entries, depth) = (usize::from(u16_at(node, 2)), u16_at(node, 6));
        if u16_at(node, 0) != EXTENT_MAGIC || depth > deepest || 12 + entries * 12 > node.len() {
            return Err(ExportError::Damaged("extents"));
        }
        for entry in node[12..12 + entries * 12].chunks_exact(12) {
            budget.take_step()?;
            if depth > 0 {
                let child = u64::from(u32_at(entry, 4)) | (u64::from(u16_at(entry, 8)) << 32);
                let child = self.read_block(child)?;
                // Each level must be nearer to the data, or a loop would have no end.
                self.extents(&child, depth - 1, size, budget, ranges)?;
                continue;
            }
            let written = u64::from(u16_at(entry, 4));
            // Beyond 32768 blocks the count means: reserved, reads as zero.
            if written > 32768 {
                continue;
            }
            let start = u64::from(u32_at(entry, 8)) | (u64::from(u16_at(entry, 6)) << 32);
            if start + written > self.blocks {
                return Err(ExportError::Damaged("an extent outside of the filesystem"));
            }
            let offset = u64::from(u32_at(entry, 0)) * self.block;
            let length = (written * self.block).min(size.saturating_sub(offset));
            if length > 0 {
                if ranges.len() >= budget.limits().sparse_ranges {
                    return Err(ExportError::Damaged("a file has too many pieces"));
                }
                ranges.push(DataRange {
                    offset,
                    position: start * self.block,
                    length,
                });
            }
        }
        Ok(())
    }

    /// A small file's content.
    fn content(&self, inode: &Inode, limit: u64, budget: &Budget) -> Result<Vec<u8>, ExportError> {
        if inode.size > limit {
            return Err(ExportError::Damaged("a directory or symlink is too large"));
        }
        let ranges = self.ranges(inode, budget)?;
        // A hole costs the image nothing and must not cost us memory.
        let end = ranges.last().map_or(0, |range| range.offset + range.length);
        let mut bytes = vec![0; end as usize];
        for range in ranges {
            let piece = &mut bytes[range.offset as usize..(range.offset + range.length) as usize];
            self.file
                .read_exact_at(piece, range.position)
                .map_err(ExportError::Read)?;
        }
        Ok(bytes)
    }

    /// Names and inodes, without the dots. Blocks of a directory's index look like empty ones.
    pub(super) fn directory(
        &self,
        inode: &Inode,
        budget: &Budget,
    ) -> Result<Vec<(Vec<u8>, u32)>, ExportError> {
        let bytes = self.content(inode, MAX_DIRECTORY, budget)?;
        let mut entries = Vec::new();
        for block in bytes.chunks(self.block as usize) {
            let mut at = 0;
            while at + 8 <= block.len() {
                let number = u32_at(block, at);
                let length = usize::from(u16_at(block, at + 4));
                // Without the feature, the byte of the type is the length's second one.
                let name_length = if self.has_types {
                    usize::from(block[at + 6])
                } else {
                    usize::from(u16_at(block, at + 6))
                };
                // A block of 64 KiB cannot be written in 16 bits.
                let length = if length == 0 || length == 65535 {
                    block.len() - at
                } else {
                    length
                };
                if length < 8 || at + length > block.len() || 8 + name_length > length {
                    return Err(ExportError::Damaged("directory"));
                }
                let name = &block[at + 8..at + 8 + name_length];
                at += length;
                if number == 0 || name == b"." || name == b".." {
                    continue;
                }
                if name.is_empty() || name.contains(&b'/') || name.contains(&0) {
                    return Err(ExportError::Damaged("a name that is none"));
                }
                budget.take_entry()?;
                budget.take_metadata(name.len())?;
                entries.push((name.to_vec(), number));
            }
        }
        Ok(entries)
    }

    pub(super) fn symlink(&self, inode: &Inode) -> Result<Vec<u8>, ExportError> {
        if !inode.has_blocks {
            let length = inode.size as usize;
            let target = inode.map.get(..length).filter(|_| inode.size < 60);
            return target
                .map(<[u8]>::to_vec)
                .ok_or(ExportError::Damaged("a symlink"));
        }
        // The blocks' own bound is enough: a target costs no more than the image holds.
        let budget = Budget::new(&crate::limits::Limits::default());
        self.content(inode, MAX_TARGET, &budget)
    }
}

fn kind_of(mode: u16, map: &[u8; 60]) -> Result<InodeKind, ExportError> {
    Ok(match mode & 0o170_000 {
        0o040_000 => InodeKind::Directory,
        0o100_000 => InodeKind::Regular,
        0o120_000 => InodeKind::Symlink,
        0o020_000 => InodeKind::CharacterDevice(device(map)),
        0o060_000 => InodeKind::BlockDevice(device(map)),
        0o010_000 => InodeKind::Fifo,
        0o140_000 => InodeKind::Socket,
        _ => return Err(ExportError::Damaged("a file without a type")),
    })
}

/// The old form of eight and eight bits, or the new one behind it.
fn device(map: &[u8; 60]) -> DeviceNumber {
    let old = u32_at(map, 0);
    if old != 0 {
        return DeviceNumber {
            major: (old >> 8) & 0xff,
            minor: old & 0xff,
        };
    }
    let new = u32_at(map, 4);
    DeviceNumber {
        major: (new >> 8) & 0xfff,
        minor: (new & 0xff) | ((new >> 12) & 0xfff00),
    }
}

/// Entries from `start`, values counted from `base`.
fn read_xattrs(
    room: &[u8],
    start: usize,
    base: usize,
    xattrs: &mut Vec<Xattr>,
) -> Result<(), ExportError> {
    let damaged = ExportError::Damaged("attributes");
    let mut at = start;
    while at + 4 <= room.len() && u32_at(room, at) != 0 {
        let Some(entry) = room.get(at..at + 16) else {
            return Err(damaged);
        };
        let (name_length, index) = (usize::from(entry[0]), entry[1]);
        let (offset, inode) = (usize::from(u16_at(entry, 2)), u32_at(entry, 4));
        let length = u32_at(entry, 8) as usize;
        if inode != 0 {
            return Err(ExportError::Unsupported(
                "an attribute in a file of its own",
            ));
        }
        let suffix = room.get(at + 16..at + 16 + name_length);
        let value_at = base + offset;
        let value = match length {
            0 => Some(&[][..]),
            length => value_at
                .checked_add(length)
                .and_then(|end| room.get(value_at..end)),
        };
        let (Some(suffix), Some(value)) = (suffix, value) else {
            return Err(damaged);
        };
        xattrs.push(xattr(index, suffix, value)?);
        at += (16 + name_length).next_multiple_of(4);
    }
    Ok(())
}

fn xattr(index: u8, suffix: &[u8], value: &[u8]) -> Result<Xattr, ExportError> {
    let acl = || acl::from_ext4(value).ok_or(ExportError::Damaged("an access control list"));
    let (prefix, value): (&[u8], Vec<u8>) = match index {
        1 => (b"user.", value.to_vec()),
        2 => (b"system.posix_acl_access", acl()?),
        3 => (b"system.posix_acl_default", acl()?),
        4 => (b"trusted.", value.to_vec()),
        6 => (b"security.", value.to_vec()),
        _ => return Err(ExportError::Unsupported("an attribute of a rare kind")),
    };
    Ok(Xattr {
        name: [prefix, suffix].concat().into(),
        value: value.into(),
    })
}
