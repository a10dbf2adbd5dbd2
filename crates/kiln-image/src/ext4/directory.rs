//! Directory blocks: linear while small, indexed by hash (htree) beyond two blocks, so that lookups
//! in directories of tens of thousands of files stay cheap.

use super::BLOCK_SIZE;
use super::bytes::{put16, put32};
use super::crc32c::crc32c;
use super::hash::name_hash;

/// Each leaf ends with a false entry that carries the checksum.
const TAIL: usize = 12;
const LEAF_ROOM: usize = BLOCK_SIZE - TAIL;
const TAIL_TYPE: u8 = 0xDE;
/// Index leaves are filled to about 85 %, as the kernel leaves them after splits.
const INDEXED_FILL: usize = 3500;
/// Where the index entries start, and how many fit before the checksum.
const ROOT_ENTRIES_AT: usize = 32;
const ROOT_LIMIT: usize = (BLOCK_SIZE - ROOT_ENTRIES_AT - 8) / 8;
const NODE_ENTRIES_AT: usize = 8;
const NODE_LIMIT: usize = (BLOCK_SIZE - NODE_ENTRIES_AT - 8) / 8;
const HALF_MD4: u8 = 1;

/// File types as directory entries state them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum FileType {
    Regular = 1,
    Directory = 2,
    CharacterDevice = 3,
    BlockDevice = 4,
    Fifo = 5,
    Socket = 6,
    Symlink = 7,
}

/// One name.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entry<'a> {
    pub(super) name: &'a [u8],
    pub(super) inode: u32,
    pub(super) kind: FileType,
}

/// A directory, ready to be written.
pub(super) struct Directory {
    pub(super) blocks: Vec<u8>,
    pub(super) indexed: bool,
}

/// The blocks of directory `inode`, or `None` if its index would need a third level.
pub(super) fn build(
    inode: u32,
    parent: u32,
    entries: &[Entry<'_>],
    hash_seed: &[u32; 4],
    checksum_seed: u32,
) -> Option<Directory> {
    let dots = [
        Entry {
            name: b".",
            inode,
            kind: FileType::Directory,
        },
        Entry {
            name: b"..",
            inode: parent,
            kind: FileType::Directory,
        },
    ];
    let all: usize = dots.iter().chain(entries).map(record_length).sum();
    // A rough bound is enough to skip packing large directories twice.
    if all <= 2 * LEAF_ROOM {
        let blocks = pack(dots.iter().chain(entries), checksum_seed);
        if blocks.len() <= 2 * BLOCK_SIZE {
            return Some(Directory {
                blocks,
                indexed: false,
            });
        }
    }
    let leaves = leaves(entries, hash_seed, checksum_seed);
    let blocks = index(&dots, &leaves, checksum_seed)?;
    Some(Directory {
        blocks,
        indexed: true,
    })
}

fn record_length(entry: &Entry<'_>) -> usize {
    (8 + entry.name.len()).next_multiple_of(4)
}

/// Entries one behind the other, never across a block's end; the last one of a block takes its rest.
fn pack<'a>(entries: impl Iterator<Item = &'a Entry<'a>>, checksum_seed: u32) -> Vec<u8> {
    let mut blocks = Vec::new();
    let mut block = [0; BLOCK_SIZE];
    let (mut at, mut last) = (0, 0);
    for entry in entries {
        let length = record_length(entry);
        if at + length > LEAF_ROOM {
            blocks.extend(seal(&mut block, last, checksum_seed));
            block = [0; BLOCK_SIZE];
            at = 0;
        }
        put_entry(&mut block[at..], entry, length);
        last = at;
        at += length;
    }
    blocks.extend(seal(&mut block, last, checksum_seed));
    blocks
}

fn seal(block: &mut [u8; BLOCK_SIZE], last: usize, checksum_seed: u32) -> &[u8; BLOCK_SIZE] {
    put16(block, last + 4, (LEAF_ROOM - last) as u16);
    put16(block, LEAF_ROOM + 4, TAIL as u16);
    block[LEAF_ROOM + 7] = TAIL_TYPE;
    let checksum = crc32c(checksum_seed, &block[..LEAF_ROOM]);
    put32(block, LEAF_ROOM + 8, checksum);
    block
}

/// A block without names, for room to grow in `lost+found`.
pub(super) fn empty_block(checksum_seed: u32) -> [u8; BLOCK_SIZE] {
    let mut block = [0; BLOCK_SIZE];
    seal(&mut block, 0, checksum_seed);
    block
}

