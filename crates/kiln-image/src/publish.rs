//! Writing files so that a reader sees all of them or nothing.
//!
//! Owns the temp, fsync, rename, fsync-of-the-directory sequence, locks between processes, and the
//! recognition of files that have not changed since they were last verified.

use std::fs::{self, File, Permissions};
use std::io::{self, Read, Write};
use std::ops::Deref;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::partial;

/// Writes `bytes` to `path` through a temporary file beside it.
pub(crate) fn write_atomically(path: &Path, bytes: &[u8]) -> io::Result<()> {
    write_atomically_via(path, parent(path)?, bytes)
}

/// Writes `bytes` to `path` through a file in `temporary`, on the same filesystem: for directories
/// where half-written files must not show even for a moment.
pub(crate) fn write_atomically_via(path: &Path, temporary: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = partial::file_in(temporary)?;
    file.write_all(bytes)?;
    make_readable(file.as_file())?;
    file.as_file().sync_all()?;
    file.persist(path).map_err(|error| error.error)?;
    sync_directory(parent(path)?)
}

/// Everyone may read it who gets to it: the stores' directories are private, and a jailed VMM,
/// which is another user, gets the file itself by a link. A file that only its owner may read
/// would be copied into each jail instead.
pub(crate) fn make_readable(file: &File) -> io::Result<()> {
    file.set_permissions(Permissions::from_mode(0o644))
}

/// Makes a rename or creation inside `directory` durable.
pub(crate) fn sync_directory(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

/// Everyone may read it, nobody write.
pub(crate) fn make_read_only(file: &File) -> io::Result<()> {
    file.set_permissions(Permissions::from_mode(0o444))
}

/// A file for locking, which is let go of when this is dropped. To close it would not do: a program
/// that is just being started has a copy of it until it is executed.
#[derive(Debug)]
pub(crate) struct LockFile(File);

impl Deref for LockFile {
    type Target = File;

    fn deref(&self) -> &File {
        &self.0
    }
}

impl Drop for LockFile {
    fn drop(&mut self) {
        let _ = flock(&self.0, FlockOperation::Unlock);
    }
}

/// Takes the lock at `path`, waiting for it. Threads of one process exclude each other too. The
/// file stays behind; it is the name that everybody meets at.
pub(crate) fn lock_file(path: &Path) -> io::Result<LockFile> {
    let file = open_lock(path)?;
    flock_waiting(&file, FlockOperation::LockExclusive)?;
    Ok(file)
}

/// Opens a lock file without locking it.
pub(crate) fn open_lock(path: &Path) -> io::Result<LockFile> {
    let mut options = File::options();
    let options = options.write(true).create(true).truncate(false);
    options.open(path).map(LockFile)
}

/// Locks an open file, signals or not.
pub(crate) fn flock_waiting(file: &File, operation: FlockOperation) -> io::Result<()> {
    loop {
        match flock(file, operation) {
            Err(Errno::INTR) => {}
            other => return other.map_err(io::Error::from),
        }
    }
}

/// Locks an open file if that needs no waiting; says whether it did.
pub(crate) fn flock_at_once(file: &File, operation: FlockOperation) -> io::Result<bool> {
    match flock_waiting(file, operation) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
        Err(error) => Err(error),
    }
}

/// The directory that holds `path`.
pub(crate) fn parent(path: &Path) -> io::Result<&Path> {
    path.parent()
        .ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))
}

/// SHA-256 of a reader's whole content, in lower-case hex, and its length.
pub(crate) fn digest_reader(mut reader: impl Read) -> io::Result<(String, u64)> {
    let mut hasher = Sha256::new();
    let mut buffer = vec![0_u8; 1 << 18];
    let mut length = 0;
    loop {
        let count = reader.read(&mut buffer)?;
        if count == 0 {
            return Ok((hex::encode(hasher.finalize()), length));
        }
        hasher.update(&buffer[..count]);
        length += count as u64;
    }
}

/// SHA-256 of some bytes in lower-case hex.
pub(crate) fn digest(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

/// What `stat` says of a file; the same stamp means that nobody wrote to it in between.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct FileStamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: Option<(i64, i64)>,
}

impl FileStamp {
    /// Of anybody's file. The change time cannot be set by programs, so a writer that restores the
    /// modification time is still seen.
    pub(crate) fn of(path: &Path) -> io::Result<Self> {
        let metadata = fs::metadata(path)?;
        Ok(Self {
            changed: Some((metadata.ctime(), metadata.ctime_nsec())),
            ..Self::without_changes(&metadata)
        })
    }

    /// Of a file of ours in a private directory, where nobody restores times. Each jail that gets
    /// the file by a hard link, and loses it again, changes the change time.
    pub(crate) fn of_published(path: &Path) -> io::Result<Self> {
        Ok(Self::without_changes(&fs::metadata(path)?))
    }

    fn without_changes(metadata: &fs::Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_is_let_go_of_whoever_has_a_copy_of_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let is_free = || {
            let file = open_lock(&path).unwrap();
            flock_at_once(&file, FlockOperation::NonBlockingLockExclusive).unwrap()
        };
        let lock = lock_file(&path).unwrap();
        assert!(!is_free());
        let _as_a_child_has_it = lock.try_clone().unwrap();
        drop(lock);
        assert!(is_free());
    }
}
