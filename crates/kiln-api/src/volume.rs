//! Volumes as they are asked for and told.

use serde::{Deserialize, Serialize};

/// A volume in a sandbox.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct VolumeMount {
    /// The volume's name.
    pub volume: String,
    /// Where the guest has it: an absolute path.
    pub path: String,
    /// Whether the guest can only read it.
    #[serde(default)]
    pub read_only: bool,
}

/// A volume to make: blank, of another volume, or of a file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields, default)]
pub struct CreateVolume {
    /// Its name.
    pub name: String,
    /// How large; needed for a blank one, not possible for a clone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size_bytes: Option<u64>,
    /// The volume that it is to hold a copy of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clone_of: Option<String>,
    /// Path of an ext4 image on the daemon's host, absolute, to hold a copy of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub import: Option<String>,
}

/// A larger size for a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct ResizeVolume {
    /// How large.
    pub size_bytes: u64,
}

/// Where to copy a volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct ExportVolume {
    /// Path of the new file on the daemon's host, absolute.
    pub path: String,
}

/// A persistent disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Volume {
    /// Its name.
    pub name: String,
    /// The file of the block device.
    pub path: String,
    /// How large its filesystem is.
    pub size_bytes: u64,
    /// What it takes of the host's disk now.
    pub allocated_bytes: u64,
    /// When it was made, in milliseconds of Unix time.
    pub created_at_ms: u64,
}
