//! Our own tar reader: an index of the entries with the position of their data, every format that
//! images come in, every number checked against the limits. It keeps no content and writes nothing.
//!
//! Own, because the crates on offer split PAX records at newlines (which breaks binary attributes
//! and lets two readers see two archives) and do not know all sparse formats.

mod error;
mod header;
mod pax;
mod sparse;

use std::io::{BufReader, Read, Seek, SeekFrom};

pub use error::{TarError, TarFault};

use crate::inode::{Attributes, DataRange, DeviceNumber, EntryName, Timestamp};
use crate::limits::Budget;
use header::{BLOCK, Header, Type};
use pax::Extensions;

/// Longest name of one file on Linux.
const NAME_MAX: usize = 255;
/// A symlink's target must fit a page with its NUL.
const TARGET_MAX: usize = 4095;

/// Read at once: a file's headers and those of small files behind it. What lies between is not read.
const WINDOW: usize = 4 << 10;

/// One file of an archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    /// Path as the archive writes it; slashes and dots not yet looked at.
    pub(crate) path: Vec<u8>,
    pub(crate) attributes: Attributes,
    pub(crate) kind: EntryKind,
}

/// What an entry is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum EntryKind {
    Directory,
    File { size: u64, ranges: Vec<DataRange> },
    Symlink(Vec<u8>),
    HardLink(Vec<u8>),
    CharacterDevice(DeviceNumber),
    BlockDevice(DeviceNumber),
    Fifo,
}

/// Values of global PAX headers that are honoured.
#[derive(Debug, Default)]
struct Globals {
    uid: Option<u32>,
    gid: Option<u32>,
    modified: Option<Timestamp>,
}

/// Reads an archive entry by entry, skipping over data.
#[derive(Debug)]
pub(crate) struct TarReader<'b, R> {
    input: BufReader<R>,
    length: u64,
    /// Where the next header starts.
    position: u64,
    globals: Globals,
    budget: &'b Budget,
    finished: bool,
}

