//! Base images, kernels with root filesystems, as they are asked for and told.

use serde::{Deserialize, Serialize};

/// Kinds of base images.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum BasePreset {
    /// Firecracker's latest release and what its CI tests it with.
    Latest,
    /// Firecracker v1.7.0 and what its CI tested it with.
    Lts,
    /// What a manifest describes.
    Hosted,
    /// Debian's kernel and a small Debian system.
    Debian,
}

impl BasePreset {
    /// As it is written in the contract.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Latest => "latest",
            Self::Lts => "lts",
            Self::Hosted => "hosted",
            Self::Debian => "debian",
        }
    }
}

/// A base image to have here. First message of a bundle stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct PullBaseImage {
    /// Its kind.
    pub preset: BasePreset,
    /// For `hosted`: the manifest's URL, or its absolute path on the daemon's host; the one of the
    /// daemon's settings when unset.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub manifest: Option<String>,
    /// Fetch it even if it is here.
    #[serde(default)]
    pub force_download: bool,
}

/// A base image that is here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct BaseImage {
    /// Its id.
    pub id: String,
    /// Its kind.
    pub preset: BasePreset,
    /// The processor it is for.
    pub arch: String,
    /// Firecracker's CI train.
    pub train: String,
    /// The Firecracker release it belongs to.
    pub firecracker_version: String,
    /// Where it is kept.
    pub directory: String,
    /// The kernel.
    pub kernel: BaseFile,
    /// The root filesystem.
    pub rootfs: BaseFile,
    /// `ext4` or `squashfs`.
    pub rootfs_type: String,
    /// Whether guests must not write to it.
    pub rootfs_is_read_only: bool,
    /// Kernel arguments for those who boot it by themselves.
    pub boot_args: String,
    /// Where it came from.
    pub source: String,
    /// When it was stored, in milliseconds of Unix time.
    pub created_at_ms: u64,
    /// When it was last asked for, in milliseconds of Unix time.
    pub last_accessed_at_ms: u64,
}

/// One file of a base image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct BaseFile {
    /// Where it is.
    pub path: String,
    /// SHA-256 in lower-case hex.
    pub sha256: String,
    /// Its size.
    pub size_bytes: u64,
}

/// What a pull of a base image came to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct PulledBaseImage {
    /// The base image.
    pub image: BaseImage,
    /// Whether it was here already.
    pub was_cached: bool,
    /// Ids of those that had to go for it.
    #[serde(default)]
    pub evicted: Vec<String>,
}