fn put_entry(record: &mut [u8], entry: &Entry<'_>, length: usize) {
    put32(record, 0, entry.inode);
    put16(record, 4, length as u16);
    record[6] = entry.name.len() as u8;
    record[7] = entry.kind as u8;
    record[8..8 + entry.name.len()].copy_from_slice(entry.name);
}

/// A leaf block with the hash from which on it is responsible.
struct Leaf {
    hash: u32,
    block: Vec<u8>,
}

fn leaves(entries: &[Entry<'_>], hash_seed: &[u32; 4], checksum_seed: u32) -> Vec<Leaf> {
    let mut hashed: Vec<(u32, &Entry<'_>)> = entries
        .iter()
        .map(|entry| (name_hash(entry.name, hash_seed), entry))
        .collect();
    hashed.sort_by(|a, b| (a.0, a.1.name).cmp(&(b.0, b.1.name)));
    let mut leaves = Vec::new();
    let mut current: Vec<&Entry<'_>> = Vec::new();
    let (mut used, mut first, mut previous) = (0, 0, None);
    for (hash, entry) in hashed {
        let length = record_length(entry);
        // Names of one hash stay together while they fit.
        let collides = previous == Some(hash);
        if used + length > LEAF_ROOM || (used + length > INDEXED_FILL && !collides) {
            let block = pack(current.drain(..), checksum_seed);
            leaves.push(Leaf { hash: first, block });
            used = 0;
            // The lowest bit says that this leaf goes on with the hash of the one before.
            first = if collides { hash | 1 } else { hash };
        }
        current.push(entry);
        used += length;
        previous = Some(hash);
    }
    leaves.push(Leaf {
        hash: first,
        block: pack(current.drain(..), checksum_seed),
    });
    leaves
}

/// Root, a level of nodes where needed, leaves.
fn index(dots: &[Entry<'_>; 2], leaves: &[Leaf], checksum_seed: u32) -> Option<Vec<u8>> {
    let hashes: Vec<u32> = leaves.iter().map(|leaf| leaf.hash).collect();
    let nodes: Vec<&[u32]> = if hashes.len() > ROOT_LIMIT {
        hashes.chunks(NODE_LIMIT).collect()
    } else {
        Vec::new()
    };
    if nodes.len() > ROOT_LIMIT {
        return None;
    }
    let first_leaf = 1 + nodes.len();
    let mut root = [0; BLOCK_SIZE];
    put_entry(&mut root, &dots[0], record_length(&dots[0]));
    put_entry(&mut root[12..], &dots[1], BLOCK_SIZE - 12);
    root[28] = HALF_MD4;
    root[29] = 8;
    root[30] = u8::from(!nodes.is_empty());
    let mut blocks = Vec::new();
    if nodes.is_empty() {
        put_index(
            &mut root,
            ROOT_ENTRIES_AT,
            ROOT_LIMIT,
            &hashes,
            first_leaf,
            checksum_seed,
        );
        blocks.extend(root);
    } else {
        let firsts: Vec<u32> = nodes.iter().map(|node| node[0]).collect();
        put_index(
            &mut root,
            ROOT_ENTRIES_AT,
            ROOT_LIMIT,
            &firsts,
            1,
            checksum_seed,
        );
        blocks.extend(root);
        for (at, node) in nodes.iter().enumerate() {
            let mut block = [0; BLOCK_SIZE];
            put16(&mut block, 4, BLOCK_SIZE as u16);
            let leaf = first_leaf + at * NODE_LIMIT;
            put_index(
                &mut block,
                NODE_ENTRIES_AT,
                NODE_LIMIT,
                node,
                leaf,
                checksum_seed,
            );
            blocks.extend(block);
        }
    }
    for leaf in leaves {
        blocks.extend(&leaf.block);
    }
    Some(blocks)
}

/// Limit and count stand where the first entry would have its hash.
fn put_index(
    block: &mut [u8; BLOCK_SIZE],
    at: usize,
    limit: usize,
    hashes: &[u32],
    first_block: usize,
    checksum_seed: u32,
) {
    for (number, hash) in hashes.iter().enumerate() {
        put32(block, at + 8 * number, *hash);
        put32(block, at + 8 * number + 4, (first_block + number) as u32);
    }
    put16(block, at, limit as u16);
    put16(block, at + 2, hashes.len() as u16);
    // The checksum covers the entries in use and the tail with a zero in its own place.
    let checksum = crc32c(checksum_seed, &block[..at + 8 * hashes.len()]);
    let checksum = crc32c(checksum, &[0; 8]);
    put32(block, at + 8 * limit + 4, checksum);
}
