//! Reading a tree from a file system, one item at a time.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Mode, OFlags, SeekFrom, Stat, fstat, openat, readlinkat, seek,
    statat,
};
use rustix::io::Errno;

use crate::entry::{Entry, Kind, MAX_DEPTH, MAX_PATH, beneath};
use crate::wire::{Item, MAX_DATA};

/// Whether a symbolic link that is itself asked for is read, or what it points to. Links within a
/// tree are always read as links.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Follow {
    /// What it points to.
    Yes,
    /// The link.
    No,
}

/// Why a tree cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The file system refused something.
    #[error("cannot read {}", path.display())]
    Io {
        /// What of.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It is nested deeper, or has a longer path, than is copied.
    #[error("{} is too deep in its tree", path.display())]
    TooDeep {
        /// What.
        path: PathBuf,
    },
}

/// Reads a tree. What changes meanwhile may come as it was, as it is, or not at all.
#[derive(Debug)]
pub struct TreeReader {
    root: PathBuf,
    /// The root's own entry, until it is told.
    first: Option<Entry>,
    /// The file whose bytes come next.
    file: Option<Body>,
    levels: Vec<Level>,
}

/// A directory that is being listed.
#[derive(Debug)]
struct Level {
    path: Vec<u8>,
    fd: OwnedFd,
    names: Dir,
}

/// A file, from here on, up to what its entry said.
#[derive(Debug)]
struct Body {
    fd: OwnedFd,
    at: u64,
    size: u64,
}

impl TreeReader {
    /// Begins to read what is at `path`.
    ///
    /// # Errors
    /// [`ReadError`] when it is not there or cannot be read.
    pub fn open(path: &Path, follow: Follow) -> Result<Self, ReadError> {
        let (at, nofollow) = match follow {
            Follow::Yes => (AtFlags::empty(), OFlags::empty()),
            Follow::No => (AtFlags::SYMLINK_NOFOLLOW, OFlags::NOFOLLOW),
        };
        let mut reader = Self {
            root: path.to_owned(),
            first: None,
            file: None,
            levels: Vec::new(),
        };
        let stat = statat(CWD, path, at).map_err(|error| reader.failed(&[], error))?;
        let entry = entry_of(Vec::new(), &stat);
        let opened = reader.enter(CWD, path, entry, nofollow);
        let entry = opened.map_err(|error| reader.failed(&[], error))?;
        reader.first = Some(entry);
        Ok(reader)
    }

    /// The root's entry, before anything is read.
    #[must_use]
    pub fn root(&self) -> Option<&Entry> {
        self.first.as_ref()
    }

    /// The next item; [`Item::End`] again and again at the end.
    ///
    /// # Errors
    /// [`ReadError`]; the tree is then not whole.
    pub fn next_item(&mut self) -> Result<Item, ReadError> {
        if let Some(entry) = self.first.take() {
            return Ok(Item::Entry(entry));
        }
        if let Some(item) = self.next_bytes()? {
            return Ok(item);
        }
        while let Some(level) = self.levels.last_mut() {
            let (path, name) = match level.names.next() {
                None => {
                    self.levels.pop();
                    continue;
                }
                Some(Ok(found)) => (level.path.clone(), found.file_name().to_owned()),
                Some(Err(error)) => {
                    let path = level.path.clone();
                    return Err(self.failed(&path, error));
                }
            };
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            if let Some(entry) = self.visit(path, &name)? {
                return Ok(Item::Entry(entry));
            }
        }
        Ok(Item::End)
    }

    /// What has this name in the innermost directory; `None` when it has gone meanwhile.
    fn visit(&mut self, mut path: Vec<u8>, name: &CStr) -> Result<Option<Entry>, ReadError> {
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(name.to_bytes());
        if path.len() > MAX_PATH || self.levels.len() > MAX_DEPTH {
            return Err(ReadError::TooDeep {
                path: beneath(&self.root, &path),
            });
        }
        let Some(fd) = self.levels.last().map(|level| level.fd.try_clone()) else {
            return Ok(None);
        };
        let fd = fd.map_err(|source| self.failed(&path, source))?;
        let stat = match statat(&fd, name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => return Ok(None),
            stat => stat.map_err(|error| self.failed(&path, error))?,
        };
        let entry = entry_of(path.clone(), &stat);
        match self.enter(&fd, name, entry, OFlags::NOFOLLOW) {
            Err(Errno::NOENT) => Ok(None),
            entered => entered.map(Some).map_err(|error| self.failed(&path, error)),
        }
    }

