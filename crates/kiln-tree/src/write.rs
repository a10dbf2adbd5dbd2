//! Writing a tree beneath a place in a file system, one item at a time.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid, chownat, fchmod, fchown,
    fstat, ftruncate, futimens, mkdirat, openat, symlinkat, unlinkat, utimensat,
};
use rustix::io::Errno;

use crate::entry::{Entry, Kind, PathFault, beneath, check_path, split};
use crate::wire::Item;

/// Whose the written files are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Owner {
    /// The writer's.
    #[default]
    Writer,
    /// These.
    Fixed {
        /// User.
        uid: u32,
        /// Group.
        gid: u32,
    },
    /// Whose they were where they came from.
    AsRead,
}

/// How a tree is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WriteOptions {
    /// Whose the files are.
    pub owner: Owner,
    /// Whether set-user-id and set-group-id bits are kept: not from a hostile place.
    pub keep_set_id: bool,
}

/// Why a tree cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The file system refused something.
    #[error("cannot write {}", path.display())]
    Io {
        /// What.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// An entry has a path that is not taken.
    #[error("the path {:?} is refused", String::from_utf8_lossy(path))]
    Path {
        /// The path.
        path: Vec<u8>,
        /// Why.
        #[source]
        source: PathFault,
    },
    /// An entry came without its directory before it, or bytes without or beyond their file.
    #[error("the tree is not in order at {:?}", String::from_utf8_lossy(path))]
    Disorder {
        /// Where.
        path: Vec<u8>,
    },
    /// Something else is in the place of a file or directory: a link, a device.
    #[error("{} is there and is something else", path.display())]
    InTheWay {
        /// What.
        path: PathBuf,
    },
    /// The other end could not go on.
    #[error("the tree broke off: {0}")]
    Failed(String),
    /// The stream ended before the tree did.
    #[error("the tree broke off")]
    Truncated,
}

/// Writes a tree. What is dropped before [`TreeWriter::finish`] stays as far as it came.
#[derive(Debug)]
pub struct TreeWriter {
    root: PathBuf,
    options: WriteOptions,
    levels: Vec<Level>,
    file: Option<Body>,
    begun: bool,
    ended: bool,
    skipped: Vec<PathBuf>,
}

/// A directory whose contents come.
#[derive(Debug)]
struct Level {
    fd: OwnedFd,
    entry: Entry,
}

/// A file whose bytes come.
#[derive(Debug)]
struct Body {
    fd: OwnedFd,
    entry: Entry,
    at: u64,
}

/// Devices, sockets and pipes that are remembered as skipped; the rest is not.
const MAX_SKIPPED: usize = 64;

impl TreeWriter {
    /// Will write a tree's root to `place`, whose directory must exist.
    #[must_use]
    pub fn new(place: &Path, options: WriteOptions) -> Self {
        Self {
            root: place.to_owned(),
            options,
            levels: Vec::new(),
            file: None,
            begun: false,
            ended: false,
            skipped: Vec::new(),
        }
    }

    /// Writes the next item.
    ///
    /// # Errors
    /// [`WriteError`]; the writer is of no use then.
    pub fn put(&mut self, item: &Item) -> Result<(), WriteError> {
        if self.ended {
            return Err(self.disorder(&[]));
        }
        match item {
            Item::Entry(entry) => self.entry(entry),
            Item::Data(data) => self.data(data),
            Item::Hole(size) => self.hole(*size),
            Item::End => {
                self.close_file()?;
                self.close_levels(0)?;
                self.ended = true;
                Ok(())
            }
            Item::Failed(reason) => Err(WriteError::Failed(reason.clone())),
        }
    }

