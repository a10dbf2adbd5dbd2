//! Little-endian fields of fixed-size records. Offsets are constants of the callers, within their
//! records by construction.

pub(super) fn put16(record: &mut [u8], at: usize, value: u16) {
    record[at..at + 2].copy_from_slice(&value.to_le_bytes());
}

pub(super) fn put32(record: &mut [u8], at: usize, value: u32) {
    record[at..at + 4].copy_from_slice(&value.to_le_bytes());
}

/// The low 32 bits; the caller puts the high ones where the format wants them.
pub(super) fn low32(value: u64) -> u32 {
    (value & 0xffff_ffff) as u32
}

/// The low 16 bits.
pub(super) fn low16(value: u64) -> u16 {
    (value & 0xffff) as u16
}
