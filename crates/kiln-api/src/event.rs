//! What happens on a host, and what nobody owns there.

use serde::{Deserialize, Serialize};

/// Something happened to a sandbox.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Event {
    /// Counts up from 1 in the life of a daemon; a gap is a loss.
    pub number: u64,
    /// Id of the sandbox.
    pub sandbox: String,
    /// Its name, if it has one.
    #[serde(default)]
    pub name: Option<String>,
    /// What happened: `created`, a state that it came to, `updated`, `policy`, `snapshot` or `removed`.
    pub kind: String,
    /// Why, if there is something to say.
    #[serde(default)]
    pub reason: Option<String>,
    /// When, in milliseconds of Unix time.
    pub at_ms: u64,
}

/// What to do about what nobody owns.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields, default)]
pub struct CollectGarbage {
    /// Only tell.
    pub dry_run: bool,
}

/// Something that nobody owns.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Leftover {
    /// What it is: `sandbox`, `machine`, `cgroup`, `jail`, `snapshot`, `half_made`, `interface` or `rules`.
    pub kind: String,
    /// Where it is on the daemon's host.
    pub path: String,
    /// Room that it takes.
    pub bytes: u64,
    /// Whether it was removed now.
    pub removed: bool,
}

/// A guest kernel that is on the host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Kernel {
    /// Digest of what it consists of.
    pub id: String,
    /// Its release, if it says.
    pub release: String,
    /// Where it came from.
    pub source: String,
    /// Where it is on the daemon's host.
    pub path: String,
    /// How many modules come with it.
    pub modules: usize,
}
