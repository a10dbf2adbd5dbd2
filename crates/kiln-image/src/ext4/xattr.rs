//! Extended attributes: in the inode while they fit, in one block of their own beyond.

use super::BLOCK_SIZE;
use super::bytes::{put16, put32};
use super::crc32c::crc32c;
use crate::acl;
use crate::inode::Xattr;

/// Room behind the fixed part of a 256-byte inode with 32 extra bytes.
pub(super) const IN_INODE: usize = 96;
const MAGIC: u32 = 0xEA02_0000;
const BLOCK_HEADER: usize = 32;

/// Where the attributes of one file go.
#[derive(Debug, Default)]
pub(super) struct Placement {
    pub(super) inline: Option<[u8; IN_INODE]>,
    pub(super) block: Option<Box<[u8; BLOCK_SIZE]>>,
}

/// Why attributes cannot be placed.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum XattrFault<'a> {
    TooLarge,
    Unsupported(&'a [u8]),
}

struct Attribute<'a> {
    index: u8,
    suffix: &'a [u8],
    value: Vec<u8>,
}

/// Whether any Linux filesystem could hold it: what other systems note (`com.apple.…`) means nothing
/// in a guest.
pub(super) fn is_linux(name: &[u8]) -> bool {
    let namespaces: [&[u8]; 4] = [b"user.", b"trusted.", b"security.", b"system."];
    namespaces
        .iter()
        .any(|namespace| name.starts_with(namespace))
}

/// Places the attributes that are Linux's.
pub(super) fn place(xattrs: &[Xattr]) -> Result<Placement, XattrFault<'_>> {
    let mut attributes = Vec::new();
    for xattr in xattrs.iter().filter(|xattr| is_linux(&xattr.name)) {
        let fault = XattrFault::Unsupported(&xattr.name);
        attributes.push(attribute(xattr).ok_or(fault)?);
    }
    if attributes.is_empty() {
        return Ok(Placement::default());
    }
    // The order in which the kernel looks for them.
    attributes.sort_by(|a, b| {
        (a.index, a.suffix.len(), a.suffix).cmp(&(b.index, b.suffix.len(), b.suffix))
    });
    let all: Vec<&Attribute<'_>> = attributes.iter().collect();
    if let Some(inline) = pack_inline(&all) {
        return Ok(Placement {
            inline: Some(inline),
            block: None,
        });
    }
    if let Some(block) = pack_block(&all) {
        return Ok(Placement {
            inline: None,
            block: Some(block),
        });
    }
    place_apart(&all).ok_or(XattrFault::TooLarge)
}

/// Neither place alone is enough: small ones into the inode, the rest into the block.
fn place_apart(all: &[&Attribute<'_>]) -> Option<Placement> {
    let mut inline: Vec<&Attribute<'_>> = Vec::new();
    let mut block = Vec::new();
    for attribute in all {
        inline.push(attribute);
        if pack_inline(&inline).is_none() {
            block.extend(inline.pop());
        }
    }
    let block = pack_block(&block)?;
    Some(Placement {
        inline: pack_inline(&inline),
        block: Some(block),
    })
}

fn attribute(xattr: &Xattr) -> Option<Attribute<'_>> {
    let acl = |index| {
        let value = acl::to_ext4(&xattr.value)?;
        Some(Attribute {
            index,
            suffix: b"",
            value,
        })
    };
    match &*xattr.name {
        b"system.posix_acl_access" => return acl(2),
        b"system.posix_acl_default" => return acl(3),
        _ => {}
    }
    let namespaces: [(&[u8], u8); 3] = [(b"user.", 1), (b"trusted.", 4), (b"security.", 6)];
    let (suffix, index) = namespaces
        .iter()
        .find_map(|(prefix, index)| Some((xattr.name.strip_prefix(*prefix)?, *index)))?;
    if suffix.is_empty() || suffix.len() > 255 {
        return None;
    }
    Some(Attribute {
        index,
        suffix,
        value: xattr.value.to_vec(),
    })
}

