//! Sandboxes as they are asked for and told.

use serde::{Deserialize, Serialize};

use crate::{NetworkRequest, PullPolicy, VolumeMount};

/// A sandbox to create. What is left out gets the host's default.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CreateSandbox {
    /// Name to find it by.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Image to boot: a path on the daemon's host, which begins with `/`, or a name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// Instead of an image: a runtime of the daemon.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub runtime: Option<String>,
    /// Instead of an image and a kernel: a base image, by preset or id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bundle: Option<String>,
    /// When to ask the registry for the image.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pull: Option<PullPolicy>,
    /// Which of the image's builds: `linux/arm64`; the host's own when unset.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub platform: Option<String>,
    /// Who is the guest's process 1; Kiln's agent when unset.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub init: Option<InitSystem>,
    /// Engine to run it on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub engine: Option<EnginePreference>,
    /// Virtual processors.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vcpus: Option<u8>,
    /// Memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mem_mib: Option<u32>,
    /// Size of its own writable disk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk_mib: Option<u64>,
    /// Keep its writes in memory instead of on a disk.
    pub tmpfs: bool,
    /// Path of a kernel on the daemon's host.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kernel: Option<String>,
    /// Disks that outlive it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub volumes: Vec<VolumeMount>,
    /// Directory of that kernel's modules on the daemon's host.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub modules: Option<String>,
    /// The guest's own name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    /// Go on without protections around the VMM that cannot be had; see [`Sandbox::unprotected`].
    pub allow_insecure_vmm: bool,
    /// Its network; the host's default when unset.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network: Option<NetworkRequest>,
}

/// Who is a guest's process 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum InitSystem {
    /// Kiln's agent: reaps, and runs nothing by itself.
    #[default]
    Kiln,
    /// The image's own init (systemd or another), with the agent beside it.
    Systemd,
}

/// How to stop a sandbox.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct StopSandbox {
    /// How long the guest has to power off before its machine is ended; the daemon's default when
    /// unset.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grace_ms: Option<u64>,
}

/// Which engine a sandbox asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EnginePreference {
    /// The best that works on the host.
    #[default]
    Auto,
    /// Firecracker or nothing.
    Firecracker,
    /// QEMU or nothing.
    Qemu,
}

/// Which engine runs a sandbox.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EngineKind {
    /// Firecracker.
    Firecracker,
    /// QEMU's `microvm` machine.
    Qemu,
    /// The scripted engine of tests.
    Fake,
    /// One that this client is too old to know.
    #[serde(other)]
    Unknown,
}

impl EngineKind {
    /// As it is written in the contract.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Firecracker => "firecracker",
            Self::Qemu => "qemu",
            Self::Fake => "fake",
            Self::Unknown => "unknown",
        }
    }
}

/// Where a sandbox is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SandboxState {
    /// Never started.
    Created,
    /// On its way up.
    Starting,
    /// Up.
    Running,
    /// On its way down.
    Stopping,
    /// Down; can be started again.
    Stopped,
    /// Failed; its reason says how.
    Error,
    /// One that this client is too old to know.
    #[serde(other)]
    Unknown,
}

impl SandboxState {
    /// As it is written in the contract.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Stopping => "stopping",
            Self::Stopped => "stopped",
            Self::Error => "error",
            Self::Unknown => "unknown",
        }
    }

    /// Whether there is a machine, or one is coming or going. A state that this client does not
    /// know counts as such: it must not be hidden.
    #[must_use]
    pub fn is_live(self) -> bool {
        !matches!(self, Self::Created | Self::Stopped | Self::Error)
    }
}

/// A sandbox as it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sandbox {
    /// Its id.
    pub id: String,
    /// Its name, if it has one.
    pub name: Option<String>,
    /// The image it boots.
    pub image: String,
    /// Where it is in its life.
    pub state: SandboxState,
    /// The engine that runs it, or ran it last.
    pub engine: Option<EngineKind>,
    /// Virtual processors.
    pub vcpus: u8,
    /// Memory.
    pub mem_mib: u32,
    /// Size of its own writable disk.
    pub disk_mib: u64,
    /// Whether its writes are kept in memory instead.
    #[serde(default)]
    pub tmpfs: bool,
    /// When it was created, in milliseconds of Unix time.
    pub created_at_ms: u64,
    /// When it was last started, in milliseconds of Unix time.
    #[serde(default)]
    pub started_at_ms: Option<u64>,
    /// Why it is stopped, or failed.
    #[serde(default)]
    pub reason: Option<String>,
    /// Process number of its VMM.
    #[serde(default)]
    pub pid: Option<u32>,
    /// What the user should know.
    #[serde(default)]
    pub warnings: Vec<String>,
    /// Protections around its VMM that do not hold, in words; empty when all do, or nothing runs.
    #[serde(default)]
    pub unprotected: Vec<String>,
    /// How long its last start took.
    #[serde(default)]
    pub timings: Option<Timings>,
}

/// How long each phase took, in microseconds; a phase that was not gone through is left out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Timings {
    /// Image, kernel and disk made ready.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prepare_us: Option<u64>,
    /// The VMM's process started, up to its first answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vmm_spawn_us: Option<u64>,
    /// The machine described to its VMM.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub configure_us: Option<u64>,
    /// The guest's kernel, up to the start of the agent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kernel_us: Option<u64>,
    /// The agent, up to its handshake.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub agent_us: Option<u64>,
    /// The command, from being asked for to its end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exec_us: Option<u64>,
    /// Stopping and removing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tear_down_us: Option<u64>,
    /// From the request to the end of the last phase.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub total_us: Option<u64>,
}
