//! A blob on its way in: a file that grows, is checked as a whole, and then gets its name.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use sha2::{Digest as _, Sha256};

use crate::oci::Digest;
use crate::publish::{make_read_only, parent, sync_directory};
use crate::rootfs::{Action, ImageError};

/// Held by the one who fetches a blob. Dropped unfinished, it stays for the next one to go on.
#[derive(Debug)]
pub(crate) struct Partial {
    /// Carries the lock.
    file: File,
    path: PathBuf,
    target: PathBuf,
}

pub(super) fn open(path: &Path) -> io::Result<File> {
    File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
}

/// Whether the file still has this name.
pub(super) fn is_still(file: &File, path: &Path) -> bool {
    match (file.metadata(), std::fs::symlink_metadata(path)) {
        (Ok(ours), Ok(named)) => (ours.dev(), ours.ino()) == (named.dev(), named.ino()),
        _ => false,
    }
}

impl Partial {
    pub(super) fn new(file: File, path: PathBuf, target: PathBuf) -> Partial {
        Partial { file, path, target }
    }

    /// Another handle to read the same file by.
    pub(crate) fn reader(&self) -> Result<File, ImageError> {
        File::open(&self.path).during("open", &self.path)
    }

    pub(crate) fn len(&self) -> Result<u64, ImageError> {
        let metadata = self.file.metadata().during("examine", &self.path)?;
        Ok(metadata.len())
    }

    /// SHA-256 of what is there, to be gone on with.
    pub(crate) fn hash(&self) -> Result<Sha256, ImageError> {
        let mut hash = Sha256::new();
        let mut buffer = vec![0; 1 << 18];
        let mut at = 0;
        loop {
            match self
                .file
                .read_at(&mut buffer, at)
                .during("read", &self.path)?
            {
                0 => return Ok(hash),
                length => {
                    hash.update(&buffer[..length]);
                    at += length as u64;
                }
            }
        }
    }

    pub(crate) fn truncate(&mut self, length: u64) -> Result<(), ImageError> {
        self.file.set_len(length).during("truncate", &self.path)
    }

    pub(crate) fn append(&mut self, bytes: &[u8]) -> Result<(), ImageError> {
        let end = self.len()?;
        self.write_at(bytes, end)
    }

    pub(crate) fn write_at(&mut self, bytes: &[u8], at: u64) -> Result<(), ImageError> {
        self.file
            .write_all_at(bytes, at)
            .during("write", &self.path)
    }

    /// Gives the blob its name. The caller has checked the digest.
    pub(crate) fn finish(self) -> Result<(), ImageError> {
        make_read_only(&self.file).during("protect", &self.path)?;
        self.file.sync_all().during("sync", &self.path)?;
        std::fs::rename(&self.path, &self.target).during("rename", &self.path)?;
        let directory = parent(&self.target).during("sync", &self.target)?;
        sync_directory(directory).during("sync", directory)
    }

    /// What came is worth nothing.
    pub(crate) fn discard(self) {
        if let Err(error) = std::fs::remove_file(&self.path) {
            tracing::debug!(path = %self.path.display(), %error, "partial blob stays");
        }
    }
}

/// Whether a hash that was gone on with ends as it must.
pub(crate) fn digest_of(hash: &Sha256) -> Digest {
    Digest::from(<[u8; 32]>::from(hash.clone().finalize()))
}
