//! A directory or a tar archive, as a place where names lead to bytes. Symlinks are followed inside
//! an archive, since old Dockers wrote them; in a directory, never out of it.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Cursor, Read, Seek};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{Mode, OFlags, ResolveFlags};

use super::ArchiveError;
use crate::decompress::{Compression, decompress};
use crate::hashing::Hashing;
use crate::inode::EntryName;
use crate::limits::{Budget, Limits};
use crate::oci::MAX_DOCUMENT;
use crate::spool::spool_file;
use crate::tar::{EntryKind, TarReader};

/// How much of a compressed archive is looked at to tell what it is.
const PEEK: u64 = 1 << 20;
/// Symlinks from symlink to symlink.
const MAX_LINKS: usize = 8;

pub(crate) struct Container {
    path: PathBuf,
    place: Place,
}

enum Place {
    Directory(OwnedFd),
    Archive {
        file: Arc<File>,
        entries: HashMap<String, Slot>,
    },
}

enum Slot {
    Data { offset: u64, length: u64 },
    Link(String),
}

impl Container {
    /// Opens what may hold images; `None` if it does not look so.
    pub(crate) fn open(
        path: &Path,
        temporary: &Path,
        budget: &Budget,
    ) -> Result<Option<Container>, ArchiveError> {
        let failed = |source| ArchiveError::Read {
            path: path.into(),
            source,
        };
        let file = File::open(path).map_err(failed)?;
        if file.metadata().map_err(failed)?.is_dir() {
            let container = Container {
                path: path.into(),
                place: Place::Directory(file.into()),
            };
            return Ok(Some(container).filter(Container::holds_images));
        }
        if !may_hold_images(&file, budget.limits()).map_err(failed)? {
            return Ok(None);
        }
        let spooled = spool_file(file, temporary, Hashing::Blake3, budget, &|_| {});
        let spooled = spooled.map_err(|error| ArchiveError::spool(path, error))?;
        let container = Container::of_tar(path, spooled.file, budget)?;
        Ok(Some(container).filter(Container::holds_images))
    }

    pub(super) fn in_memory(bytes: &[u8], budget: &Budget) -> Result<Container, ArchiveError> {
        let path = Path::new("memory");
        let failed = |source| ArchiveError::Read {
            path: path.into(),
            source,
        };
        let memory = rustix::fs::memfd_create("archive", rustix::fs::MemfdFlags::CLOEXEC);
        let file = File::from(memory.map_err(|errno| failed(errno.into()))?);
        file.write_all_at(bytes, 0).map_err(failed)?;
        Container::of_tar(path, file, budget)
    }

    fn of_tar(path: &Path, file: File, budget: &Budget) -> Result<Container, ArchiveError> {
        let mut entries = HashMap::new();
        let mut reader = TarReader::new(&file, budget)?;
        while let Some(entry) = reader.next()? {
            let Some(name) = plain_name(&entry.path) else {
                continue;
            };
            let slot = match entry.kind {
                EntryKind::File { size, ranges } => match ranges[..] {
                    [] if size == 0 => Slot::Data {
                        offset: 0,
                        length: 0,
                    },
                    [range] if range.length == size => Slot::Data {
                        offset: range.position,
                        length: size,
                    },
                    // Sparse: nothing that these archives are made of.
                    _ => continue,
                },
                EntryKind::Symlink(target) => match linked_name(&name, &target) {
                    Some(target) => Slot::Link(target),
                    None => continue,
                },
                EntryKind::HardLink(target) => match plain_name(&target) {
                    Some(target) => Slot::Link(target),
                    None => continue,
                },
                _ => continue,
            };
            entries.insert(name, slot);
        }
        Ok(Container {
            path: path.into(),
            place: Place::Archive {
                file: Arc::new(file),
                entries,
            },
        })
    }

    fn holds_images(&self) -> bool {
        (self.has("oci-layout") && self.has("index.json")) || super::docker::describes_images(self)
    }

    pub(super) fn has(&self, name: &str) -> bool {
        match &self.place {
            Place::Directory(_) => self.open_entry(name).is_ok(),
            Place::Archive { .. } => self.slot(name).is_some(),
        }
    }

    fn slot(&self, name: &str) -> Option<(u64, u64)> {
        let Place::Archive { entries, .. } = &self.place else {
            return None;
        };
        let mut name = name;
        for _ in 0..MAX_LINKS {
            match entries.get(name)? {
                Slot::Data { offset, length } => return Some((*offset, *length)),
                Slot::Link(target) => name = target,
            }
        }
        None
    }

    /// The bytes of a file in it.
    pub(crate) fn open_entry(&self, name: &str) -> Result<Box<dyn Read + Send>, ArchiveError> {
        let missing = || ArchiveError::Missing(EntryName::from(name.as_bytes()));
        // Names stand in the archive: they must not lead out of it.
        let name = plain_name(name.as_bytes()).ok_or_else(missing)?;
        match &self.place {
            Place::Directory(directory) => {
                let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
                let resolve = ResolveFlags::BENEATH;
                let file = rustix::fs::openat2(directory, name, flags, Mode::empty(), resolve);
                let file = File::from(file.map_err(|_| missing())?);
                let is_file = file.metadata().is_ok_and(|metadata| metadata.is_file());
                if is_file {
                    Ok(Box::new(file))
                } else {
                    Err(missing())
                }
            }
            Place::Archive { file, .. } => {
                let (at, left) = self.slot(&name).ok_or_else(missing)?;
                let file = Arc::clone(file);
                Ok(Box::new(Slice { file, at, left }))
            }
        }
    }

