//! Why there is no base image.

use std::io;
use std::path::PathBuf;

use super::listing::ListingError;
use super::manifest::ManifestError;
use crate::download::DownloadError;

/// A base image that cannot be found, fetched or kept.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BundleError {
    /// The number of bundles to keep is zero.
    #[error("max_stored_base_images must be a positive integer")]
    InvalidCacheLimit,
    /// A name that is no preset.
    #[error("there is no preset `{0}`; there are latest, lts, hosted and debian")]
    UnknownPreset(String),
    /// The preset says nothing without a manifest.
    #[error("the preset hosted needs a manifest: give its URL or path")]
    NoManifest,
    /// Firecracker's newest release cannot be found out.
    #[error("cannot find out Firecracker's latest release")]
    Release(#[source] DownloadError),
    /// The answer names no release.
    #[error("{answer} does not name a Firecracker release")]
    ReleaseName {
        /// Where the release page redirects to.
        answer: String,
    },
    /// The bucket's listing cannot be had.
    #[error("cannot list the base images at {url}")]
    List {
        /// The listing.
        url: String,
        /// Why.
        #[source]
        source: Box<DownloadError>,
    },
    /// The bucket's listing cannot be read.
    #[error("cannot list the base images at {url}")]
    Listing {
        /// The listing.
        url: String,
        /// Why.
        #[source]
        source: ListingError,
    },
    /// The bucket has nothing that fits.
    #[error("{place} holds no {missing}; give another preset or a manifest")]
    NotListed {
        /// Where it was looked for.
        place: String,
        /// What was looked for.
        missing: &'static str,
    },
    /// The manifest cannot be fetched.
    #[error("cannot fetch the manifest")]
    FetchManifest(#[source] DownloadError),
    /// The manifest cannot be read.
    #[error("cannot read the manifest {}", path.display())]
    ReadManifest {
        /// The manifest.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The manifest breaks a rule.
    #[error("the manifest {manifest} is not valid")]
    InvalidManifest {
        /// The manifest.
        manifest: String,
        /// The rule.
        #[source]
        source: ManifestError,
    },
    /// A file of the bundle cannot be downloaded.
    #[error("cannot download {file} of base image {id}")]
    Download {
        /// The bundle.
        id: String,
        /// The file.
        file: String,
        /// Why.
        #[source]
        source: Box<DownloadError>,
    },
    /// A local file of the bundle is not what the manifest says.
    #[error("{} is not the file that the manifest describes: {what} differs", path.display())]
    Mismatch {
        /// The file.
        path: PathBuf,
        /// Size or SHA-256.
        what: &'static str,
    },
    /// A file operation failed (a full disk, most often).
    #[error("base images: cannot {action} {}", path.display())]
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

impl BundleError {
    /// The code that callers of the SDK know (parity A9).
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::InvalidCacheLimit => "INVALID_BASE_IMAGE_CACHE_LIMIT",
            Self::Release(_) | Self::ReleaseName { .. } => "VERSION_FETCH_FAILED",
            Self::UnknownPreset(_)
            | Self::NoManifest
            | Self::List { .. }
            | Self::Listing { .. }
            | Self::NotListed { .. } => "BASE_IMAGE_RESOLVE_FAILED",
            Self::FetchManifest(_) | Self::ReadManifest { .. } => "BASE_IMAGE_MANIFEST_FAILED",
            Self::InvalidManifest { .. } => "INVALID_BASE_IMAGE_MANIFEST",
            Self::Download { .. } | Self::Mismatch { .. } | Self::Io { .. } => {
                "BASE_IMAGE_PREPARE_FAILED"
            }
        }
    }

    /// Whether asking again later, or elsewhere, may help: nobody could be asked.
    pub(super) fn is_unreachable(&self) -> bool {
        let source = match self {
            Self::Release(source) => source,
            Self::List { source, .. } => source,
            _ => return false,
        };
        match source {
            DownloadError::Connect { .. }
            | DownloadError::Stalled { .. }
            | DownloadError::Interrupted { .. } => true,
            DownloadError::Status { status, .. } => *status >= 500,
            _ => false,
        }
    }
}
