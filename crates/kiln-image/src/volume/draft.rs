//! A volume on its way: a directory in `tmp/` under the volume's name, and the lock that goes with
//! it.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;

use super::error::During;
use super::{DISK, VolumeError, VolumeName};
use crate::publish;

/// Excludes all others, in this process and elsewhere, from changing the volume.
#[derive(Debug)]
pub(super) struct Lock {
    _file: publish::LockFile,
}

impl Lock {
    /// Waits for it.
    pub(super) fn take(root: &Path, name: &VolumeName) -> Result<Lock, VolumeError> {
        let path = lock_path(root, name);
        let file = publish::lock_file(&path).during("lock", &path)?;
        Ok(Lock { _file: file })
    }

    /// `None` if someone else has it.
    pub(super) fn try_take(root: &Path, name: &VolumeName) -> Result<Option<Lock>, VolumeError> {
        let path = lock_path(root, name);
        let file = publish::open_lock(&path).during("open", &path)?;
        let taken = publish::flock_at_once(&file, FlockOperation::NonBlockingLockExclusive);
        Ok(taken.during("lock", &path)?.then_some(Lock { _file: file }))
    }
}

fn lock_path(root: &Path, name: &VolumeName) -> PathBuf {
    root.join("locks").join(name.as_str())
}

/// Removed with all it holds when dropped, unless it was published.
#[derive(Debug)]
pub(super) struct Draft {
    path: PathBuf,
    name: VolumeName,
    _lock: Lock,
    published: bool,
}

impl Draft {
    pub(super) fn create(root: &Path, name: &VolumeName, lock: Lock) -> Result<Draft, VolumeError> {
        let path = path_of(root, name);
        // Of a killed process: the lock is ours.
        remove(&path).during("remove", &path)?;
        // Data of users: nobody else's business.
        DirBuilder::new()
            .mode(0o700)
            .create(&path)
            .during("create", &path)?;
        Ok(Draft {
            path,
            name: name.clone(),
            _lock: lock,
            published: false,
        })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn name(&self) -> &VolumeName {
        &self.name
    }

    pub(super) fn disk(&self) -> PathBuf {
        self.path.join(DISK)
    }

    pub(super) fn create_disk(&self) -> Result<File, VolumeError> {
        let path = self.disk();
        let mut options = File::options();
        options.read(true).write(true).create_new(true).mode(0o600);
        options.open(&path).during("create", &path)
    }

    /// Gives the volume its place, in one step.
    pub(super) fn publish(mut self, to: &Path) -> Result<(), VolumeError> {
        fs::rename(&self.path, to).during("rename", to)?;
        self.published = true;
        Ok(())
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if !self.published
            && let Err(error) = remove(&self.path)
        {
            tracing::warn!(path = %self.path.display(), %error, "left for the next sweep");
        }
    }
}

fn path_of(root: &Path, name: &VolumeName) -> PathBuf {
    root.join("tmp").join(name.as_str())
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Removes the drafts that nobody works on.
pub(super) fn sweep(root: &Path) -> Result<(), VolumeError> {
    for name in names_in(&root.join("tmp"))? {
        if let Some(_lock) = Lock::try_take(root, &name)? {
            let path = path_of(root, &name);
            remove(&path).during("remove", &path)?;
        }
    }
    Ok(())
}

/// The volume names in a directory, sorted; what else lies there is not ours.
pub(super) fn names_in(directory: &Path) -> Result<Vec<VolumeName>, VolumeError> {
    let mut names = Vec::new();
    for entry in fs::read_dir(directory).during("read", directory)? {
        let name = entry.during("read", directory)?.file_name();
        names.extend(name.to_str().and_then(|name| name.parse().ok()));
    }
    names.sort();
    Ok(names)
}
