//! The superblock of an empty journal (jbd2, version 2). The kernel turns on its checksums itself.

/// First block of the journal file; the rest may hold anything.
pub(super) fn superblock(blocks: u32) -> [u8; 1024] {
    const MAGIC: u32 = 0xC03B_3998;
    const SUPERBLOCK_V2: u32 = 4;
    let mut raw = [0; 1024];
    let fields = [
        (0, MAGIC),
        (4, SUPERBLOCK_V2),
        (12, super::BLOCK_SIZE as u32),
        (16, blocks),
        (20, 1), // first block of the log
        (24, 1), // first expected commit
        (28, 0), // nothing to replay
        (64, 1), // users
    ];
    for (at, value) in fields {
        raw[at..at + 4].copy_from_slice(&u32::to_be_bytes(value));
    }
    raw[48..64].copy_from_slice(b"kiln journal\x80\0\x80\0");
    raw
}
