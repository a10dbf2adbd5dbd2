//! Where the bytes of an image's files come from while it is written: spooled layers, files of a
//! directory tree, memory. Knows neither archives nor disk formats.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::fs::{Mode, OFlags, ResolveFlags, Stat};

/// Which source a file's ranges count in.
#[derive(Clone, Debug)]
pub(crate) enum Origin {
    /// The spooled archive with this number.
    Layer(u32),
    /// A file below the source directory, as it was when the tree was walked.
    Path(Box<[u8]>, Stamp),
    /// These bytes.
    #[allow(dead_code, reason = "used by in-memory layers")]
    Bytes(Arc<[u8]>),
}

/// What a file looked like: if any of this differs later, someone wrote to it meanwhile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stamp {
    device: u64,
    inode: u64,
    size: i64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    #[allow(
        clippy::unnecessary_cast,
        reason = "field widths differ between architectures"
    )]
    pub(crate) fn of(stat: &Stat) -> Stamp {
        Stamp {
            device: stat.st_dev as u64,
            inode: stat.st_ino as u64,
            size: stat.st_size as i64,
            modified: (stat.st_mtime as i64, stat.st_mtime_nsec as i64),
            changed: (stat.st_ctime as i64, stat.st_ctime_nsec as i64),
        }
    }
}

/// Timestamps may lag a change by one tick of the clock: 10 ms at worst, or two seconds where a
/// filesystem keeps no fractions.
const TICK: Duration = Duration::from_millis(50);
const COARSE_TICK: Duration = Duration::from_secs(2);

impl Stamp {
    /// The stamp as bytes, if the last change is so long ago that another one would show.
    pub(crate) fn settled(&self) -> Option<Vec<u8>> {
        let (seconds, nanoseconds) = self.changed;
        let changed = Duration::new(
            u64::try_from(seconds).ok()?,
            u32::try_from(nanoseconds).ok()?,
        );
        let age = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .ok()?
            .checked_sub(changed)?;
        let tick = if nanoseconds == 0 { COARSE_TICK } else { TICK };
        if age < tick {
            return None;
        }
        let (modified, changed) = (self.modified, self.changed);
        let numbers = [self.size, modified.0, modified.1, changed.0, changed.1];
        let mut bytes = [self.device.to_le_bytes(), self.inode.to_le_bytes()].concat();
        bytes.extend(numbers.iter().flat_map(|number| number.to_le_bytes()));
        Some(bytes)
    }

    /// Whether both are of one file, whatever happened to it.
    pub(crate) fn same_file(&self, other: &Stamp) -> bool {
        (self.device, self.inode) == (other.device, other.inode)
    }
}

/// Why content could not be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ContentError {
    #[error("cannot read content")]
    Read(#[source] io::Error),
    #[error("changed while it was read")]
    Changed,
}

/// The sources of one image.
#[derive(Debug, Default)]
pub(crate) struct Contents {
    pub(crate) layers: Vec<File>,
    pub(crate) directory: Option<OwnedFd>,
}

/// Content of one file, open for reading.
pub(crate) enum Reader<'a> {
    Borrowed(&'a File),
    Opened(File, Stamp),
    Bytes(&'a [u8]),
}

impl Contents {
    pub(crate) fn open<'a>(&'a self, origin: &'a Origin) -> Result<Reader<'a>, ContentError> {
        match origin {
            Origin::Layer(number) => {
                let missing = || ContentError::Read(io::ErrorKind::NotFound.into());
                self.layers
                    .get(*number as usize)
                    .map(Reader::Borrowed)
                    .ok_or_else(missing)
            }
            Origin::Bytes(bytes) => Ok(Reader::Bytes(bytes)),
            Origin::Path(path, stamp) => {
                let missing = || ContentError::Read(io::ErrorKind::NotFound.into());
                let directory = self.directory.as_ref().ok_or_else(missing)?;
                let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
                let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
                let file = rustix::fs::openat2(directory, &**path, flags, Mode::empty(), resolve)
                    .map_err(|errno| ContentError::Read(errno.into()))?;
                let reader = Reader::Opened(File::from(file), *stamp);
                reader.check_unchanged()?;
                Ok(reader)
            }
        }
    }
}

impl Reader<'_> {
    pub(crate) fn read_at(&self, buffer: &mut [u8], position: u64) -> Result<(), ContentError> {
        match self {
            Reader::Borrowed(file) => file
                .read_exact_at(buffer, position)
                .map_err(ContentError::Read),
            // Shorter than when it was walked: somebody cut it.
            Reader::Opened(file, _) => match file.read_exact_at(buffer, position) {
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                    Err(ContentError::Changed)
                }
                other => other.map_err(ContentError::Read),
            },
            Reader::Bytes(bytes) => {
                let start = usize::try_from(position).unwrap_or(usize::MAX);
                let end = start.saturating_add(buffer.len());
                let bytes = bytes.get(start..end).ok_or(ContentError::Changed)?;
                buffer.copy_from_slice(bytes);
                Ok(())
            }
        }
    }

    /// To be called after the last read: what was read is what was walked.
    pub(crate) fn check_unchanged(&self) -> Result<(), ContentError> {
        let Reader::Opened(file, stamp) = self else {
            return Ok(());
        };
        let stat = rustix::fs::fstat(file).map_err(|errno| ContentError::Read(errno.into()))?;
        if Stamp::of(&stat) == *stamp {
            Ok(())
        } else {
            Err(ContentError::Changed)
        }
    }
}
