//! Writing cpio archives in the `newc` format, the one that Linux unpacks as an initramfs
//! (`Documentation/driver-api/early-userspace/buffer-format.rst`).

use std::collections::BTreeSet;
use std::io::{self, Read, Write};

use thiserror::Error;

const MAGIC: &str = "070701";
const TRAILER: &str = "TRAILER!!!";
const S_IFDIR: u32 = 0o040_000;
const S_IFREG: u32 = 0o100_000;
const S_IFLNK: u32 = 0o120_000;
/// Longer names are dropped by the kernel without a word.
const MAX_NAME: usize = 4095;

/// Why an archive cannot be written.
#[derive(Debug, Error)]
pub enum NewcError {
    /// A name that the kernel would not unpack, or not where it seems.
    #[error("{name:?} cannot be a name in an initramfs")]
    InvalidName {
        /// The name.
        name: String,
    },
    /// The format has 32 bits for a size.
    #[error("{name} is larger than 4 GiB, which an initramfs cannot hold")]
    TooLarge {
        /// The file.
        name: String,
    },
    /// A file's content is not as long as was said.
    #[error("{name} ended before its stated size")]
    Short {
        /// The file.
        name: String,
    },
    /// Reading the content or writing the archive failed.
    #[error("cannot write {name} into the initramfs")]
    Io {
        /// The entry.
        name: String,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

/// A device node's kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodeKind {
    /// `c`.
    Character,
    /// `b`.
    Block,
}

impl NodeKind {
    const fn mode(self) -> u32 {
        match self {
            Self::Character => 0o020_000,
            Self::Block => 0o060_000,
        }
    }
}

/// Writes an archive entry by entry: owner root, times zero, parents created as needed.
///
/// ```
/// use kiln_image::initramfs::{NewcWriter, NodeKind};
///
/// let mut archive = NewcWriter::new(Vec::new());
/// archive.node("dev/console", NodeKind::Character, 0o600, 5, 1)?;
/// archive.file("init", 0o755, b"#!/bin/sh\n")?;
/// archive.symlink("bin/sh", "busybox")?;
/// let bytes = archive.finish()?;
/// assert_eq!(bytes.len() % 512, 0);
/// # Ok::<(), kiln_image::initramfs::NewcError>(())
/// ```
#[derive(Debug)]
pub struct NewcWriter<W> {
    output: W,
    written: u64,
    inode: u32,
    directories: BTreeSet<String>,
}

struct Entry<'a> {
    name: &'a str,
    mode: u32,
    links: u32,
    size: u32,
    device: (u32, u32),
}

impl<W: Write> NewcWriter<W> {
    /// Begins an archive.
    pub fn new(output: W) -> Self {
        Self {
            output,
            written: 0,
            inode: 0,
            directories: BTreeSet::new(),
        }
    }

    /// Adds a directory; one that is there already is left as it is.
    ///
    /// # Errors
    /// See [`NewcError`].
    pub fn directory(&mut self, name: &str, mode: u32) -> Result<(), NewcError> {
        let name = checked(name)?;
        self.parents(name)?;
        if self.directories.insert(name.to_owned()) {
            let mode = S_IFDIR | (mode & 0o7777);
            self.header(&Entry {
                name,
                mode,
                links: 2,
                size: 0,
                device: (0, 0),
            })?;
        }
        Ok(())
    }

    /// Adds a file from memory.
    ///
    /// # Errors
    /// See [`NewcError`].
    pub fn file(&mut self, name: &str, mode: u32, content: &[u8]) -> Result<(), NewcError> {
        self.file_from(name, mode, content.len() as u64, content)
    }

