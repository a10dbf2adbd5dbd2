//! Why a source does not become an image.

use std::io;
use std::path::{Path, PathBuf};

use super::filesystem::FilesystemFault;
use crate::ext4::Ext4Error;
use crate::inode::EntryName;
use crate::limits::LimitError;
use crate::spool::SpoolError;
use crate::tar::TarError;
use crate::tree::{ApplyError, TreeError};

/// An image that cannot be made or kept.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImageError {
    /// The source cannot be opened.
    #[error("cannot open {}", path.display())]
    Open {
        /// The source.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The source cannot be read or decompressed.
    #[error("cannot read {what}")]
    Read {
        /// The source, or which layer of it.
        what: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The source is nothing that an image can be made of.
    #[error("{} is neither a tar archive, a directory, nor an ext4, squashfs or erofs image", .0.display())]
    Unknown(PathBuf),
    /// The source holds no files.
    #[error("{0} holds no files")]
    Empty(String),
    /// One layer is too big.
    #[error("{what} is larger than {limit} bytes after decompression")]
    LayerTooLarge {
        /// The source, or which layer of it.
        what: String,
        /// The limit.
        limit: u64,
    },
    /// Too many layers.
    #[error("{found} layers; at most {limit} are allowed")]
    Layers {
        /// Layers given.
        found: usize,
        /// The limit.
        limit: usize,
    },
    /// The image as a whole is too big.
    #[error("{what}: {limit}")]
    Limit {
        /// The source.
        what: String,
        /// The limit.
        limit: LimitError,
    },
    /// An archive is damaged or hostile.
    #[error(transparent)]
    Tar(#[from] TarError),
    /// A layer does not fit on those below it.
    #[error(transparent)]
    Tree(#[from] TreeError),
    /// The tree cannot be an ext4 filesystem, or the disk cannot hold it.
    #[error(transparent)]
    Ext4(#[from] Ext4Error),
    /// A filesystem image is damaged or of an unknown make.
    #[error("{}: {fault}", path.display())]
    Filesystem {
        /// The image.
        path: PathBuf,
        /// What is wrong.
        fault: FilesystemFault,
    },
    /// A file of a source directory cannot be read.
    #[error("cannot read {entry} in {}", directory.display())]
    Walk {
        /// The source.
        directory: PathBuf,
        /// The file.
        entry: EntryName,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Someone wrote to the source.
    #[error("{0} changed while the image was built; try again")]
    Changed(String),
    /// The store's own files cannot be written or read (a full disk, most often).
    #[error("image store: cannot {action} {}", path.display())]
    Store {
        /// What was tried.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The layers give another content than the image's config names.
    #[error(
        "the layers are not the ones that the image's config names: their plain content differs"
    )]
    OtherLayers,
    /// The image is in use.
    #[error("image {0} is in use")]
    InUse(String),
    /// There is no such image.
    #[error("there is no image {0}")]
    NotFound(String),
}

impl ImageError {
    /// Whether a full disk or quota is the cause.
    #[must_use]
    pub fn is_disk_full(&self) -> bool {
        let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(self);
        while let Some(error) = cause {
            if let Some(error) = error.downcast_ref::<io::Error>() {
                let kind = error.kind();
                return matches!(
                    kind,
                    io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
                );
            }
            cause = error.source();
        }
        false
    }

    pub(super) fn spool(what: &str, temporary: &Path, error: SpoolError) -> ImageError {
        let what = what.to_owned();
        match error {
            SpoolError::Read(source) => ImageError::Read { what, source },
            SpoolError::Write(source) => ImageError::Store {
                action: "write in",
                path: temporary.into(),
                source,
            },
            SpoolError::TooLarge(limit) => ImageError::LayerTooLarge { what, limit },
            SpoolError::Limit(limit) => ImageError::Limit { what, limit },
        }
    }
}

impl From<ApplyError> for ImageError {
    fn from(error: ApplyError) -> ImageError {
        match error {
            ApplyError::Tar(error) => error.into(),
            ApplyError::Tree(error) => error.into(),
        }
    }
}

/// Says what was tried on the store's own files, and on which.
pub(crate) trait Action<T> {
    fn during(self, action: &'static str, path: &Path) -> Result<T, ImageError>;
}

impl<T, E: Into<io::Error>> Action<T> for Result<T, E> {
    fn during(self, action: &'static str, path: &Path) -> Result<T, ImageError> {
        self.map_err(|error| ImageError::Store {
            action,
            path: path.into(),
            source: error.into(),
        })
    }
}