impl<'b, R: Read + Seek> TarReader<'b, R> {
    pub(crate) fn new(mut input: R, budget: &'b Budget) -> Result<TarReader<'b, R>, TarError> {
        let fault = |source| TarError {
            entry: None,
            position: 0,
            fault: TarFault::Read(source),
        };
        let length = input.seek(SeekFrom::End(0)).map_err(fault)?;
        input.rewind().map_err(fault)?;
        let input = BufReader::with_capacity(WINDOW, input);
        let globals = Globals::default();
        Ok(TarReader {
            input,
            length,
            position: 0,
            globals,
            budget,
            finished: false,
        })
    }

    /// The next entry, or `None` at the end of the archive.
    pub(crate) fn next(&mut self) -> Result<Option<Entry>, TarError> {
        let start = self.position;
        let mut extensions = Extensions::default();
        let mut name = None;
        self.next_entry(&mut extensions, &mut name)
            .map_err(|fault| TarError {
                entry: name.map(|name: Vec<u8>| EntryName::from(name.as_slice())),
                position: start,
                fault,
            })
    }

    fn next_entry(
        &mut self,
        extensions: &mut Extensions,
        name: &mut Option<Vec<u8>>,
    ) -> Result<Option<Entry>, TarFault> {
        while let Some(header) = self.read_header()? {
            match header.kind()? {
                Type::PaxLocal => self.take_local(&header, extensions)?,
                Type::PaxGlobal => self.take_global(&header)?,
                Type::GnuLongName => {
                    extensions.gnu_path = Some(self.read_long_name(&header)?);
                    extensions.seen = true;
                }
                Type::GnuLongLink => {
                    extensions.gnu_link = Some(self.read_long_name(&header)?);
                    extensions.seen = true;
                }
                Type::VolumeLabel => {}
                kind => return self.entry(&header, kind, extensions, name).map(Some),
            }
        }
        if extensions.seen {
            Err(TarFault::Dangling)
        } else {
            Ok(None)
        }
    }

    /// The next header that is not zero; `None` at the two zero blocks or the end of the data.
    fn read_header(&mut self) -> Result<Option<Header>, TarFault> {
        if self.finished || self.position >= self.length {
            return Ok(None);
        }
        let header = self.read_block()?;
        if !header.is_zero() {
            header.verify_checksum()?;
            return Ok(Some(header));
        }
        if self.position < self.length && !self.read_block()?.is_zero() {
            return Err(TarFault::LoneZeroBlock);
        }
        self.finished = true;
        Ok(None)
    }

    fn read_block(&mut self) -> Result<Header, TarFault> {
        let mut block = [0; BLOCK];
        self.input.read_exact(&mut block)?;
        self.position += BLOCK as u64;
        Ok(Header(block))
    }

    /// The body of an extension header.
    fn read_body(&mut self, header: &Header) -> Result<Vec<u8>, TarFault> {
        let size = header.size()?;
        let limit = self.budget.limits().extended_header_bytes;
        if size > limit {
            return Err(TarFault::ExtensionTooLong(limit));
        }
        self.check_available(size)?;
        let mut body = vec![0; size as usize];
        self.input.read_exact(&mut body)?;
        self.skip_to(self.position + size, self.position + padded(size))?;
        Ok(body)
    }

    fn check_available(&self, size: u64) -> Result<(), TarFault> {
        if size > self.length.saturating_sub(self.position) {
            return Err(TarFault::Truncated);
        }
        Ok(())
    }

    /// Moves the input from `from` to `to`; the padding of the last block may be missing.
    fn skip_to(&mut self, from: u64, to: u64) -> Result<(), TarFault> {
        let to = to.min(self.length);
        let distance = i64::try_from(to - from).map_err(|_| TarFault::Truncated)?;
        self.input.seek_relative(distance)?;
        self.position = to;
        Ok(())
    }

    fn read_long_name(&mut self, header: &Header) -> Result<Vec<u8>, TarFault> {
        let mut name = self.read_body(header)?;
        let end = name
            .iter()
            .position(|byte| *byte == 0)
            .unwrap_or(name.len());
        name.truncate(end);
        Ok(name)
    }

    fn take_local(&mut self, header: &Header, extensions: &mut Extensions) -> Result<(), TarFault> {
        let body = self.read_body(header)?;
        extensions.seen = true;
        let sparse_ranges = self.budget.limits().sparse_ranges;
        for record in pax::records(&body) {
            let (key, value) = record?;
            extensions.take(key, value, sparse_ranges)?;
        }
        Ok(())
    }

    /// Owners and times for all that follows are honoured; names, sizes and attributes for all that
    /// follows make no sense and are refused.
    fn take_global(&mut self, header: &Header) -> Result<(), TarFault> {
        let body = self.read_body(header)?;
        for record in pax::records(&body) {
            let (key, value) = record?;
            let meaningless = key.starts_with(b"GNU.sparse.")
                || key.starts_with(b"SCHILY.xattr.")
                || key.starts_with(b"SCHILY.acl.")
                || key.starts_with(b"LIBARCHIVE.xattr.")
                || matches!(
                    key,
                    b"path" | b"linkpath" | b"size" | b"RHT.security.selinux"
                );
            if meaningless {
                return Err(TarFault::Global(EntryName::from(key)));
            }
            let mut one = Extensions::default();
            one.take(key, value, 0)?;
            match key {
                b"uid" => self.globals.uid = one.uid,
                b"gid" => self.globals.gid = one.gid,
                b"mtime" => self.globals.modified = one.modified,
                _ => {}
            }
        }
        Ok(())
    }

    fn entry(
        &mut self,
        header: &Header,
        kind: Type,
        extensions: &mut Extensions,
        name: &mut Option<Vec<u8>>,
    ) -> Result<Entry, TarFault> {
        let path = entry_path(header, extensions);
        *name = Some(path.clone());
        self.check_path(&path)?;
        let attributes = self.attributes(header, extensions)?;
        let kind = match kind {
            Type::Regular | Type::OldSparse => self.file(header, kind, extensions)?,
            Type::HardLink => EntryKind::HardLink(self.target(header, extensions)?),
            Type::Symlink => EntryKind::Symlink(self.target(header, extensions)?),
            Type::Character => EntryKind::CharacterDevice(device(header)?),
            Type::Block => EntryKind::BlockDevice(device(header)?),
            Type::Fifo => EntryKind::Fifo,
            _ => EntryKind::Directory,
        };
        let entry = Entry {
            path,
            attributes,
            kind,
        };
        self.budget.take_entry()?;
        self.budget.take_metadata(entry.weight())?;
        Ok(entry)
    }

    fn check_path(&self, path: &[u8]) -> Result<(), TarFault> {
        let limit = self.budget.limits().path_bytes;
        if path.len() > limit {
            return Err(TarFault::PathTooLong(limit));
        }
        if path.is_empty() || path.contains(&0) {
            return Err(TarFault::Name);
        }
        if path
            .split(|byte| *byte == b'/')
            .any(|name| name.len() > NAME_MAX)
        {
            return Err(TarFault::NameTooLong);
        }
        Ok(())
    }

    fn attributes(
        &self,
        header: &Header,
        extensions: &mut Extensions,
    ) -> Result<Attributes, TarFault> {
        extensions.check_libarchive()?;
        let limit = self.budget.limits().xattr_bytes;
        let size = |xattr: &crate::inode::Xattr| xattr.name.len() + xattr.value.len();
        if extensions.xattrs.iter().map(size).sum::<usize>() > limit {
            return Err(TarFault::XattrsTooLong(limit));
        }
        // What PAX states is not read from the header, which may hold nonsense then.
        let uid = extensions.uid.or(self.globals.uid);
        let gid = extensions.gid.or(self.globals.gid);
        let modified = extensions.modified.or(self.globals.modified);
        Ok(Attributes {
            mode: header.mode()?,
            uid: uid.map_or_else(|| header.uid(), Ok)?,
            gid: gid.map_or_else(|| header.gid(), Ok)?,
            modified: match modified {
                Some(modified) => modified,
                None => Timestamp {
                    seconds: header.modified()?,
                    nanoseconds: 0,
                },
            },
            xattrs: std::mem::take(&mut extensions.xattrs),
        })
    }

    fn target(&self, header: &Header, extensions: &mut Extensions) -> Result<Vec<u8>, TarFault> {
        let target = extensions.link.take().or(extensions.gnu_link.take());
        let target = target.unwrap_or_else(|| header.link());
        if target.is_empty() || target.contains(&0) || target.len() > TARGET_MAX {
            return Err(TarFault::Target);
        }
        Ok(target)
    }

    /// A file with data: plain, or in one of the sparse formats. Leaves the reader behind the data.
    fn file(
        &mut self,
        header: &Header,
        kind: Type,
        extensions: &mut Extensions,
    ) -> Result<EntryKind, TarFault> {
        let limits = self.budget.limits();
        let (file_bytes, sparse_ranges) = (limits.file_bytes, limits.sparse_ranges);
        let stored = extensions.size.map_or_else(|| header.size(), Ok)?;
        let sparse = std::mem::take(&mut extensions.sparse);
        let (pieces, real_size, map_bytes) = if kind == Type::OldSparse {
            let (pieces, real_size, read) =
                sparse::old_gnu(header, &mut self.input, sparse_ranges)?;
            self.position += read;
            (Some(pieces), real_size, 0)
        } else if let Some(major @ 1..) = sparse.major {
            let minor = sparse.minor.unwrap_or(0);
            if (major, minor) != (1, 0) {
                return Err(TarFault::SparseVersion(major, minor));
            }
            self.check_available(stored)?;
            let (pieces, read) = sparse::version_1(&mut self.input, stored, sparse_ranges)?;
            (
                Some(pieces),
                sparse.real_size.ok_or(TarFault::SparseMap)?,
                read,
            )
        } else if let Some(numbers) = sparse.map {
            let pieces = sparse::from_numbers(&numbers, sparse_ranges)?;
            (
                Some(pieces),
                sparse.real_size.ok_or(TarFault::SparseMap)?,
                0,
            )
        } else if sparse.real_size.is_some_and(|size| size > 0) {
            return Err(TarFault::SparseMap);
        } else {
            (None, stored, 0)
        };
        if real_size > file_bytes {
            return Err(TarFault::FileTooLong(file_bytes));
        }
        self.check_available(stored)?;
        let data = self.position + map_bytes;
        let ranges = match pieces {
            Some(pieces) => sparse::lay_out(&pieces, real_size, data, stored - map_bytes)?,
            None if stored == 0 => Vec::new(),
            None => vec![DataRange {
                offset: 0,
                position: data,
                length: stored,
            }],
        };
        self.skip_to(data, self.position.saturating_add(padded(stored)))?;
        Ok(EntryKind::File {
            size: real_size,
            ranges,
        })
    }
}

impl Entry {
    /// Roughly what the entry costs in memory.
    fn weight(&self) -> usize {
        let xattrs = self.attributes.xattrs.iter();
        let xattrs: usize = xattrs
            .map(|xattr| xattr.name.len() + xattr.value.len() + 64)
            .sum();
        let kind = match &self.kind {
            EntryKind::File { ranges, .. } => ranges.len() * size_of::<DataRange>(),
            EntryKind::Symlink(target) | EntryKind::HardLink(target) => target.len(),
            _ => 0,
        };
        self.path.len() + xattrs + kind
    }
}

/// A sparse file's own name wins: its header carries a made-up one.
fn entry_path(header: &Header, extensions: &mut Extensions) -> Vec<u8> {
    let path = extensions.sparse.name.take().or(extensions.path.take());
    path.or(extensions.gnu_path.take())
        .unwrap_or_else(|| header.path())
}

/// Whether a file that starts so can be a tar archive.
pub(crate) fn looks_like_tar(head: &[u8]) -> bool {
    match <[u8; BLOCK]>::try_from(head) {
        Ok(block) => {
            let header = Header(block);
            !header.is_zero() && header.verify_checksum().is_ok()
        }
        Err(_) => false,
    }
}

fn device(header: &Header) -> Result<DeviceNumber, TarFault> {
    let (major, minor) = header.device()?;
    Ok(DeviceNumber { major, minor })
}

fn padded(size: u64) -> u64 {
    size.checked_next_multiple_of(BLOCK as u64)
        .unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use proptest::prelude::*;

    use super::*;
    use crate::limits::Limits;

    /// Makes a block pass for a header, so that random bytes get beyond the checksum.
    fn sum_up(block: &mut [u8]) {
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        block[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    }

    fn read_all(bytes: &[u8]) -> Result<Vec<Entry>, TarError> {
        let budget = Budget::new(&Limits {
            entries: 1000,
            ..Limits::default()
        });
        let mut reader = TarReader::new(Cursor::new(bytes), &budget)?;
        let mut entries = Vec::new();
        while let Some(entry) = reader.next()? {
            entries.push(entry);
        }
        Ok(entries)
    }

    /// Mostly plausible headers: the fields that decide something, the rest noise.
    fn block() -> impl Strategy<Value = Vec<u8>> {
        let kind = prop::sample::select(&b"\x000123456SxgLK7V?"[..]);
        let size = prop_oneof![
            0u64..2000,
            Just(u64::MAX >> 31),
            any::<u32>().prop_map(u64::from)
        ];
        let magic =
            prop::sample::select(vec![&b"ustar\x0000"[..], b"ustar  \0", b"\0\0\0\0\0\0\0\0"]);
        let noise = proptest::collection::vec(any::<u8>(), 512);
        (kind, size, magic, noise, any::<bool>()).prop_map(|(kind, size, magic, noise, plain)| {
            let mut block = if plain { vec![0; 512] } else { noise };
            block[..4].copy_from_slice(b"name");
            block[100..136].copy_from_slice(&[b'0'; 36]);
            block[124..136].copy_from_slice(format!("{size:012o}").as_bytes());
            block[136..148].fill(0);
            block[156] = kind;
            block[257..265].copy_from_slice(magic);
            sum_up(&mut block);
            block
        })
    }

    proptest! {
        #[test]
        fn no_sequence_of_headers_makes_it_panic_or_read_beyond_the_end(
            blocks in proptest::collection::vec(block(), 0..6),
            cut in 0usize..512,
        ) {
            let bytes = blocks.concat();
            let bytes = &bytes[..bytes.len().saturating_sub(cut)];
            for entry in read_all(bytes).unwrap_or_default() {
                if let EntryKind::File { size, ranges } = entry.kind {
                    let mut end = 0;
                    for range in ranges {
                        prop_assert!(range.length > 0 && range.offset >= end);
                        prop_assert!(range.position + range.length <= bytes.len() as u64);
                        end = range.offset + range.length;
                    }
                    prop_assert!(end <= size);
                }
            }
        }
    }

    fn header(kind: u8, size: usize) -> Vec<u8> {
        let mut block = vec![0; 512];
        block[..4].copy_from_slice(b"name");
        block[124..135].copy_from_slice(format!("{size:011o}").as_bytes());
        block[156] = kind;
        block[257..265].copy_from_slice(b"ustar\x0000");
        sum_up(&mut block);
        block
    }

    fn pax(records: &[(&str, &str)]) -> Vec<u8> {
        let mut body = String::new();
        for (key, value) in records {
            let rest = key.len() + value.len() + 3;
            let digits = (rest + (rest + 2).to_string().len()).to_string().len();
            body.push_str(&format!("{} {key}={value}\n", rest + digits));
        }
        let mut bytes = header(b'x', body.len());
        bytes.extend(body.as_bytes());
        bytes.resize(bytes.len().next_multiple_of(512), 0);
        bytes
    }

    #[test]
    fn a_pax_size_wins_over_the_header() {
        let mut bytes = pax(&[("size", "600"), ("path", "big"), ("mtime", "-1.5")]);
        bytes.extend(header(b'0', 3));
        bytes.extend([7; 1024]);
        bytes.extend(header(b'5', 0));
        let entries = read_all(&bytes).unwrap();
        assert_eq!(entries.len(), 2);
        assert_eq!(entries[0].path, b"big");
        assert_eq!(
            entries[0].attributes.modified,
            Timestamp {
                seconds: -2,
                nanoseconds: 500_000_000
            }
        );
        let ranges = vec![DataRange {
            offset: 0,
            position: 1536,
            length: 600,
        }];
        assert_eq!(entries[0].kind, EntryKind::File { size: 600, ranges });
    }

    #[test]
    fn refusals_name_the_entry() {
        let mut bytes = pax(&[("path", "over/there"), ("GNU.sparse.major", "2")]);
        bytes.extend(header(b'0', 0));
        let error = read_all(&bytes).unwrap_err();
        assert_eq!(
            error.to_string(),
            "archive entry `over/there`: sparse format 2.0 is not supported"
        );
        let mut bytes = header(b'0', 0);
        bytes[0] ^= 1;
        let error = read_all(&bytes).unwrap_err();
        assert!(
            error.to_string().contains("at byte 0: bad header checksum"),
            "{error}"
        );
        let mut bytes = header(b'0', 0);
        bytes.extend([0; 512]);
        bytes.extend(header(b'0', 0));
        assert!(matches!(
            read_all(&bytes).unwrap_err().fault,
            TarFault::LoneZeroBlock
        ));
    }
}
