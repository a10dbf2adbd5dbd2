//! Images in files: what `docker save` writes, OCI archives, OCI layout directories. Owns how content
//! is found in them by name; what the content means is `oci`'s.

mod container;
mod docker;
mod layout;

use std::io::{self, Read};
use std::path::PathBuf;

use bytes::Bytes;

pub(crate) use container::Container;

use crate::inode::EntryName;
use crate::limits::LimitError;
use crate::oci::{Digest, Manifest, ManifestError, Platform, PlatformError, Reference};
use crate::spool::SpoolError;
use crate::tar::TarError;

/// One image of an archive.
pub(crate) struct ArchivedImage {
    pub(crate) names: Vec<Reference>,
    pub(crate) config: Bytes,
    pub(crate) body: ArchivedBody,
}

/// Where its layers are.
pub(crate) enum ArchivedBody {
    /// Under their digests.
    Addressed {
        bytes: Bytes,
        digest: Digest,
        manifest: Box<Manifest>,
    },
    /// Under these names, lowest first; the manifest is to be made.
    Named(Vec<String>),
}

/// Why an archive of images cannot be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ArchiveError {
    /// It cannot be opened or read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The archive.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The archive around the image is damaged or hostile.
    #[error(transparent)]
    Tar(#[from] TarError),
    /// It is larger than allowed.
    #[error("larger than {0} bytes after decompression")]
    TooLarge(u64),
    /// It costs more than allowed.
    #[error(transparent)]
    Limit(#[from] LimitError),
    /// Something that it names is not in it.
    #[error("{0} is missing")]
    Missing(EntryName),
    /// A description is malformed.
    #[error("{what} is malformed")]
    Malformed {
        /// Which.
        what: &'static str,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// A description is larger than any real one.
    #[error("{0} is too long")]
    TooLong(EntryName),
    /// Content is not what its name says.
    #[error("{0} has another content than its digest says")]
    WrongDigest(Digest),
    /// Neither an image nor an index of images.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// No build for the platform.
    #[error(transparent)]
    Platform(#[from] PlatformError),
    /// It holds no image.
    #[error("it holds no image")]
    Empty,
}

impl ArchiveError {
    fn spool(path: &std::path::Path, error: SpoolError) -> ArchiveError {
        match error {
            SpoolError::Read(source) | SpoolError::Write(source) => ArchiveError::Read {
                path: path.into(),
                source,
            },
            SpoolError::TooLarge(limit) => ArchiveError::TooLarge(limit),
            SpoolError::Limit(limit) => ArchiveError::Limit(limit),
        }
    }
}

impl Container {
    /// The images in it that run on `platform`.
    pub(crate) fn images(&self, platform: &Platform) -> Result<Vec<ArchivedImage>, ArchiveError> {
        // Newer Dockers write both; the one with digests says more.
        let images = if self.has("index.json") && self.has("oci-layout") {
            layout::images(self, platform)?
        } else {
            docker::images(self)?
        };
        if images.is_empty() {
            return Err(ArchiveError::Empty);
        }
        Ok(images)
    }

    /// Content by its digest; not checked here.
    pub(crate) fn blob(&self, digest: Digest) -> Result<Box<dyn Read + Send>, ArchiveError> {
        self.open_entry(&blob_name(digest))
    }

    fn small_blob(&self, digest: Digest) -> Result<Bytes, ArchiveError> {
        let bytes = self.document(&blob_name(digest))?;
        if Digest::of(&bytes) != digest {
            return Err(ArchiveError::WrongDigest(digest));
        }
        Ok(bytes.into())
    }
}

fn blob_name(digest: Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

/// Door for the fuzz target: reads whatever index and manifests the bytes hold.
pub(crate) fn fuzz(bytes: &[u8]) {
    let budget = crate::limits::Budget::new(&crate::limits::Limits::default());
    if let Ok(container) = Container::in_memory(bytes, &budget) {
        let _ = container.images(&Platform::host());
    }
}