    /// A small file in it, whole.
    pub(super) fn document(&self, name: &str) -> Result<Vec<u8>, ArchiveError> {
        let mut bytes = Vec::new();
        let read = self
            .open_entry(name)?
            .take(MAX_DOCUMENT + 1)
            .read_to_end(&mut bytes);
        read.map_err(|source| ArchiveError::Read {
            path: self.path.clone(),
            source,
        })?;
        if bytes.len() as u64 > MAX_DOCUMENT {
            return Err(ArchiveError::TooLong(EntryName::from(name.as_bytes())));
        }
        Ok(bytes)
    }
}

/// A part of a file.
struct Slice {
    file: Arc<File>,
    at: u64,
    left: u64,
}

impl Read for Slice {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.left)
            .unwrap_or(usize::MAX)
            .min(buffer.len());
        let length = self.file.read_at(&mut buffer[..most], self.at)?;
        if length == 0 && most > 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.at += length as u64;
        self.left -= length as u64;
        Ok(length)
    }
}

/// Looks at the beginning: unpacking a whole root filesystem only to see that it is one would cost
/// too much.
fn may_hold_images(mut file: &File, limits: &Limits) -> io::Result<bool> {
    let mut head = Vec::new();
    file.take(512).read_to_end(&mut head)?;
    file.rewind()?;
    if Compression::detect(&head) == Compression::None {
        // Headers alone are read then: cheap.
        return Ok(crate::tar::looks_like_tar(&head));
    }
    let mut beginning = Vec::new();
    let plain = decompress(file, limits.decoder_bytes)?;
    // Damage is for those who read the whole to complain about.
    let _ = plain.take(PEEK).read_to_end(&mut beginning);
    file.rewind()?;
    let budget = Budget::new(limits);
    let Ok(mut reader) = TarReader::new(Cursor::new(beginning), &budget) else {
        return Ok(false);
    };
    loop {
        match reader.next() {
            Ok(Some(entry)) if is_telling(&entry.path) => return Ok(true),
            Ok(Some(_)) => {}
            Ok(None) => return Ok(false),
            // The file at the edge of what is looked at.
            Err(error) => return Ok(error.entry.is_some_and(|name| is_telling(name.as_bytes()))),
        }
    }
}

/// Whether only archives of images have such names.
fn is_telling(path: &[u8]) -> bool {
    let Some(name) = plain_name(path) else {
        return false;
    };
    let first = name.split('/').next().unwrap_or_default();
    let stem = first.split('.').next().unwrap_or_default();
    let is_id = stem.len() == 64 && stem.bytes().all(|byte| byte.is_ascii_hexdigit());
    is_id
        || ["oci-layout", "index.json", "manifest.json"].contains(&name.as_str())
        || name.starts_with("blobs/sha256")
}

/// The name without dots and double slashes; `None` for what no archive of images holds.
fn plain_name(path: &[u8]) -> Option<String> {
    let path = std::str::from_utf8(path).ok()?;
    let mut names = Vec::new();
    for name in path.split('/') {
        match name {
            "" | "." => {}
            ".." => return None,
            name => names.push(name),
        }
    }
    (!names.is_empty()).then(|| names.join("/"))
}

/// Where a symlink leads, from where it stands.
fn linked_name(from: &str, target: &[u8]) -> Option<String> {
    let target = std::str::from_utf8(target).ok()?;
    let mut names: Vec<&str> = from.split('/').collect();
    names.pop();
    for name in target.split('/') {
        match name {
            "" | "." => {}
            ".." => {
                names.pop()?;
            }
            name => names.push(name),
        }
    }
    Some(names.join("/")).filter(|_| !target.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stay_inside() {
        assert_eq!(plain_name(b"./a//b/.").as_deref(), Some("a/b"));
        for path in [&b""[..], b".", b"../a", b"a/../b", b"\xff"] {
            assert_eq!(plain_name(path), None);
        }
        assert_eq!(
            linked_name("a/layer.tar", b"../b/layer.tar").as_deref(),
            Some("b/layer.tar")
        );
        assert_eq!(linked_name("a", b"../b"), None);
        assert_eq!(linked_name("a", b"/etc/passwd"), None);
    }

    #[test]
    fn only_archives_of_images_tell() {
        let id = "ab".repeat(32);
        for name in [
            format!("{id}.json"),
            format!("./{id}/layer.tar"),
            "blobs/sha256/x".into(),
            "./oci-layout".into(),
        ] {
            assert!(is_telling(name.as_bytes()), "{name}");
        }
        for name in ["./", "bin/sh", "etc/manifest.json", "blobs/x"] {
            assert!(!is_telling(name.as_bytes()), "{name}");
        }
    }
}
