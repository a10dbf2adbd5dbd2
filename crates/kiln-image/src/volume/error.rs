//! Why an operation on a volume failed.

use std::io;
use std::path::{Path, PathBuf};

use super::{E2fsError, LEAST, MOST, VolumeName};
use crate::rootfs::FilesystemFault;

/// A volume that cannot be made, changed or had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VolumeError {
    /// The name is taken.
    #[error("there is a volume {0} already")]
    Exists(VolumeName),
    /// Nothing has this name.
    #[error("there is no volume {0}")]
    NotFound(VolumeName),
    /// Someone has it attached.
    #[error("volume {0} is in use; stop the sandboxes that have it first")]
    InUse(VolumeName),
    /// No filesystem of this size can be made.
    #[error("a volume of {size_bytes} bytes cannot be made; {LEAST} to {MOST} bytes are possible")]
    Size {
        /// Size asked for.
        size_bytes: u64,
    },
    /// Volumes only grow.
    #[error("a volume of {from} bytes cannot become one of {to} bytes: volumes only grow")]
    Shrink {
        /// Size it has.
        from: u64,
        /// Size asked for.
        to: u64,
    },
    /// The file to import is no ext4 image.
    #[error("{} is not an ext4 image", .0.display())]
    NotExt4(PathBuf),
    /// The file to import is a damaged image.
    #[error("{}: {fault}", path.display())]
    Damaged {
        /// The image.
        path: PathBuf,
        /// What is wrong.
        fault: FilesystemFault,
    },
    /// The filesystem cannot be made, checked or grown.
    #[error(transparent)]
    E2fs(#[from] E2fsError),
    /// The description of a volume cannot be understood.
    #[error("{} is damaged", path.display())]
    Record {
        /// The description.
        path: PathBuf,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// A file operation failed (a full disk, most often).
    #[error("volumes: cannot {action} {}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Says what was tried, and on which file.
pub(super) trait During<T> {
    fn during(self, action: &'static str, path: &Path) -> Result<T, VolumeError>;
}

impl<T, E: Into<io::Error>> During<T> for Result<T, E> {
    fn during(self, action: &'static str, path: &Path) -> Result<T, VolumeError> {
        self.map_err(|error| VolumeError::Io {
            action,
            path: path.into(),
            source: error.into(),
        })
    }
}