    /// Opens what an entry is of, so that its contents come next; the entry with what that tells.
    fn enter<P: rustix::path::Arg + Copy>(
        &mut self,
        at: impl AsFd,
        name: P,
        mut entry: Entry,
        nofollow: OFlags,
    ) -> Result<Entry, Errno> {
        // A pipe would be waited for; one that took a file's place is found out below.
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | nofollow;
        match entry.kind {
            Kind::File => {
                let fd = openat(at, name, flags, Mode::empty())?;
                let stat = fstat(&fd)?;
                entry = entry_of(entry.path, &stat);
                if entry.kind == Kind::File {
                    let size = entry.size;
                    self.file = Some(Body { fd, at: 0, size });
                }
            }
            Kind::Directory => {
                let fd = openat(at, name, flags | OFlags::DIRECTORY, Mode::empty())?;
                self.levels.push(Level {
                    path: entry.path.clone(),
                    names: Dir::read_from(&fd)?,
                    fd,
                });
            }
            Kind::Symlink => entry.link = readlinkat(at, name, Vec::new())?.into_bytes(),
            Kind::Other => {}
        }
        Ok(entry)
    }

    /// The next bytes, or zeroes, of the file that is open.
    fn next_bytes(&mut self) -> Result<Option<Item>, ReadError> {
        let Some(body) = &mut self.file else {
            return Ok(None);
        };
        let left = body.size - body.at;
        let item = if left == 0 {
            None
        } else {
            match body.next(left) {
                Ok(item) => Some(item),
                Err(source) => return Err(self.failed(&[], source)),
            }
        };
        if item.is_none() {
            self.file = None;
        }
        Ok(item)
    }

    fn failed(&self, path: &[u8], error: impl Into<io::Error>) -> ReadError {
        ReadError::Io {
            path: beneath(&self.root, path),
            source: error.into(),
        }
    }
}

impl Body {
    fn next(&mut self, left: u64) -> Result<Item, Errno> {
        let hole = self.hole(left)?;
        if hole > 0 {
            self.at += hole;
            return Ok(Item::Hole(hole));
        }
        let mut buffer = vec![0; usize::try_from(left).unwrap_or(MAX_DATA).min(MAX_DATA)];
        let read = rustix::io::pread(&self.fd, &mut buffer, self.at)?;
        if read == 0 {
            // It has shrunk since its entry was told.
            self.at += left;
            return Ok(Item::Hole(left));
        }
        buffer.truncate(read);
        self.at += read as u64;
        Ok(Item::Data(buffer))
    }

    /// How many zeroes that need no room begin here.
    fn hole(&self, left: u64) -> Result<u64, Errno> {
        match seek(&self.fd, SeekFrom::Data(self.at)) {
            Ok(data) => Ok(data.saturating_sub(self.at).min(left)),
            // No data behind here.
            Err(Errno::NXIO) => Ok(left),
            // A file system that knows of no holes.
            Err(Errno::INVAL | Errno::OPNOTSUPP) => Ok(0),
            Err(error) => Err(error),
        }
    }
}

fn entry_of(path: Vec<u8>, stat: &Stat) -> Entry {
    let kind = match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => Kind::File,
        FileType::Directory => Kind::Directory,
        FileType::Symlink => Kind::Symlink,
        _ => Kind::Other,
    };
    let ns = i128::from(stat.st_mtime) * 1_000_000_000 + i128::from(stat.st_mtime_nsec);
    Entry {
        path,
        kind,
        mode: stat.st_mode & 0o7777,
        uid: stat.st_uid,
        gid: stat.st_gid,
        size: match kind {
            Kind::File => u64::try_from(stat.st_size).unwrap_or(0),
            _ => 0,
        },
        mtime_ns: i64::try_from(ns).unwrap_or(0),
        link: Vec::new(),
    }
}
