//! The file operations that publishing is made of.

use std::fs::{File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use rustix::fs::{FlockOperation, flock};

use super::store_error;
use crate::rootfs::ImageError;

/// Says what was tried and on which file.
pub(super) trait Action<T> {
    fn during(self, action: &'static str, path: &Path) -> Result<T, ImageError>;
}

impl<T> Action<T> for io::Result<T> {
    fn during(self, action: &'static str, path: &Path) -> Result<T, ImageError> {
        self.map_err(|source| store_error(action, path, source))
    }
}

impl<T> Action<T> for rustix::io::Result<T> {
    fn during(self, action: &'static str, path: &Path) -> Result<T, ImageError> {
        self.map_err(|errno| store_error(action, path, errno.into()))
    }
}

/// Takes the lock at `path`, waiting for it. Threads of one process exclude each other too.
pub(super) fn lock_file(path: &Path) -> Result<File, ImageError> {
    let file = File::options()
        .write(true)
        .create(true)
        .truncate(false)
        .open(path);
    let file = file.during("open", path)?;
    loop {
        match flock(&file, FlockOperation::LockExclusive) {
            Err(rustix::io::Errno::INTR) => {}
            other => return other.during("lock", path).map(|()| file),
        }
    }
}

/// Makes renames and creations in a directory durable.
pub(super) fn sync_directory(path: &Path) -> Result<(), ImageError> {
    File::open(path)
        .and_then(|directory| directory.sync_all())
        .during("sync", path)
}

/// Everyone may read it, nobody write.
pub(super) fn make_read_only(file: &File) -> io::Result<()> {
    file.set_permissions(Permissions::from_mode(0o444))
}

/// Replaces `path` by way of a file in `temporary`, on the same filesystem.
pub(super) fn write_atomically(
    path: &Path,
    temporary: &Path,
    content: &[u8],
) -> Result<(), ImageError> {
    let new = temporary.join("new");
    let mut file = File::create(&new).during("create", &new)?;
    file.write_all(content).during("write", &new)?;
    std::fs::rename(&new, path).during("rename", path)
}