    /// Adds a file of `size` bytes from a reader.
    ///
    /// # Errors
    /// See [`NewcError`]; [`NewcError::Short`] where the reader ends early.
    pub fn file_from(
        &mut self,
        name: &str,
        mode: u32,
        size: u64,
        content: impl Read,
    ) -> Result<(), NewcError> {
        let name = checked(name)?;
        let too_large = |_| NewcError::TooLarge {
            name: name.to_owned(),
        };
        let length = u32::try_from(size).map_err(too_large)?;
        self.parents(name)?;
        let mode = S_IFREG | (mode & 0o7777);
        self.header(&Entry {
            name,
            mode,
            links: 1,
            size: length,
            device: (0, 0),
        })?;
        let copied = io::copy(&mut content.take(size), &mut self.output).map_err(failed(name))?;
        self.written += copied;
        if copied != size {
            return Err(NewcError::Short {
                name: name.to_owned(),
            });
        }
        self.pad(4).map_err(failed(name))
    }

    /// Adds a symbolic link.
    ///
    /// # Errors
    /// See [`NewcError`].
    pub fn symlink(&mut self, name: &str, target: &str) -> Result<(), NewcError> {
        let name = checked(name)?;
        if target.is_empty() || target.contains('\0') || target.len() > MAX_NAME {
            return Err(NewcError::InvalidName {
                name: target.to_owned(),
            });
        }
        self.parents(name)?;
        let size = target.len() as u32;
        self.header(&Entry {
            name,
            mode: S_IFLNK | 0o777,
            links: 1,
            size,
            device: (0, 0),
        })?;
        self.output
            .write_all(target.as_bytes())
            .map_err(failed(name))?;
        self.written += u64::from(size);
        self.pad(4).map_err(failed(name))
    }

    /// Adds a device node.
    ///
    /// # Errors
    /// See [`NewcError`].
    pub fn node(
        &mut self,
        name: &str,
        kind: NodeKind,
        mode: u32,
        major: u32,
        minor: u32,
    ) -> Result<(), NewcError> {
        let name = checked(name)?;
        self.parents(name)?;
        let mode = kind.mode() | (mode & 0o7777);
        self.header(&Entry {
            name,
            mode,
            links: 1,
            size: 0,
            device: (major, minor),
        })
    }

    /// Ends the archive and gives the output back.
    ///
    /// # Errors
    /// Writing fails.
    pub fn finish(mut self) -> Result<W, NewcError> {
        self.inode = 0;
        self.header(&Entry {
            name: TRAILER,
            mode: 0,
            links: 1,
            size: 0,
            device: (0, 0),
        })?;
        self.pad(512).map_err(failed(TRAILER))?;
        self.output.flush().map_err(failed(TRAILER))?;
        Ok(self.output)
    }

    /// The kernel creates nothing by itself: a file whose directory is missing is lost.
    fn parents(&mut self, name: &str) -> Result<(), NewcError> {
        let parents: Vec<&str> = name.match_indices('/').map(|(at, _)| &name[..at]).collect();
        for parent in parents {
            if self.directories.insert(parent.to_owned()) {
                let mode = S_IFDIR | 0o755;
                self.header(&Entry {
                    name: parent,
                    mode,
                    links: 2,
                    size: 0,
                    device: (0, 0),
                })?;
            }
        }
        Ok(())
    }

    fn header(&mut self, entry: &Entry<'_>) -> Result<(), NewcError> {
        let name_size = entry.name.len() as u32 + 1;
        let fields = [
            self.inode,
            entry.mode,
            0, // owner
            0, // group
            entry.links,
            0, // modification time
            entry.size,
            0, // the archive's own device
            0,
            entry.device.0,
            entry.device.1,
            name_size,
            0, // checksum, unused in this format
        ];
        let mut header = MAGIC.to_owned();
        for field in fields {
            header.push_str(&format!("{field:08x}"));
        }
        header.push_str(entry.name);
        header.push('\0');
        self.inode += 1;
        self.output
            .write_all(header.as_bytes())
            .map_err(failed(entry.name))?;
        self.written += header.len() as u64;
        self.pad(4).map_err(failed(entry.name))
    }

