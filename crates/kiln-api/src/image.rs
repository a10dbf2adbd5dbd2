//! Images as they are asked for and told.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// When to ask the registry for an image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum PullPolicy {
    /// Each time: names move.
    Always,
    /// When the image is not here.
    #[default]
    Missing,
    /// Not at all.
    Never,
}

/// An image to fetch. First message of a pull stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct PullImage {
    /// Its name, or a runtime's.
    pub image: String,
    /// When to ask the registry; each time when unset.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<PullPolicy>,
    /// Which of its builds: `linux/arm64`; the host's own when unset.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<String>,
}

/// A file to take images from. First message of an import stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct ImportImage {
    /// Path on the daemon's host, absolute.
    pub path: String,
    /// The image's name; the archive's own when unset.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

/// One more name for an image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct TagImage {
    /// The name.
    pub name: String,
}

/// What to throw away; images that a sandbox needs stay in any case.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields, default)]
pub struct PruneImages {
    /// Also images that have names.
    pub all: bool,
    /// Also the layers of images that stay.
    pub layers: bool,
    /// Only what nobody has asked for so long.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unused_for_s: Option<u64>,
    /// The least recently used ones, named or not, until all fit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_bytes: Option<u64>,
}

/// An image that is here.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Image {
    /// Its id: the digest of its config.
    pub id: String,
    /// All its names.
    pub names: Vec<String>,
    /// Digest of its manifest, if it came with one.
    #[serde(default)]
    pub manifest: Option<String>,
    /// What it runs on: `linux/amd64`.
    pub platform: String,
    /// Bytes on this host.
    pub size_bytes: u64,
    /// Those of them that removing it would free.
    pub unique_bytes: u64,
    /// When it came here, in milliseconds of Unix time.
    pub added_at_ms: u64,
    /// When it was last asked for, in milliseconds of Unix time.
    pub last_used_at_ms: u64,
    /// Sandboxes that need it.
    #[serde(default)]
    pub used_by: Vec<String>,
    /// Digests of its layers.
    #[serde(default)]
    pub layers: Vec<String>,
    /// How it wants to be run.
    #[serde(default)]
    pub config: ImageConfig,
}

/// How an image wants to be run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(default)]
pub struct ImageConfig {
    /// First words of its main process.
    pub entrypoint: Vec<String>,
    /// Words that follow unless the caller gives others.
    pub cmd: Vec<String>,
    /// Environment, in order.
    pub env: Vec<(String, String)>,
    /// Who runs its processes; empty for root.
    pub user: String,
    /// Where they start; empty for the root.
    pub working_dir: String,
    /// What asks the main process to end.
    pub stop_signal: Option<String>,
    /// `80/tcp`.
    pub exposed_ports: Vec<String>,
    /// Notes of whoever made it.
    pub labels: BTreeMap<String, String>,
}

/// What a removal did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct RemovedImage {
    /// Names that are gone.
    pub untagged: Vec<String>,
    /// Id of the image, if it is gone with its last name.
    #[serde(default)]
    pub deleted: Option<String>,
}

/// What was thrown away.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct PrunedImages {
    /// Ids of the images.
    pub images: Vec<String>,
    /// Their names.
    pub names: Vec<String>,
    /// Bytes that the disk got back.
    pub freed_bytes: u64,
    /// A pull or import was running: layers were left for the next time.
    #[serde(default)]
    pub layers_skipped: bool,
}
