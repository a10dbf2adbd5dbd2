//! What a daemon says about itself and its host.

use serde::{Deserialize, Serialize};

use crate::EngineKind;

/// Who answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Version {
    /// Version of Kiln that the daemon is.
    pub version: String,
    /// Number of the contract.
    pub api: u32,
    /// Process number of the daemon.
    pub pid: u32,
}

/// What executes a guest's instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum Acceleration {
    /// The processor.
    Kvm,
    /// A program that emulates one: slow, and no security boundary.
    Tcg,
    /// One that this client is too old to know.
    #[serde(other)]
    Unknown,
}

/// What the daemon can do here, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct HostInfo {
    /// Version of Kiln that the daemon is.
    pub version: String,
    /// Where it keeps what lasts.
    pub data_dir: String,
    /// Where it keeps what ends with the boot.
    pub runtime_dir: String,
    /// The engine that sandboxes get unless they ask for another; none when none works.
    pub engine: Option<EngineKind>,
    /// What that engine says of itself.
    #[serde(default)]
    pub engine_version: Option<String>,
    /// What executes the guests' instructions.
    #[serde(default)]
    pub acceleration: Option<Acceleration>,
    /// Why it is this engine.
    pub engine_reason: String,
    /// What the user should know.
    #[serde(default)]
    pub warnings: Vec<String>,
    /// What was looked at to choose the engine.
    #[serde(default)]
    pub findings: Vec<String>,
    /// Sandboxes in all.
    pub sandboxes: usize,
    /// Sandboxes whose machine runs.
    pub running: usize,
    /// Process number of the daemon.
    pub daemon_pid: u32,
}