    fn pad(&mut self, alignment: u64) -> io::Result<()> {
        const ZEROS: [u8; 512] = [0; 512];
        let count = self.written.next_multiple_of(alignment) - self.written;
        self.output.write_all(&ZEROS[..count as usize])?;
        self.written += count;
        Ok(())
    }
}

/// The name without a leading slash, where it names one entry below the root.
fn checked(name: &str) -> Result<&str, NewcError> {
    let relative = name.strip_prefix('/').unwrap_or(name);
    let plain = |part: &str| !matches!(part, "" | "." | "..");
    let is_valid = relative.len() < MAX_NAME
        && !relative.contains('\0')
        && relative != TRAILER
        && relative.split('/').all(plain);
    if is_valid {
        Ok(relative)
    } else {
        Err(NewcError::InvalidName {
            name: name.to_owned(),
        })
    }
}

fn failed(name: &str) -> impl FnOnce(io::Error) -> NewcError + '_ {
    move |source| NewcError::Io {
        name: name.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_small_archive_has_these_bytes() {
        let mut archive = NewcWriter::new(Vec::new());
        archive.file("a", 0o644, b"hi").unwrap();
        let text = String::from_utf8(archive.finish().unwrap()).unwrap();
        let file = "070701\
            00000000\
            000081a4\
            00000000\
            00000000\
            00000001\
            00000000\
            00000002\
            00000000\
            00000000\
            00000000\
            00000000\
            00000002\
            00000000\
            a\0hi\0\0";
        assert!(text.starts_with(file), "{text:?}");
        assert!(text[file.len()..].starts_with("07070100000000"));
        assert!(text.trim_end_matches('\0').ends_with(TRAILER));
    }

    #[test]
    fn names_that_leave_the_root_are_refused() {
        let mut archive = NewcWriter::new(Vec::new());
        for name in ["", "/", "..", "a/../b", "a//b", "./a", "a\0b", TRAILER] {
            let result = archive.file(name, 0o644, b"");
            assert!(
                matches!(result, Err(NewcError::InvalidName { .. })),
                "{name:?}"
            );
        }
        archive.file("/init", 0o755, b"").unwrap();
    }

    #[test]
    fn a_reader_that_ends_early_is_an_error() {
        let mut archive = NewcWriter::new(Vec::new());
        let result = archive.file_from("a", 0o644, 10, &b"short"[..]);
        assert!(matches!(result, Err(NewcError::Short { .. })));
        let result = archive.file_from("b", 0o644, 1 << 32, io::empty());
        assert!(matches!(result, Err(NewcError::TooLarge { .. })));
    }

    proptest! {
        #[test]
        fn every_archive_is_aligned_and_lists_parents_first(
            files in proptest::collection::vec(
                ("[a-c]{1,3}(/[a-c]{1,3}){0,3}", proptest::collection::vec(any::<u8>(), 0..9)), 0..8)
        ) {
            let mut archive = NewcWriter::new(Vec::new());
            for (name, content) in &files {
                archive.file(&format!("x/{name}"), 0o644, content).unwrap();
            }
            let bytes = archive.finish().unwrap();
            prop_assert_eq!(bytes.len() % 512, 0);
            let mut seen = BTreeSet::new();
            let mut at = 0;
            loop {
                prop_assert_eq!(&bytes[at..at + 6], MAGIC.as_bytes());
                let field = |index: usize| {
                    let start = at + 6 + index * 8;
                    let text = std::str::from_utf8(&bytes[start..start + 8]).unwrap();
                    usize::from_str_radix(text, 16).unwrap()
                };
                let (size, name_size) = (field(6), field(11));
                let name_at = at + 110;
                let name = std::str::from_utf8(&bytes[name_at..name_at + name_size - 1]).unwrap();
                if name == TRAILER {
                    break;
                }
                if let Some((parent, _)) = name.rsplit_once('/') {
                    prop_assert!(seen.contains(parent));
                }
                seen.insert(name.to_owned());
                at = (name_at + name_size).next_multiple_of(4) + size.next_multiple_of(4);
            }
        }
    }
}