fn pack_inline(attributes: &[&Attribute<'_>]) -> Option<[u8; IN_INODE]> {
    let mut room = [0; IN_INODE];
    put32(&mut room, 0, MAGIC);
    // Offsets of values count from the first entry here, from the block's start there.
    pack(attributes, &mut room, 4, 4).then_some(room)
}

fn pack_block(attributes: &[&Attribute<'_>]) -> Option<Box<[u8; BLOCK_SIZE]>> {
    let mut block = Box::new([0; BLOCK_SIZE]);
    put32(&mut block[..], 0, MAGIC);
    put32(&mut block[..], 4, 1); // references
    put32(&mut block[..], 8, 1); // blocks
    if !pack(attributes, &mut block[..], BLOCK_HEADER, 0) {
        return None;
    }
    let hash = attributes.iter().fold(0u32, |hash, attribute| {
        hash.rotate_left(16) ^ entry_hash(attribute.suffix, &attribute.value)
    });
    put32(&mut block[..], 12, hash);
    Some(block)
}

/// Seals a block that will stand at `number`.
pub(super) fn seal(block: &mut [u8; BLOCK_SIZE], number: u64, filesystem_seed: u32) {
    put32(block, 16, 0);
    let checksum = crc32c(filesystem_seed, &number.to_le_bytes());
    let checksum = crc32c(checksum, &block[..]);
    put32(block, 16, checksum);
}

/// Entries grow up from `start`, values down from the end; four zero bytes end the entries.
fn pack(attributes: &[&Attribute<'_>], room: &mut [u8], start: usize, base: usize) -> bool {
    let (mut entry_at, mut value_at) = (start, room.len());
    for attribute in attributes {
        let entry_length = (16 + attribute.suffix.len()).next_multiple_of(4);
        let value_length = attribute.value.len().next_multiple_of(4);
        if entry_at + entry_length + 4 + value_length > value_at {
            return false;
        }
        value_at -= value_length;
        room[value_at..value_at + attribute.value.len()].copy_from_slice(&attribute.value);
        let offset = if attribute.value.is_empty() {
            0
        } else {
            value_at - base
        };
        let entry = &mut room[entry_at..entry_at + entry_length];
        entry[0] = attribute.suffix.len() as u8;
        entry[1] = attribute.index;
        put16(entry, 2, offset as u16);
        put32(entry, 8, attribute.value.len() as u32);
        put32(entry, 12, entry_hash(attribute.suffix, &attribute.value));
        entry[16..16 + attribute.suffix.len()].copy_from_slice(attribute.suffix);
        entry_at += entry_length;
    }
    true
}

fn entry_hash(suffix: &[u8], value: &[u8]) -> u32 {
    let hash = suffix
        .iter()
        .fold(0u32, |hash, byte| hash.rotate_left(5) ^ u32::from(*byte));
    value.chunks(4).fold(hash, |hash, word| {
        let mut bytes = [0; 4];
        bytes[..word.len()].copy_from_slice(word);
        hash.rotate_left(16) ^ u32::from_le_bytes(bytes)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn xattr(name: &str, value: &[u8]) -> Xattr {
        Xattr {
            name: name.as_bytes().into(),
            value: value.into(),
        }
    }

    #[test]
    fn small_ones_stay_in_the_inode_and_big_ones_take_a_block() {
        let small = [xattr("user.a", b"1")];
        assert!(place(&small).unwrap().block.is_none());
        let big = [xattr("user.a", &[1; 4000])];
        let placed = place(&big).unwrap();
        assert!(placed.inline.is_none() && placed.block.is_some());
        let both = [xattr("user.a", &[1; 4000]), xattr("user.b", &[2; 40])];
        let placed = place(&both).unwrap();
        assert!(placed.inline.is_some() && placed.block.is_some());
        let too_big = [xattr("user.a", &[1; 4096])];
        assert_eq!(place(&too_big).unwrap_err(), XattrFault::TooLarge);
    }

    #[test]
    fn what_ext4_cannot_hold_is_refused_and_what_linux_never_holds_is_skipped() {
        let foreign = [xattr("com.apple.provenance", b"1")];
        assert!(place(&foreign).unwrap().inline.is_none());
        let system = [xattr("system.nfs4_acl", b"1")];
        assert!(matches!(place(&system), Err(XattrFault::Unsupported(_))));
        let acl = [xattr("system.posix_acl_access", b"junk")];
        assert!(matches!(place(&acl), Err(XattrFault::Unsupported(_))));
    }
}
