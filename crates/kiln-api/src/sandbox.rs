//! Sandboxes as they are asked for and told.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize};

use crate::{ExecRequest, ExitStatus, NetworkRequest, PullPolicy, VolumeMount};

/// A sandbox to create. What is left out gets the host's default.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
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
    /// Instead of all that it is made of: the snapshot, by id, unique prefix of one or name, from
    /// which its first start begins.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<String>,
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
    /// Protections around the VMM that it is to run without, at every start: in the way of a debugger,
    /// or of a host that has no such thing.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub without: Vec<Protection>,
    /// Its network; the host's default when unset.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network: Option<NetworkRequest>,
    /// Words of its owner's to find and group it by.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Project that it belongs to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub project: Option<String>,
    /// Stop it this long after it came up. Interactive use begins it anew.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
    /// Stop it when nobody has used it for this long and no command runs in it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub idle_timeout_ms: Option<u64>,
    /// Remove it when it stops, for whatever reason.
    pub remove_on_stop: bool,
    /// Whether it is started again when its machine ends by itself, and its main command when that
    /// ends: `no`, `on-failure`, `on-failure:3`, `always`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub restart: Option<String>,
    /// What runs in it from every start on; nothing when unset.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub command: Option<MainCommand>,
}

/// A sandbox's main command: the image's own, or what takes its place.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields, default)]
pub struct MainCommand {
    /// Runs instead of the image's entrypoint; `[]` or `[""]` takes it away.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub entrypoint: Option<Vec<String>>,
    /// Its words, instead of the image's own when there are any, and how it runs.
    pub exec: ExecRequest,
}

/// What changes of a sandbox; what is left out stays as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields, default)]
pub struct UpdateSandbox {
    /// Another name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Labels to set, or with `null` to take away.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, Option<String>>,
    /// Another project; `null` for none.
    #[serde(deserialize_with = "given", skip_serializing_if = "Option::is_none")]
    pub project: Option<Option<String>>,
    /// Another time-out, which begins now; `null` for none.
    #[serde(deserialize_with = "given", skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<Option<u64>>,
    /// Another idle time-out; `null` for none.
    #[serde(deserialize_with = "given", skip_serializing_if = "Option::is_none")]
    pub idle_timeout_ms: Option<Option<u64>>,
    /// Another restart policy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub restart: Option<String>,
    /// Whether it goes when it stops.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub remove_on_stop: Option<bool>,
    /// Another number of processors; only while it has no machine.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vcpus: Option<u8>,
    /// Other memory; only while it has no machine.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mem_mib: Option<u32>,
}

/// A field that is there, `null` or not.
fn given<'de, T, D>(deserializer: D) -> Result<Option<Option<T>>, D::Error>
where
    T: Deserialize<'de>,
    D: Deserializer<'de>,
{
    Option::deserialize(deserializer).map(Some)
}

/// What a client waits for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum WaitFor {
    /// It has no machine, or is gone.
    #[default]
    Stopped,
    /// It is up, or its start failed.
    Running,
    /// It is gone.
    Removed,
}

impl WaitFor {
    /// As it is written in the contract.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stopped => "stopped",
            Self::Running => "running",
            Self::Removed => "removed",
        }
    }
}

/// A protection around a VMM that its owner may do without. All others hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum Protection {
    /// System calls are filtered.
    Seccomp,
    /// It sees no process but its own.
    PidNamespace,
    /// A control group limits it.
    Cgroup,
}

impl Protection {
    /// As users write it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Seccomp => "seccomp",
            Self::PidNamespace => "pid-namespace",
            Self::Cgroup => "cgroup",
        }
    }
}

/// Who is a guest's process 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
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
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields, default)]
pub struct StopSandbox {
    /// How long the guest has to power off before its machine is ended; the daemon's default when
    /// unset.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grace_ms: Option<u64>,
}

/// Which engine a sandbox asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
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
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
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
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum SandboxState {
    /// Never started.
    Created,
    /// On its way up.
    Starting,
    /// Up.
    Running,
    /// Halted: memory and disks are as they were.
    Paused,
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
            Self::Paused => "paused",
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
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
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
    /// Protections that its owner wants it to run without, at every start.
    #[serde(default)]
    pub without: Vec<Protection>,
    /// How long its last start took.
    #[serde(default)]
    pub timings: Option<Timings>,
    /// Words of its owner's.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Project that it belongs to.
    #[serde(default)]
    pub project: Option<String>,
    /// When its time-out ends it, in milliseconds of Unix time.
    #[serde(default)]
    pub expires_at_ms: Option<u64>,
    /// The time-out that it has at every start.
    #[serde(default)]
    pub timeout_ms: Option<u64>,
    /// After how long without use it is stopped.
    #[serde(default)]
    pub idle_timeout_ms: Option<u64>,
    /// Whether it goes when it stops.
    #[serde(default)]
    pub remove_on_stop: bool,
    /// Whether it is started again when its machine or its main command ends by itself.
    #[serde(default)]
    pub restart: String,
    /// How often that happened.
    #[serde(default)]
    pub restarts: u32,
    /// Session of its main command.
    #[serde(default)]
    pub main_session: Option<u64>,
    /// How its main command ended, the last time that it did since the sandbox came up.
    #[serde(default)]
    pub main_exit: Option<ExitStatus>,
    /// Id of the snapshot that its first start began from, or will.
    #[serde(default)]
    pub snapshot: Option<String>,
}

/// How long each phase took, in microseconds; a phase that was not gone through is left out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
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
