//! Base-image bundles: a kernel and a root filesystem that belong together, found by a preset,
//! verified before each use, kept up to a number (parity A3). It does not boot anything.
//!
//! ```text
//! <root>/bundles/<id>/{bundle.json, kernel file, rootfs file}    published by rename
//! <root>/.partial-<random>/                                     of whoever holds the lock
//! <root>/lock                                                   one process fetches at a time
//! ```

mod args;
mod error;
mod listing;
mod manifest;
mod record;
mod resolve;
mod store;
mod version;

use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

pub use error::BundleError;
pub use listing::ListingError;
pub(crate) use manifest::is_plain_name;
pub use manifest::{ManifestError, RootfsType};
pub use record::{BaseFile, BaseImage};
pub use store::{BundleStore, Ensured};
pub use version::{FirecrackerVersion, FirecrackerVersionError};

use crate::kernel::{KernelBundle, firecracker_ci};
use crate::store::Image;

/// Kinds of base images.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Preset {
    /// Firecracker's latest release and what its CI tests it with.
    Latest,
    /// Firecracker v1.7.0 and what its CI tested it with.
    Lts,
    /// What a manifest describes.
    Hosted,
    /// Debian's kernel and a small Debian system, from the host's own apt.
    Debian,
}

impl Preset {
    /// As users write it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Latest => "latest",
            Self::Lts => "lts",
            Self::Hosted => "hosted",
            Self::Debian => "debian",
        }
    }
}

impl FromStr for Preset {
    type Err = BundleError;

    fn from_str(text: &str) -> Result<Preset, BundleError> {
        [Self::Latest, Self::Lts, Self::Hosted, Self::Debian]
            .into_iter()
            .find(|preset| preset.name() == text)
            .ok_or_else(|| BundleError::UnknownPreset(text.to_owned()))
    }
}

/// Where a manifest is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ManifestSource {
    /// On a server. It may name URLs only.
    Url(String),
    /// A local file. It may name local files too, relative to itself.
    File(PathBuf),
}

/// What the preset `debian` is made of, from the stores that have it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DebianParts {
    kernel: PathBuf,
    kernel_bundle: String,
    rootfs: PathBuf,
    image_id: String,
    source: String,
    firecracker_version: FirecrackerVersion,
}

impl DebianParts {
    /// A kernel bundle and an ext4 image; `firecracker_version` is the one in use.
    #[must_use]
    pub fn new(
        kernel: &KernelBundle,
        image: &Image,
        firecracker_version: FirecrackerVersion,
    ) -> DebianParts {
        DebianParts {
            kernel: kernel.vmlinux.clone(),
            kernel_bundle: kernel.id.clone(),
            rootfs: image.path.clone(),
            image_id: image.id.to_string(),
            source: kernel.source.clone(),
            firecracker_version,
        }
    }
}

/// What to fetch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BundleSource {
    /// See [`Preset::Latest`].
    Latest,
    /// See [`Preset::Lts`].
    Lts,
    /// See [`Preset::Hosted`].
    Hosted(ManifestSource),
    /// See [`Preset::Debian`].
    Debian(DebianParts),
}

impl BundleSource {
    /// The preset.
    #[must_use]
    pub const fn preset(&self) -> Preset {
        match self {
            Self::Latest => Preset::Latest,
            Self::Lts => Preset::Lts,
            Self::Hosted(_) => Preset::Hosted,
            Self::Debian(_) => Preset::Debian,
        }
    }

    /// The source of the preset `hosted`, which needs a manifest.
    ///
    /// # Errors
    /// [`BundleError::NoManifest`] without one.
    pub fn hosted(manifest: Option<ManifestSource>) -> Result<BundleSource, BundleError> {
        manifest
            .map(BundleSource::Hosted)
            .ok_or(BundleError::NoManifest)
    }
}

/// The servers that are asked; mirrors can take their place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origins {
    /// The bucket of Firecracker's CI.
    pub bucket: String,
    /// The page that redirects to the latest release.
    pub latest_release: String,
}

impl Default for Origins {
    fn default() -> Origins {
        Origins {
            bucket: firecracker_ci::BUCKET.to_owned(),
            latest_release: "https://github.com/firecracker-microvm/firecracker/releases/latest"
                .to_owned(),
        }
    }
}

/// For the fuzz target: any answer of a bucket is judged.
pub(crate) fn fuzz_listing(text: &str) {
    if let Ok(page) = listing::Page::parse(text) {
        for prefix in ["", "firecracker-ci/v1.16/x86_64/"] {
            let _ = (
                listing::kernel(&page.objects, prefix),
                listing::rootfs(&page.objects, prefix),
            );
        }
    }
}

/// For the fuzz target: what passes for a manifest names only plain files.
pub(crate) fn fuzz_manifest(bytes: &[u8]) {
    let architecture = crate::kernel::Architecture::host();
    for origin in [manifest::Origin::Url, manifest::Origin::LocalFile] {
        if let Ok(manifest) = manifest::Manifest::parse(bytes, architecture, origin) {
            assert!(is_plain_name(&manifest.bundle_id));
            assert!(is_plain_name(&manifest.kernel.file_name));
            assert!(is_plain_name(&manifest.rootfs.file_name));
        }
    }
}