    /// Whether the tree is whole.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.ended
    }

    /// Devices, sockets and pipes that were not made.
    ///
    /// # Errors
    /// [`WriteError::Truncated`] when the end did not come.
    pub fn finish(self) -> Result<Vec<PathBuf>, WriteError> {
        if self.ended {
            Ok(self.skipped)
        } else {
            Err(WriteError::Truncated)
        }
    }

    fn entry(&mut self, entry: &Entry) -> Result<(), WriteError> {
        check_path(&entry.path).map_err(|source| WriteError::Path {
            path: entry.path.clone(),
            source,
        })?;
        self.close_file()?;
        let Some((directory, name)) = split(&entry.path) else {
            if std::mem::replace(&mut self.begun, true) {
                return Err(self.disorder(&entry.path));
            }
            let root = self.root.clone();
            // The place is the caller's word: a link in it is followed.
            return self.make(None, root.as_os_str().as_encoded_bytes(), entry);
        };
        self.come_back_to(directory)?;
        let Some(level) = self.levels.last() else {
            return Err(self.disorder(&entry.path));
        };
        let fd = level.fd.try_clone();
        let fd = fd.map_err(|source| self.failed(&entry.path, source))?;
        self.make(Some(&fd), name, entry)
    }

    /// Leaves directories until this one is the innermost.
    fn come_back_to(&mut self, directory: &[u8]) -> Result<(), WriteError> {
        let found = self
            .levels
            .iter()
            .rposition(|level| level.entry.path == directory);
        let Some(depth) = found else {
            return Err(self.disorder(directory));
        };
        self.close_levels(depth + 1)
    }

    fn make(&mut self, at: Option<&OwnedFd>, name: &[u8], entry: &Entry) -> Result<(), WriteError> {
        let made = Making { at, name, entry }.run(self.options);
        match made {
            Ok(Made::File(fd)) => {
                self.file = Some(Body {
                    fd,
                    entry: entry.clone(),
                    at: 0,
                });
            }
            Ok(Made::Directory(fd)) => self.levels.push(Level {
                fd,
                entry: entry.clone(),
            }),
            Ok(Made::Link) => {}
            Ok(Made::Nothing) => {
                if self.skipped.len() < MAX_SKIPPED {
                    self.skipped.push(beneath(&self.root, &entry.path));
                }
            }
            Err(Errno::LOOP | Errno::NOTDIR | Errno::ISDIR | Errno::EXIST) => {
                return Err(WriteError::InTheWay {
                    path: beneath(&self.root, &entry.path),
                });
            }
            Err(error) => return Err(self.failed(&entry.path, error)),
        }
        Ok(())
    }

    fn data(&mut self, data: &[u8]) -> Result<(), WriteError> {
        self.advance(data.len() as u64, |body| {
            let mut rest = data;
            let mut at = body.at;
            while !rest.is_empty() {
                let written = rustix::io::pwrite(&body.fd, rest, at)?;
                rest = &rest[written..];
                at += written as u64;
            }
            Ok(())
        })
    }

    fn hole(&mut self, size: u64) -> Result<(), WriteError> {
        // The file was empty, and gets its size at its end.
        self.advance(size, |_| Ok(()))
    }

    fn advance(
        &mut self,
        size: u64,
        write: impl FnOnce(&Body) -> Result<(), Errno>,
    ) -> Result<(), WriteError> {
        let Some(body) = &mut self.file else {
            return Err(self.disorder(&[]));
        };
        if size > body.entry.size - body.at {
            let path = body.entry.path.clone();
            return Err(self.disorder(&path));
        }
        match write(body) {
            Ok(()) => {
                body.at += size;
                Ok(())
            }
            Err(error) => {
                let path = body.entry.path.clone();
                Err(self.failed(&path, error))
            }
        }
    }

    /// What the file's entry said, once its bytes are there.
    fn close_file(&mut self) -> Result<(), WriteError> {
        let Some(body) = self.file.take() else {
            return Ok(());
        };
        if body.at != body.entry.size {
            return Err(self.disorder(&body.entry.path));
        }
        ftruncate(&body.fd, body.entry.size)
            .and_then(|()| settle(body.fd.as_fd(), &body.entry, self.options))
            .map_err(|error| self.failed(&body.entry.path, error))
    }

    /// Leaves the innermost directories; what their entries said holds once nothing more comes.
    fn close_levels(&mut self, keep: usize) -> Result<(), WriteError> {
        while self.levels.len() > keep {
            if let Some(level) = self.levels.pop() {
                settle(level.fd.as_fd(), &level.entry, self.options)
                    .map_err(|error| self.failed(&level.entry.path, error))?;
            }
        }
        Ok(())
    }

    fn disorder(&self, path: &[u8]) -> WriteError {
        WriteError::Disorder {
            path: path.to_vec(),
        }
    }

    fn failed(&self, path: &[u8], error: impl Into<io::Error>) -> WriteError {
        WriteError::Io {
            path: beneath(&self.root, path),
            source: error.into(),
        }
    }
}

