//! A directory in `tmp/` for the work of one operation, locked while its process lives.

use std::fs::File;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

use crate::publish::{LockFile, lock_file};
use crate::rootfs::{Action, ImageError};

/// Removed with all it holds when dropped, unless it was published.
#[derive(Debug)]
pub(crate) struct Workspace {
    path: PathBuf,
    /// Tells the sweep that somebody works here.
    _lock: File,
    published: bool,
}

impl Workspace {
    pub(crate) fn create(root: &Path) -> Result<Workspace, ImageError> {
        let parent = root.join("tmp");
        // Between making the directory and locking it, the sweep must not look.
        let _quiet = quiet(root)?;
        let directory = tempfile::Builder::new().prefix("").tempdir_in(&parent);
        let path = directory.during("create a directory in", &parent)?.keep();
        let lock = File::open(&path).during("open", &path)?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive).during("lock", &path)?;
        Ok(Workspace {
            path,
            _lock: lock,
            published: false,
        })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Gives the directory its final place, in one step.
    pub(super) fn publish(&mut self, to: &Path) -> Result<(), ImageError> {
        std::fs::rename(&self.path, to).during("rename", to)?;
        self.published = true;
        Ok(())
    }
}

impl Drop for Workspace {
    fn drop(&mut self) {
        if !self.published
            && let Err(error) = std::fs::remove_dir_all(&self.path)
        {
            tracing::warn!(path = %self.path.display(), %error, "left for the next sweep");
        }
    }
}

/// Nobody makes or sweeps workspaces until it is dropped.
fn quiet(root: &Path) -> Result<LockFile, ImageError> {
    let path = root.join("locks/tmp");
    lock_file(&path).during("lock", &path)
}

/// Removes the workspaces that nobody holds.
pub(super) fn sweep(root: &Path) -> Result<(), ImageError> {
    let parent = root.join("tmp");
    let _quiet = quiet(root)?;
    for entry in std::fs::read_dir(&parent).during("read", &parent)? {
        let path = entry.during("read", &parent)?.path();
        let Ok(directory) = File::open(&path) else {
            continue;
        };
        if flock(&directory, FlockOperation::NonBlockingLockExclusive).is_err() {
            continue;
        }
        let removed = if directory.metadata().is_ok_and(|metadata| metadata.is_dir()) {
            std::fs::remove_dir_all(&path)
        } else {
            std::fs::remove_file(&path)
        };
        if let Err(error) = removed {
            tracing::warn!(path = %path.display(), %error, "cannot sweep");
        }
    }
    Ok(())
}
