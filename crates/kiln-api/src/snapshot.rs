//! Snapshots as they are asked for and told.

use serde::{Deserialize, Serialize};

use crate::EngineKind;

/// A snapshot to make of a sandbox that runs or is paused.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields, default)]
pub struct CreateSnapshot {
    /// Name to find it by.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// What becomes of the sandbox; it goes on when unset.
    pub then: AfterSnapshot,
}

/// What becomes of a sandbox of which a snapshot was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum AfterSnapshot {
    /// It is as before: one that ran goes on.
    #[default]
    Resume,
    /// It stays paused.
    StayPaused,
    /// It is stopped, without being asked.
    Stop,
}

/// A snapshot as it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Snapshot {
    /// Its id.
    pub id: String,
    /// Its name, if it has one.
    pub name: Option<String>,
    /// Id of the sandbox that it was made of, which may be gone.
    pub sandbox: String,
    /// That sandbox's name then.
    #[serde(default)]
    pub sandbox_name: Option<String>,
    /// The image that it lies upon.
    pub image: String,
    /// The only engine that can restore it.
    pub engine: EngineKind,
    /// Its version then.
    pub engine_version: String,
    /// Virtual processors.
    pub vcpus: u8,
    /// Memory.
    pub mem_mib: u32,
    /// Size of the writable disk; 0 when the guest's writes were in its memory.
    pub disk_mib: u64,
    /// What it takes of the host's disk.
    pub bytes: u64,
    /// When it was made, in milliseconds of Unix time.
    pub created_at_ms: u64,
    /// Ids of the sandboxes that need it: they run from its memory, or will.
    #[serde(default)]
    pub used_by: Vec<String>,
}
