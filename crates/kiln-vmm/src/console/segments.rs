//! Two files that together hold the newest bytes of a stream.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;

use super::Chunk;

/// Largest size of one of the two files.
pub const SEGMENT_BYTES: u64 = 1024 * 1024;

/// `older` holds the offsets `start..base`, `newer` holds `base..end`.
#[derive(Debug)]
pub(super) struct Segments {
    path: PathBuf,
    older: Option<File>,
    newer: Option<File>,
    start: u64,
    base: u64,
    end: u64,
}

impl Segments {
    /// For the writer: makes the newer file if there is none.
    pub(super) fn open(path: &Path) -> std::io::Result<Self> {
        let newer = options().append(true).create(true).open(path)?;
        Self::of(path, open_if_there(&older_path(path))?, Some(newer))
    }

    pub(super) fn open_for_reading(path: &Path) -> std::io::Result<Self> {
        Self::of(
            path,
            open_if_there(&older_path(path))?,
            open_if_there(path)?,
        )
    }

    fn of(path: &Path, older: Option<File>, newer: Option<File>) -> std::io::Result<Self> {
        let base = length(older.as_ref())?;
        let end = base + length(newer.as_ref())?;
        Ok(Self {
            path: path.to_owned(),
            older,
            newer,
            start: 0,
            base,
            end,
        })
    }

    pub(super) fn end(&self) -> u64 {
        self.end
    }

    /// Writes what it can and returns how many bytes that were.
    pub(super) fn append(&mut self, mut bytes: &[u8]) -> u64 {
        let before = self.end;
        while !bytes.is_empty() {
            if self.make_room().is_err() {
                break;
            }
            let room = usize::try_from(SEGMENT_BYTES - (self.end - self.base)).unwrap_or(0);
            let (now, rest) = bytes.split_at(bytes.len().min(room));
            match self.newer.as_mut().map(|file| file.write(now)) {
                Some(Ok(written)) if written > 0 => {
                    self.end += written as u64;
                    bytes = if written < now.len() {
                        &bytes[written..]
                    } else {
                        rest
                    };
                }
                Some(Err(error)) if error.kind() == ErrorKind::Interrupted => {}
                Some(_) | None => break,
            }
        }
        self.end - before
    }

    /// When the newer file is full it becomes the older one, in one step for whoever reads the
    /// directory; a file that could not be opened then is tried again here.
    fn make_room(&mut self) -> std::io::Result<()> {
        if self.end - self.base >= SEGMENT_BYTES {
            std::fs::rename(&self.path, older_path(&self.path))?;
            self.older = self.newer.take();
            self.start = self.base;
            self.base = self.end;
        }
        if self.newer.is_none() {
            self.newer = Some(options().append(true).create(true).open(&self.path)?);
        }
        Ok(())
    }

    pub(super) fn read(&self, offset: u64, max: usize) -> std::io::Result<Chunk> {
        let offset = offset.clamp(self.start, self.end);
        let (file, origin, limit) = if offset < self.base {
            (self.older.as_ref(), self.start, self.base)
        } else {
            (self.newer.as_ref(), self.base, self.end)
        };
        let wanted = usize::try_from(limit - offset)
            .unwrap_or(usize::MAX)
            .min(max);
        let mut bytes = vec![0; wanted];
        let mut filled = 0;
        if let Some(file) = file {
            while filled < wanted {
                match file.read_at(&mut bytes[filled..], offset - origin + filled as u64) {
                    Ok(0) => break,
                    Ok(count) => filled += count,
                    Err(error) if error.kind() == ErrorKind::Interrupted => {}
                    Err(error) => return Err(error),
                }
            }
        }
        bytes.truncate(filled);
        Ok(Chunk { offset, bytes })
    }
}

pub(super) fn remove(path: &Path) -> std::io::Result<()> {
    let mut outcome = Ok(());
    for path in [path.to_owned(), older_path(path)] {
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != ErrorKind::NotFound => outcome = Err(error),
            Ok(()) | Err(_) => {}
        }
    }
    outcome
}

fn older_path(path: &Path) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(".1");
    name.into()
}

fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    // Guests print secrets at times: for the owner only, and never through a planted link.
    options
        .read(true)
        .mode(0o600)
        .custom_flags(OFlags::NOFOLLOW.bits().cast_signed());
    options
}

fn open_if_there(path: &Path) -> std::io::Result<Option<File>> {
    match options().open(path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn length(file: Option<&File>) -> std::io::Result<u64> {
    match file {
        Some(file) => Ok(file.metadata()?.len()),
        None => Ok(0),
    }
}
