//! Why the library cannot do what is asked.

use std::path::PathBuf;

use crate::archive::ArchiveError;
use crate::export::ExportError;
use crate::oci::{ConfigError, ReferenceError};
use crate::registry::RegistryError;
use crate::rootfs::ImageError;

/// An image that cannot be pulled, found, changed or written out.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LibraryError {
    /// The text names no image.
    #[error(transparent)]
    Reference(#[from] ReferenceError),
    /// The registry refuses, fails or lies.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// The layers do not become a block image, or the store fails.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// The image's config cannot be used.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The config and the manifest tell of different numbers of layers.
    #[error("the image's config tells of {config} layers, its manifest of {manifest}")]
    LayerCount {
        /// In the config.
        config: usize,
        /// In the manifest.
        manifest: usize,
    },
    /// The image is for another machine.
    #[error("{image} is built for {found}, not for {wanted}")]
    Platform {
        /// The image.
        image: String,
        /// What it is built for.
        found: String,
        /// What was asked for.
        wanted: String,
    },
    /// The image is not here, and must not be pulled.
    #[error("{0} is not here, and the pull policy is `never`")]
    NotHere(String),
    /// There is no such image.
    #[error("there is no image {0}")]
    NotFound(String),
    /// Several images' ids begin like this.
    #[error("several images have ids that begin with {0}")]
    Ambiguous(String),
    /// Someone needs the image.
    #[error("image {image} is in use by {users}")]
    InUse {
        /// The image.
        image: String,
        /// Who holds it.
        users: String,
    },
    /// Several names: removing by id would remove them all.
    #[error("image {image} has {count} names; remove them, or force it")]
    SeveralNames {
        /// The image.
        image: String,
        /// Names.
        count: usize,
    },
    /// An owner of a pin that cannot be a file name.
    #[error("`{0}` cannot own a pin: letters, digits, `.`, `_`, `-`, at most 128")]
    PinOwner(String),
    /// A name without a tag, where one is needed.
    #[error("`{0}` names a digest; an image is tagged with a name and a tag")]
    NotATag(String),
    /// An archive that cannot be taken in.
    #[error("{}: {source}", path.display())]
    Archive {
        /// The archive.
        path: PathBuf,
        /// What is wrong.
        source: ArchiveError,
    },
    /// The image cannot be written out.
    #[error("cannot write out {image}")]
    Export {
        /// The image.
        image: String,
        /// Why.
        #[source]
        source: ExportError,
    },
    /// A thread or a runtime of this process could not do its work.
    #[error("a worker of this process failed")]
    Worker,
}

impl LibraryError {
    /// Whether a full disk or quota is the cause.
    #[must_use]
    pub fn is_disk_full(&self) -> bool {
        match self {
            LibraryError::Image(error) => error.is_disk_full(),
            _ => false,
        }
    }
}
