//! Sparse maps: old GNU headers and the text maps of PAX formats 0.0, 0.1 and 1.0.

use std::io::Read;

use super::error::TarFault;
use super::header::{BLOCK, Header, unsigned};
use crate::inode::DataRange;

/// One piece of a sparse file: where it stands in the file, and how long it is.
pub(super) type Piece = (u64, u64);

/// Offset and length, 12 bytes each.
const OLD_PIECE: usize = 24;

/// The map of an old GNU header, with the blocks that continue it, and the file's real size.
/// Returns the bytes read behind the header too.
pub(super) fn old_gnu(
    header: &Header,
    input: &mut impl Read,
    limit: usize,
) -> Result<(Vec<Piece>, u64, u64), TarFault> {
    let real_size = unsigned(&header.0[483..495], "realsize")?;
    let mut pieces = Vec::new();
    old_pieces(&header.0[386..482], &mut pieces, limit)?;
    let mut more = header.0[482] != 0;
    let mut read = 0;
    while more {
        let mut block = [0; BLOCK];
        input.read_exact(&mut block)?;
        read += BLOCK as u64;
        old_pieces(&block[..504], &mut pieces, limit)?;
        more = block[504] != 0;
    }
    Ok((pieces, real_size, read))
}

/// Unused slots are empty; an all-zero slot ends the list.
fn old_pieces(slots: &[u8], pieces: &mut Vec<Piece>, limit: usize) -> Result<(), TarFault> {
    for slot in slots.chunks_exact(OLD_PIECE) {
        if slot[0] == 0 && slot[12] == 0 {
            break;
        }
        if pieces.len() >= limit {
            return Err(TarFault::SparseTooMany(limit));
        }
        pieces.push((
            unsigned(&slot[..12], "offset")?,
            unsigned(&slot[12..], "numbytes")?,
        ));
    }
    Ok(())
}

/// The map of format 1.0: decimal numbers, a newline behind each, padded to a block. Returns the
/// bytes it takes.
pub(super) fn version_1(
    input: &mut impl Read,
    available: u64,
    limit: usize,
) -> Result<(Vec<Piece>, u64), TarFault> {
    let mut numbers = Numbers {
        input,
        block: [0; BLOCK],
        at: BLOCK,
        read: 0,
        available,
    };
    let count = numbers.next()?;
    if count > limit as u64 {
        return Err(TarFault::SparseTooMany(limit));
    }
    let mut pieces = Vec::new();
    for _ in 0..count {
        pieces.push((numbers.next()?, numbers.next()?));
    }
    Ok((pieces, numbers.read))
}

struct Numbers<'a, R> {
    input: &'a mut R,
    block: [u8; BLOCK],
    at: usize,
    read: u64,
    available: u64,
}

impl<R: Read> Numbers<'_, R> {
    fn next(&mut self) -> Result<u64, TarFault> {
        let mut value: Option<u64> = None;
        loop {
            match self.byte()? {
                b'\n' => return value.ok_or(TarFault::SparseMap),
                digit @ b'0'..=b'9' => {
                    let digit = u64::from(digit - b'0');
                    let next = value
                        .unwrap_or(0)
                        .checked_mul(10)
                        .and_then(|v| v.checked_add(digit));
                    value = Some(next.ok_or(TarFault::SparseMap)?);
                }
                _ => return Err(TarFault::SparseMap),
            }
        }
    }

    fn byte(&mut self) -> Result<u8, TarFault> {
        if self.at == BLOCK {
            if self.read + BLOCK as u64 > self.available {
                return Err(TarFault::SparseMap);
            }
            self.input.read_exact(&mut self.block)?;
            self.read += BLOCK as u64;
            self.at = 0;
        }
        self.at += 1;
        Ok(self.block[self.at - 1])
    }
}

/// Formats 0.0 and 0.1: the numbers stand in the header.
pub(super) fn from_numbers(numbers: &[u64], limit: usize) -> Result<Vec<Piece>, TarFault> {
    if !numbers.len().is_multiple_of(2) {
        return Err(TarFault::SparseMap);
    }
    if numbers.len() / 2 > limit {
        return Err(TarFault::SparseTooMany(limit));
    }
    Ok(numbers
        .chunks_exact(2)
        .map(|pair| (pair[0], pair[1]))
        .collect())
}

/// Lays the pieces over the stored data: in order, apart, within the file, nothing left over.
pub(super) fn lay_out(
    pieces: &[Piece],
    real_size: u64,
    position: u64,
    stored: u64,
) -> Result<Vec<DataRange>, TarFault> {
    let mut ranges: Vec<DataRange> = Vec::new();
    let (mut end, mut used) = (0u64, 0u64);
    for &(offset, length) in pieces {
        let next = offset.checked_add(length).ok_or(TarFault::SparseMap)?;
        if offset < end || next > real_size {
            return Err(TarFault::SparseMap);
        }
        if length > 0 {
            ranges.push(DataRange {
                offset,
                position: position + used,
                length,
            });
        }
        used = used.checked_add(length).ok_or(TarFault::SparseMap)?;
        if used > stored {
            return Err(TarFault::SparseMap);
        }
        end = next;
    }
    if used != stored {
        return Err(TarFault::SparseMap);
    }
    Ok(ranges)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_must_be_in_order_and_use_up_the_data() {
        assert_eq!(
            lay_out(&[(10, 5), (100, 0)], 100, 512, 5).unwrap(),
            [DataRange {
                offset: 10,
                position: 512,
                length: 5
            }]
        );
        assert!(lay_out(&[(10, 5), (12, 5)], 100, 0, 10).is_err(), "overlap");
        assert!(lay_out(&[(96, 5)], 100, 0, 5).is_err(), "beyond the end");
        assert!(lay_out(&[(10, 5)], 100, 0, 6).is_err(), "left over");
        assert!(lay_out(&[(10, 6)], 100, 0, 5).is_err(), "too much");
        assert!(lay_out(&[(u64::MAX, 2)], 100, 0, 2).is_err(), "overflow");
    }

    #[test]
    fn the_text_map_ends_within_its_data() {
        let mut block = [0u8; 512];
        block[..8].copy_from_slice(b"1\n0\n512\n");
        let (pieces, read) = version_1(&mut &block[..], 1024, 10).unwrap();
        assert_eq!((pieces, read), (vec![(0, 512)], 512));
        assert!(version_1(&mut &block[..], 511, 10).is_err());
        assert!(version_1(&mut &b"99999999\n"[..], 512, 10).is_err());
        assert!(version_1(&mut &[b'7'; 4096][..], 4096, 10).is_err());
    }
}
