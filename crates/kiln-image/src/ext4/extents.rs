//! Extent trees of any depth: which blocks of a file stand where on the disk.

use super::bytes::{low16, low32, put16, put32};
use super::crc32c::crc32c;
use super::{BLOCK, BLOCK_SIZE};
use crate::inode::DataRange;

/// Longest run of one extent.
const MAX_RUN: u64 = 32768;
/// Entries in an inode, and in a block (12 bytes each behind a header, 4 left for the checksum).
const IN_INODE: usize = 4;
const IN_BLOCK: usize = 340;
const MAGIC: u16 = 0xF30A;

/// A run of blocks of a file that hold data, in file order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Run {
    /// First block within the file.
    pub(super) logical: u64,
    /// Blocks.
    pub(super) blocks: u64,
}

/// A run with its place on the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Extent {
    logical: u64,
    blocks: u64,
    physical: u64,
}

/// Rounds data ranges to blocks and merges what touches.
pub(super) fn runs_of(ranges: &[DataRange]) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    let mut end = 0;
    for range in ranges {
        let first = (range.offset / BLOCK).max(end);
        let last = (range.offset + range.length).div_ceil(BLOCK);
        if last <= first {
            continue;
        }
        match runs.last_mut() {
            Some(run) if first == end => run.blocks += last - first,
            _ => runs.push(Run {
                logical: first,
                blocks: last - first,
            }),
        }
        end = last;
    }
    runs
}

/// Lays runs one behind the other from block `start`.
pub(super) fn place(runs: &[Run], start: u64) -> Vec<Extent> {
    let mut extents = Vec::new();
    let mut physical = start;
    for run in runs {
        let (mut logical, mut left) = (run.logical, run.blocks);
        while left > 0 {
            let blocks = left.min(MAX_RUN);
            extents.push(Extent {
                logical,
                blocks,
                physical,
            });
            logical += blocks;
            physical += blocks;
            left -= blocks;
        }
    }
    extents
}

/// Extents that [`place`] makes of these runs.
pub(super) fn count(runs: &[Run]) -> usize {
    runs.iter()
        .map(|run| run.blocks.div_ceil(MAX_RUN) as usize)
        .sum()
}

/// Blocks that the tree itself takes.
pub(super) fn tree_blocks(extents: usize) -> u64 {
    let (mut level, mut blocks) = (extents, 0);
    while level > IN_INODE {
        level = level.div_ceil(IN_BLOCK);
        blocks += level as u64;
    }
    blocks
}

/// The tree of a file: its root for the inode, and the blocks below it, to stand from
/// `first_block` on.
pub(super) fn build(
    extents: &[Extent],
    first_block: u64,
    checksum_seed: u32,
) -> ([u8; 60], Vec<[u8; BLOCK_SIZE]>) {
    let mut blocks = Vec::new();
    let mut next_block = first_block;
    let mut depth = 0;
    let mut entries: Vec<[u8; 12]> = extents.iter().map(leaf_entry).collect();
    while entries.len() > IN_INODE {
        let mut parents = Vec::new();
        for chunk in entries.chunks(IN_BLOCK) {
            let mut block = [0; BLOCK_SIZE];
            fill(&mut block, chunk, IN_BLOCK, depth);
            let checksum = crc32c(checksum_seed, &block[..BLOCK_SIZE - 4]);
            put32(&mut block, BLOCK_SIZE - 4, checksum);
            parents.push(index_entry(&chunk[0], next_block));
            blocks.push(block);
            next_block += 1;
        }
        entries = parents;
        depth += 1;
    }
    let mut root = [0; 60];
    fill(&mut root, &entries, IN_INODE, depth);
    (root, blocks)
}

fn fill(node: &mut [u8], entries: &[[u8; 12]], limit: usize, depth: u16) {
    put16(node, 0, MAGIC);
    put16(node, 2, entries.len() as u16);
    put16(node, 4, limit as u16);
    put16(node, 6, depth);
    for (slot, entry) in node[12..].chunks_exact_mut(12).zip(entries) {
        slot.copy_from_slice(entry);
    }
}

fn leaf_entry(extent: &Extent) -> [u8; 12] {
    let mut entry = [0; 12];
    put32(&mut entry, 0, low32(extent.logical));
    put16(&mut entry, 4, low16(extent.blocks));
    put16(&mut entry, 6, low16(extent.physical >> 32));
    put32(&mut entry, 8, low32(extent.physical));
    entry
}

/// Both kinds of entry start with their first logical block.
fn index_entry(first: &[u8; 12], block: u64) -> [u8; 12] {
    let mut entry = [0; 12];
    entry[..4].copy_from_slice(&first[..4]);
    put32(&mut entry, 4, low32(block));
    put16(&mut entry, 8, low16(block >> 32));
    entry
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(offset: u64, length: u64) -> DataRange {
        DataRange {
            offset,
            position: 0,
            length,
        }
    }

    #[test]
    fn ranges_that_share_a_block_become_one_run() {
        let runs = runs_of(&[
            range(0, 10),
            range(100, 10),
            range(4096, 1),
            range(40960, 8192),
        ]);
        assert_eq!(
            runs,
            [
                Run {
                    logical: 0,
                    blocks: 2
                },
                Run {
                    logical: 10,
                    blocks: 2
                }
            ]
        );
    }

    #[test]
    fn the_tree_has_as_many_blocks_as_it_says() {
        for extents in [0, 1, 4, 5, 340, 341, 1360, 1361, 115_600, 500_000] {
            let runs: Vec<Run> = (0..extents)
                .map(|at| Run {
                    logical: at * 2,
                    blocks: 1,
                })
                .collect();
            assert_eq!(count(&runs), extents as usize);
            let (root, blocks) = build(&place(&runs, 100), 1_000_000, 0);
            assert_eq!(
                blocks.len() as u64,
                tree_blocks(extents as usize),
                "{extents}"
            );
            assert!(u16::from_le_bytes([root[2], root[3]]) <= 4);
        }
    }

    #[test]
    fn long_runs_are_cut() {
        let extents = place(
            &[Run {
                logical: 0,
                blocks: 70_000,
            }],
            5,
        );
        let blocks: Vec<u64> = extents.iter().map(|extent| extent.blocks).collect();
        assert_eq!(blocks, [32768, 32768, 4464]);
        assert_eq!(extents[2].physical, 5 + 65536);
    }
}