/// One entry on its way into a directory that is held open, or, as the root, to a path.
struct Making<'a> {
    at: Option<&'a OwnedFd>,
    name: &'a [u8],
    entry: &'a Entry,
}

/// What was made of an entry.
enum Made {
    File(OwnedFd),
    Directory(OwnedFd),
    Link,
    Nothing,
}

impl Making<'_> {
    fn run(&self, options: WriteOptions) -> Result<Made, Errno> {
        match self.entry.kind {
            Kind::File => self.file().map(Made::File),
            Kind::Directory => self.directory().map(Made::Directory),
            Kind::Symlink => self.link(options).map(|()| Made::Link),
            Kind::Other => Ok(Made::Nothing),
        }
    }

    fn at(&self) -> BorrowedFd<'_> {
        self.at.map_or(CWD, AsFd::as_fd)
    }

    /// Links are followed in the root's path only.
    fn nofollow(&self) -> OFlags {
        match self.at {
            Some(_) => OFlags::NOFOLLOW,
            None => OFlags::empty(),
        }
    }

    fn file(&self) -> Result<OwnedFd, Errno> {
        // Not truncated before it is known to be a file. A pipe must not be waited for.
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NONBLOCK;
        // Nobody else reads it before its entry's mode holds.
        let mode = Mode::from_raw_mode(0o600);
        let fd = openat(self.at(), self.name, flags | self.nofollow(), mode)?;
        let stat = fstat(&fd)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(Errno::EXIST);
        }
        ftruncate(&fd, 0)?;
        Ok(fd)
    }

    fn directory(&self) -> Result<OwnedFd, Errno> {
        match mkdirat(self.at(), self.name, Mode::from_raw_mode(0o700)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(error),
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        openat(self.at(), self.name, flags | self.nofollow(), Mode::empty())
    }

    fn link(&self, options: WriteOptions) -> Result<(), Errno> {
        if self.entry.link.is_empty() || self.entry.link.contains(&0) {
            return Err(Errno::INVAL);
        }
        let link = self.entry.link.as_slice();
        match symlinkat(link, self.at(), self.name) {
            Err(Errno::EXIST) => {
                // Another link or a file; a directory is not replaced.
                unlinkat(self.at(), self.name, AtFlags::empty())?;
                symlinkat(link, self.at(), self.name)?;
            }
            linked => linked?,
        }
        if let Some((uid, gid)) = owner(self.entry, options) {
            let flags = AtFlags::SYMLINK_NOFOLLOW;
            chownat(self.at(), self.name, Some(uid), Some(gid), flags)?;
        }
        let times = times(self.entry);
        utimensat(self.at(), self.name, &times, AtFlags::SYMLINK_NOFOLLOW)
    }
}

/// Owner, mode and time, in this order: a change of the owner takes set-id bits away.
fn settle(fd: BorrowedFd<'_>, entry: &Entry, options: WriteOptions) -> Result<(), Errno> {
    if let Some((uid, gid)) = owner(entry, options) {
        fchown(fd, Some(uid), Some(gid))?;
    }
    let bits = if options.keep_set_id { 0o7777 } else { 0o1777 };
    fchmod(fd, Mode::from_raw_mode(entry.mode & bits))?;
    futimens(fd, &times(entry))
}

fn owner(entry: &Entry, options: WriteOptions) -> Option<(Uid, Gid)> {
    let (uid, gid) = match options.owner {
        Owner::Writer => return None,
        Owner::Fixed { uid, gid } => (uid, gid),
        Owner::AsRead => (entry.uid, entry.gid),
    };
    // The highest number means "leave it".
    (uid != u32::MAX && gid != u32::MAX).then(|| (Uid::from_raw(uid), Gid::from_raw(gid)))
}

fn times(entry: &Entry) -> Timestamps {
    let time = Timespec {
        tv_sec: entry.mtime_ns.div_euclid(1_000_000_000),
        tv_nsec: entry.mtime_ns.rem_euclid(1_000_000_000) as _,
    };
    Timestamps {
        last_access: time,
        last_modification: time,
    }
}
