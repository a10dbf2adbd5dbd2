//! The 256-byte inode.

use super::bytes::{low16, low32, put16, put32};
use super::crc32c::crc32c;
use super::xattr;
use crate::inode::{DeviceNumber, Timestamp};

pub(super) const SIZE: usize = 256;
/// Bytes behind the old 128 that carry fixed fields.
pub(super) const EXTRA: u16 = 32;
/// Directories with more subdirectories state one link (`dir_nlink`).
const MAX_LINKS: u32 = 65_000;

pub(super) const EXTENTS: u32 = 0x8_0000;
pub(super) const INDEXED: u32 = 0x1000;

/// Seconds that 34 bits hold, counted from 1901.
const EARLIEST: i64 = -(1 << 31);
const LATEST: i64 = (1 << 34) - (1 << 31) - 1;

/// File type bits of the mode.
#[derive(Clone, Copy)]
#[repr(u16)]
pub(super) enum Format {
    Fifo = 0o010_000,
    CharacterDevice = 0o020_000,
    Directory = 0o040_000,
    BlockDevice = 0o060_000,
    Regular = 0o100_000,
    Symlink = 0o120_000,
    Socket = 0o140_000,
}

/// What an inode says.
pub(super) struct Inode<'a> {
    pub(super) format: Format,
    pub(super) mode: u16,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) size: u64,
    pub(super) links: u32,
    /// Blocks of data, extent tree and attributes.
    pub(super) blocks: u64,
    pub(super) flags: u32,
    pub(super) modified: Timestamp,
    /// Extent root, short symlink target or device number.
    pub(super) map: [u8; 60],
    pub(super) xattr_block: Option<u64>,
    pub(super) inline_xattrs: Option<&'a [u8; xattr::IN_INODE]>,
}

/// Seed of all checksums that belong to one inode (its generation is 0).
pub(super) fn checksum_seed(filesystem_seed: u32, number: u32) -> u32 {
    crc32c(crc32c(filesystem_seed, &number.to_le_bytes()), &[0; 4])
}

/// Whether ext4 can hold the time; what it cannot is moved to the nearest it can.
pub(super) fn holds(time: Timestamp) -> bool {
    (EARLIEST..=LATEST).contains(&time.seconds)
}

impl Inode<'_> {
    pub(super) fn encode(&self, checksum_seed: u32) -> [u8; SIZE] {
        let mut raw = [0; SIZE];
        put16(&mut raw, 0, self.format as u16 | self.mode);
        put16(&mut raw, 2, low16(self.uid.into()));
        put32(&mut raw, 4, low32(self.size));
        put16(&mut raw, 24, low16(self.gid.into()));
        put16(
            &mut raw,
            26,
            if self.links > MAX_LINKS {
                1
            } else {
                self.links as u16
            },
        );
        let sectors = self.blocks * 8;
        put32(&mut raw, 28, low32(sectors));
        put32(&mut raw, 32, self.flags);
        raw[40..100].copy_from_slice(&self.map);
        let xattr_block = self.xattr_block.unwrap_or(0);
        put32(&mut raw, 104, low32(xattr_block));
        put32(&mut raw, 108, low32(self.size >> 32));
        put16(&mut raw, 116, low16(sectors >> 32));
        put16(&mut raw, 118, low16(xattr_block >> 32));
        put16(&mut raw, 120, low16(u64::from(self.uid) >> 16));
        put16(&mut raw, 122, low16(u64::from(self.gid) >> 16));
        put16(&mut raw, 128, EXTRA);
        self.put_times(&mut raw);
        if let Some(inline) = self.inline_xattrs {
            raw[SIZE - xattr::IN_INODE..].copy_from_slice(inline);
        }
        let checksum = crc32c(checksum_seed, &raw);
        put16(&mut raw, 124, low16(checksum.into()));
        put16(&mut raw, 130, low16(u64::from(checksum) >> 16));
        raw
    }

    /// Access, change, modification and creation: an image knows one of them.
    fn put_times(&self, raw: &mut [u8]) {
        let seconds = self.modified.seconds.clamp(EARLIEST, LATEST);
        // Two more bits of seconds beside the nanoseconds; the base is signed.
        let epoch = ((seconds - i64::from(seconds as i32)) >> 32) as u32 & 3;
        let extra = epoch | (self.modified.nanoseconds << 2);
        for at in [8, 12, 16, 144] {
            put32(raw, at, seconds as u32);
        }
        for at in [132, 136, 140, 148] {
            put32(raw, at, extra);
        }
    }
}

/// The map of a symlink whose target fits.
pub(super) fn short_symlink(target: &[u8]) -> Option<[u8; 60]> {
    let mut map = [0; 60];
    // A NUL follows the target.
    if target.len() >= map.len() {
        return None;
    }
    map[..target.len()].copy_from_slice(target);
    Some(map)
}

/// The map of a device; `None` beyond 12 + 20 bits.
pub(super) fn device(number: DeviceNumber) -> Option<[u8; 60]> {
    let DeviceNumber { major, minor } = number;
    if major >= 1 << 12 || minor >= 1 << 20 {
        return None;
    }
    let mut map = [0; 60];
    if major < 256 && minor < 256 {
        put32(&mut map, 0, (major << 8) | minor);
    } else {
        put32(
            &mut map,
            4,
            (minor & 0xff) | (major << 8) | ((minor & !0xff) << 12),
        );
    }
    Some(map)
}
