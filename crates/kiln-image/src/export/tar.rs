//! Writing tar: plain headers where they suffice, PAX records where they do not, sparse files in
//! GNU's format 1.0. What our reader takes in, it gives out.

use std::io::{self, Write};

use super::ext4::{Inode, InodeKind};
use crate::inode::{DataRange, Timestamp, Xattr};

const BLOCK: usize = 512;
/// What fits seven and eleven octal digits.
const MAX_ID: u32 = 0o7_777_777;
const MAX_SIZE: u64 = 0o77_777_777_777;
/// Fewer bytes of holes are not worth a map.
const LEAST_HOLES: u64 = 64 << 10;

/// What an entry says of its file.
pub(super) struct Header<'a> {
    path: &'a [u8],
    kind: InodeKind,
    mode: u16,
    uid: u32,
    gid: u32,
    modified: Timestamp,
    xattrs: &'a [Xattr],
}

/// What follows the header, for files without data.
pub(super) enum Content<'a> {
    None,
    Symlink(&'a [u8]),
    Link(&'a [u8]),
}

impl<'a> Header<'a> {
    pub(super) fn of(path: &'a [u8], inode: &'a Inode) -> Header<'a> {
        Header {
            path,
            kind: inode.kind,
            mode: inode.mode,
            uid: inode.uid,
            gid: inode.gid,
            modified: inode.modified,
            xattrs: &inode.xattrs,
        }
    }
}

pub(super) struct TarWriter<'a> {
    out: io::BufWriter<&'a mut dyn Write>,
    /// Of the file that is being written.
    ranges: Vec<DataRange>,
    written: u64,
    sparse: bool,
    size: u64,
}

impl<'a> TarWriter<'a> {
    pub(super) fn new(out: &'a mut dyn Write) -> TarWriter<'a> {
        TarWriter {
            out: io::BufWriter::with_capacity(256 << 10, out),
            ranges: Vec::new(),
            written: 0,
            sparse: false,
            size: 0,
        }
    }

    /// An entry without data.
    pub(super) fn entry(&mut self, header: &Header<'_>, content: Content<'_>) -> io::Result<()> {
        let (kind, link) = match content {
            Content::Link(first) => (b'1', first),
            Content::Symlink(target) => (b'2', target),
            Content::None => (kind_byte(header.kind), &b""[..]),
        };
        let mut records = Records::default();
        // A further name says nothing new of its file.
        if kind != b'1' {
            records.attributes(header);
        }
        records.name("linkpath", link);
        records.name("path", header.path);
        self.pax(&records)?;
        self.out
            .write_all(&ustar(header, header.path, kind, link, 0))
    }

    /// Begins a file of `size` bytes, of which these are to come by [`TarWriter::data`].
    pub(super) fn start_file(
        &mut self,
        header: &Header<'_>,
        size: u64,
        ranges: &[DataRange],
    ) -> io::Result<()> {
        let data: u64 = ranges.iter().map(|range| range.length).sum();
        self.sparse = size - data >= LEAST_HOLES;
        (self.size, self.written) = (size, 0);
        self.ranges = ranges.to_vec();
        let mut records = Records::default();
        records.attributes(header);
        let map = if self.sparse {
            map(ranges, size)
        } else {
            Vec::new()
        };
        let stored = if self.sparse {
            map.len() as u64 + data
        } else {
            size
        };
        if self.sparse {
            records.add(b"GNU.sparse.major", b"1");
            records.add(b"GNU.sparse.minor", b"0");
            records.add(b"GNU.sparse.name", header.path);
            records.add(b"GNU.sparse.realsize", size.to_string().as_bytes());
        } else {
            records.name("path", header.path);
        }
        if stored > MAX_SIZE {
            records.add(b"size", stored.to_string().as_bytes());
        }
        self.pax(&records)?;
        let name = if self.sparse {
            &b"GNUSparseFile.0/file"[..]
        } else {
            header.path
        };
        self.out
            .write_all(&ustar(header, name, b'0', b"", stored))?;
        if self.sparse {
            self.written = map.len() as u64;
            self.out.write_all(&map)?;
        }
        Ok(())
    }

    /// The next bytes of the ranges, in order.
    pub(super) fn data(&mut self, bytes: &[u8]) -> io::Result<()> {
        if !self.sparse {
            // Small holes are written out.
            self.fill_to(
                self.ranges
                    .first()
                    .map_or(self.written, |range| range.offset),
            )?;
            if let Some(range) = self.ranges.first_mut() {
                range.offset += bytes.len() as u64;
                range.length -= bytes.len() as u64;
                if range.length == 0 {
                    self.ranges.remove(0);
                }
            }
        }
        self.written += bytes.len() as u64;
        self.out.write_all(bytes)
    }

    pub(super) fn end_file(&mut self) -> io::Result<()> {
        if !self.sparse {
            self.fill_to(self.size)?;
        }
        let padding = self.written.next_multiple_of(BLOCK as u64) - self.written;
        self.out.write_all(&[0; BLOCK][..padding as usize])
    }

    fn fill_to(&mut self, end: u64) -> io::Result<()> {
        let zeros = [0; 4096];
        while self.written < end {
            let length = (end - self.written).min(zeros.len() as u64);
            self.out.write_all(&zeros[..length as usize])?;
            self.written += length;
        }
        Ok(())
    }

    pub(super) fn finish(mut self) -> io::Result<()> {
        self.out.write_all(&[0; 2 * BLOCK])?;
        self.out.flush()
    }

    fn pax(&mut self, records: &Records) -> io::Result<()> {
        let body = &records.0;
        if body.is_empty() {
            return Ok(());
        }
        let mut block = [0; BLOCK];
        put(&mut block[..100], b"././@PaxHeader");
        octal(&mut block[100..108], 0o644);
        octal(&mut block[108..116], 0);
        octal(&mut block[116..124], 0);
        octal(&mut block[124..136], body.len() as u64);
        octal(&mut block[136..148], 0);
        block[156] = b'x';
        seal(&mut block);
        self.out.write_all(&block)?;
        self.out.write_all(body)?;
        let padding = body.len().next_multiple_of(BLOCK) - body.len();
        self.out.write_all(&[0; BLOCK][..padding])
    }
}

/// An archive of plain files that nobody owns: what images are carried in.
pub(crate) struct FileArchive<'a>(TarWriter<'a>);

