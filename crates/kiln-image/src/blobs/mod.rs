//! Content by its digest: layers as they travel, manifests, configs. Written by whoever fetched them,
//! shared by all, never changed; half-fetched ones stay to be gone on with. Knows nothing of what
//! the content means.
//!
//! ```text
//! blobs/sha256/<hex>    whole and verified, 0444
//! blobs/partial/<hex>   being fetched, locked by the one who fetches
//! ```

mod feed;
mod partial;

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rustix::fs::FlockOperation;
use sha2::{Digest as _, Sha256};

pub(crate) use feed::Feed;
pub(crate) use partial::{Partial, digest_of};

use crate::oci::Digest;
use crate::publish::{flock_at_once, flock_waiting};
use crate::rootfs::{Action, ImageError};

/// The blobs of one store.
#[derive(Clone, Debug)]
pub(crate) struct Blobs {
    whole: PathBuf,
    partial: PathBuf,
}

/// What one finds who wants to fetch a blob.
pub(crate) enum Begun {
    /// It is there, perhaps since someone else fetched it meanwhile.
    Whole(File),
    /// Nobody else fetches it until this is dropped.
    Mine(Partial),
}

/// One blob of the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct StoredBlob {
    pub(crate) digest: Digest,
    pub(crate) size: u64,
}

impl Blobs {
    pub(crate) fn open(root: &Path) -> Result<Blobs, ImageError> {
        let blobs = Blobs {
            whole: root.join("blobs/sha256"),
            partial: root.join("blobs/partial"),
        };
        for path in [&blobs.whole, &blobs.partial] {
            std::fs::create_dir_all(path).during("create", path)?;
        }
        Ok(blobs)
    }

    pub(crate) fn path(&self, digest: Digest) -> PathBuf {
        self.whole.join(digest.hex())
    }

    /// The blob, open. One of another length was damaged, and counts as missing.
    pub(crate) fn find(&self, digest: Digest, size: Option<u64>) -> Option<File> {
        let file = File::open(self.path(digest)).ok()?;
        let length = file.metadata().ok()?.len();
        size.is_none_or(|size| size == length).then_some(file)
    }

    /// A small blob, checked.
    pub(crate) fn read(&self, digest: Digest, limit: u64) -> Result<Option<Vec<u8>>, ImageError> {
        let Some(file) = self.find(digest, None) else {
            return Ok(None);
        };
        let mut bytes = Vec::new();
        let path = self.path(digest);
        file.take(limit)
            .read_to_end(&mut bytes)
            .during("read", &path)?;
        Ok(Some(bytes).filter(|bytes| Digest::of(bytes) == digest))
    }

    /// Keeps some bytes.
    pub(crate) fn put(&self, bytes: &[u8]) -> Result<Digest, ImageError> {
        let digest = Digest::of(bytes);
        if let Begun::Mine(mut partial) = self.begin(digest, bytes.len() as u64)? {
            partial.truncate(0)?;
            partial.append(bytes)?;
            partial.finish()?;
        }
        Ok(digest)
    }

    /// Keeps what a reader gives, which must be of this length and digest if they are given; says
    /// what it is.
    pub(crate) fn ingest(
        &self,
        mut input: impl Read,
        temporary: &Path,
        limit: u64,
    ) -> Result<StoredBlob, IngestError> {
        let unwritable = |source| {
            IngestError::Store(ImageError::Store {
                action: "write in",
                path: temporary.into(),
                source,
            })
        };
        let mut file = tempfile::NamedTempFile::new_in(temporary).map_err(unwritable)?;
        let mut hash = Sha256::new();
        let mut buffer = vec![0; 1 << 18];
        let mut size = 0;
        loop {
            let length = match input.read(&mut buffer) {
                Ok(0) => break,
                Ok(length) => length,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(IngestError::Read(error)),
            };
            size += length as u64;
            if size > limit {
                return Err(IngestError::TooLarge(limit));
            }
            hash.update(&buffer[..length]);
            io::Write::write_all(&mut file, &buffer[..length]).map_err(unwritable)?;
        }
        let digest = Digest::from(<[u8; 32]>::from(hash.finalize()));
        let path = self.path(digest);
        if self.find(digest, Some(size)).is_none() {
            crate::publish::make_read_only(file.as_file()).map_err(unwritable)?;
            file.as_file().sync_all().map_err(unwritable)?;
            file.persist(&path)
                .map_err(|error| unwritable(error.error))?;
            crate::publish::sync_directory(&self.whole).map_err(unwritable)?;
        }
        Ok(StoredBlob { digest, size })
    }

    /// Waits until nobody else fetches this blob; blocks.
    pub(crate) fn begin(&self, digest: Digest, size: u64) -> Result<Begun, ImageError> {
        let path = self.partial.join(digest.hex());
        loop {
            if let Some(file) = self.find(digest, Some(size)) {
                return Ok(Begun::Whole(file));
            }
            let file = partial::open(&path).during("open", &path)?;
            flock_waiting(&file, FlockOperation::LockExclusive).during("lock", &path)?;
            // The one before us may have finished it, or swept it away: then this is another file.
            if !partial::is_still(&file, &path) {
                continue;
            }
            if let Some(file) = self.find(digest, Some(size)) {
                // Left behind by someone who was killed between the two steps of finishing.
                let _ = std::fs::remove_file(&path);
                return Ok(Begun::Whole(file));
            }
            let target = self.path(digest);
            return Ok(Begun::Mine(Partial::new(file, path, target)));
        }
    }

    /// All whole blobs.
    pub(crate) fn list(&self) -> Result<Vec<StoredBlob>, ImageError> {
        let mut blobs = Vec::new();
        for entry in std::fs::read_dir(&self.whole).during("read", &self.whole)? {
            let entry = entry.during("read", &self.whole)?;
            let name = entry.file_name();
            let digest = name.to_str().and_then(|name| Digest::from_hex(name).ok());
            // Removed meanwhile, perhaps.
            if let (Some(digest), Ok(metadata)) = (digest, entry.metadata()) {
                let size = metadata.len();
                blobs.push(StoredBlob { digest, size });
            }
        }
        Ok(blobs)
    }

    pub(crate) fn remove(&self, digest: Digest) -> Result<(), ImageError> {
        let path = self.path(digest);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other.during("remove", &path),
        }
    }

    /// Removes half-fetched blobs that nobody has touched for so long; says how many bytes.
    pub(crate) fn sweep_partials(&self, idle: Duration) -> Result<u64, ImageError> {
        let mut freed = 0;
        for entry in std::fs::read_dir(&self.partial).during("read", &self.partial)? {
            let path = entry.during("read", &self.partial)?.path();
            let Ok(file) = File::open(&path) else {
                continue;
            };
            if !flock_at_once(&file, FlockOperation::NonBlockingLockExclusive).unwrap_or(false) {
                continue;
            }
            let metadata = file.metadata().during("examine", &path)?;
            let age = metadata.modified().map(|modified| {
                SystemTime::now()
                    .duration_since(modified)
                    .unwrap_or_default()
            });
            if age.is_ok_and(|age| age >= idle) {
                std::fs::remove_file(&path).during("remove", &path)?;
                freed += metadata.len();
            }
        }
        Ok(freed)
    }
}

/// Why content could not be taken in.
#[derive(Debug, thiserror::Error)]
pub(crate) enum IngestError {
    #[error("cannot read")]
    Read(#[source] io::Error),
    #[error("larger than {0} bytes")]
    TooLarge(u64),
    #[error(transparent)]
    Store(ImageError),
}