impl<'a> FileArchive<'a> {
    pub(crate) fn new(out: &'a mut dyn Write) -> FileArchive<'a> {
        FileArchive(TarWriter::new(out))
    }

    /// Adds a file of exactly this size.
    pub(crate) fn file(
        &mut self,
        name: &str,
        size: u64,
        content: &mut dyn io::Read,
    ) -> io::Result<()> {
        let header = Header {
            path: name.as_bytes(),
            kind: InodeKind::Regular,
            mode: 0o644,
            uid: 0,
            gid: 0,
            modified: Timestamp::default(),
            xattrs: &[],
        };
        let whole = [DataRange {
            offset: 0,
            position: 0,
            length: size,
        }];
        self.0
            .start_file(&header, size, if size > 0 { &whole } else { &[] })?;
        let mut buffer = vec![0; 256 << 10];
        loop {
            let length = content.read(&mut buffer)?;
            if length == 0 {
                break;
            }
            self.0.data(&buffer[..length])?;
        }
        if self.0.written != size {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.0.end_file()
    }

    pub(crate) fn finish(self) -> io::Result<()> {
        self.0.finish()
    }
}

fn kind_byte(kind: InodeKind) -> u8 {
    match kind {
        InodeKind::CharacterDevice(_) => b'3',
        InodeKind::BlockDevice(_) => b'4',
        InodeKind::Directory => b'5',
        InodeKind::Fifo => b'6',
        InodeKind::Regular | InodeKind::Symlink | InodeKind::Socket => b'0',
    }
}

/// GNU's sparse map 1.0: count, offsets and lengths, a line each, padded; the last piece marks the
/// end of the file.
fn map(ranges: &[DataRange], size: u64) -> Vec<u8> {
    let mut text = format!("{}\n", ranges.len() + 1);
    for range in ranges {
        text += &format!("{}\n{}\n", range.offset, range.length);
    }
    text += &format!("{size}\n0\n");
    let mut map = text.into_bytes();
    map.resize(map.len().next_multiple_of(BLOCK), 0);
    map
}

fn ustar(header: &Header<'_>, path: &[u8], kind: u8, link: &[u8], size: u64) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    put(&mut block[..100], path);
    octal(&mut block[100..108], u64::from(header.mode));
    octal(&mut block[108..116], u64::from(header.uid.min(MAX_ID)));
    octal(&mut block[116..124], u64::from(header.gid.min(MAX_ID)));
    octal(&mut block[124..136], size.min(MAX_SIZE));
    octal(
        &mut block[136..148],
        u64::try_from(header.modified.seconds)
            .unwrap_or(0)
            .min(MAX_SIZE),
    );
    block[156] = kind;
    put(&mut block[157..257], link);
    if let InodeKind::CharacterDevice(number) | InodeKind::BlockDevice(number) = header.kind {
        octal(&mut block[329..337], u64::from(number.major));
        octal(&mut block[337..345], u64::from(number.minor));
    }
    seal(&mut block);
    block
}

/// As much as fits; a PAX record has the rest.
fn put(field: &mut [u8], bytes: &[u8]) {
    let length = bytes.len().min(field.len());
    field[..length].copy_from_slice(&bytes[..length]);
}

fn octal(field: &mut [u8], value: u64) {
    let digits = field.len() - 1;
    let text = format!("{value:0digits$o}");
    field[..digits].copy_from_slice(&text.as_bytes()[..digits]);
}

fn seal(block: &mut [u8; BLOCK]) {
    block[257..265].copy_from_slice(b"ustar\x0000");
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
}

/// The records of one extended header.
#[derive(Default)]
struct Records(Vec<u8>);

impl Records {
    /// What a plain header cannot say of the file.
    fn attributes(&mut self, header: &Header<'_>) {
        if header.uid > MAX_ID {
            self.add(b"uid", header.uid.to_string().as_bytes());
        }
        if header.gid > MAX_ID {
            self.add(b"gid", header.gid.to_string().as_bytes());
        }
        let Timestamp {
            seconds,
            nanoseconds,
        } = header.modified;
        let plain =
            nanoseconds == 0 && u64::try_from(seconds).is_ok_and(|seconds| seconds <= MAX_SIZE);
        if !plain {
            self.add(b"mtime", decimal(header.modified).as_bytes());
        }
        for xattr in header.xattrs {
            self.add(&[b"SCHILY.xattr.", &xattr.name[..]].concat(), &xattr.value);
        }
    }

    /// A name that is too long, or that others would take for another character set.
    fn name(&mut self, key: &str, name: &[u8]) {
        if name.len() <= 100 {
            return;
        }
        if std::str::from_utf8(name).is_err() {
            self.add(b"hdrcharset", b"BINARY");
        }
        self.add(key.as_bytes(), name);
    }

    /// The length counts itself, its own digits too.
    fn add(&mut self, key: &[u8], value: &[u8]) {
        let rest = key.len() + value.len() + 3;
        let mut length = rest + 1;
        while rest + length.to_string().len() != length {
            length = rest + length.to_string().len();
        }
        self.0.extend(length.to_string().as_bytes());
        self.0.push(b' ');
        self.0.extend(key);
        self.0.push(b'=');
        self.0.extend(value);
        self.0.push(b'\n');
    }
}

/// Seconds with a fraction: -1.25 is two seconds before 1970 and three quarters after that.
fn decimal(time: Timestamp) -> String {
    let Timestamp {
        seconds,
        nanoseconds,
    } = time;
    if seconds >= 0 || nanoseconds == 0 {
        return format!("{seconds}.{nanoseconds:09}");
    }
    let (seconds, fraction) = (-(seconds + 1), 1_000_000_000 - nanoseconds);
    format!("-{seconds}.{fraction:09}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_as_pax_reads_them() {
        let time = |seconds, nanoseconds| {
            decimal(Timestamp {
                seconds,
                nanoseconds,
            })
        };
        assert_eq!(time(1, 5), "1.000000005");
        assert_eq!(time(-2, 750_000_000), "-1.250000000");
        assert_eq!(time(-1, 750_000_000), "-0.250000000");
        assert_eq!(time(-5, 0), "-5.000000000");
    }

    #[test]
    fn records_count_their_own_length() {
        for length in [
            1, 80, 85, 86, 87, 88, 89, 980, 981, 982, 983, 984, 985, 9000,
        ] {
            let mut records = Records::default();
            records.add(b"path", &vec![b'x'; length]);
            let text = String::from_utf8(records.0).unwrap();
            let stated: usize = text.split(' ').next().unwrap().parse().unwrap();
            assert_eq!(stated, text.len());
        }
    }
}
