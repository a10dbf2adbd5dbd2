//! The words of the seam: what a machine is made of and what can be asked of it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::console::ConsoleLog;
use crate::error::{AdoptError, MachineError, SpawnError};
use crate::jail::{Confinement, JailRecord, JailSpec, Protection};
use crate::metrics::Metrics;
use crate::nic::Nic;
use crate::options::{
    BalloonState, DiskChange, DiskOptions, HotplugState, MachineOptions, NicChange,
};
use crate::snapshot::{DiskFacts, HostFacts, Manifest, NicFacts, Restore, SnapshotTarget};

/// Which program runs the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EngineKind {
    /// Firecracker, driven through its API socket.
    Firecracker,
    /// QEMU's `microvm` machine, driven through QMP.
    Qemu,
    /// The scripted engine of the tests: no guest at all.
    Fake,
}

/// How the processor of the guest is provided.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Acceleration {
    /// Hardware virtualisation through `/dev/kvm`.
    Kvm,
    /// QEMU's software emulation: slow, and not a security boundary.
    Tcg,
}

/// What an engine can do on this host. Stated, so that callers can refuse early.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capabilities {
    /// Version of the program, as it prints it (`1.16.1`, `7.2.22`).
    pub version: String,
    /// What executes the guest's instructions.
    pub acceleration: Acceleration,
    /// Whether [`Machine::pause`] and [`Machine::resume`] work.
    pub pause: bool,
    /// Whether a guest can be asked to stop by Ctrl-Alt-Del.
    pub ctrl_alt_del: bool,
    /// Largest number of block devices.
    pub max_disks: usize,
    /// Largest number of network interfaces.
    pub max_nics: usize,
    /// Whether interfaces can be limited.
    pub nic_limits: bool,
    /// Whether there is a metadata service.
    pub metadata: bool,
    /// Whether memory can be added while a guest runs.
    pub memory_hotplug: bool,
    /// Whether a snapshot can hold the difference to another one.
    pub diff_snapshots: bool,
}

/// Everything an engine needs to run one machine. Pure data; the machine keeps its own copy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MachineSpec {
    /// Name of the machine: 1 to 64 characters of `[A-Za-z0-9-]` (Firecracker's rule for ids).
    pub id: String,
    /// A private, existing directory for this machine's sockets and FIFOs. Kept short: a Unix
    /// socket path holds at most 107 bytes.
    pub runtime_dir: PathBuf,
    /// Virtual processors, 1 to 32.
    pub vcpus: u8,
    /// Guest memory in MiB, at least 1.
    pub mem_mib: u32,
    /// What is booted. Where a snapshot is restored, nothing is, and a kernel that is named has to
    /// be the one that the snapshot's machine booted; an empty path names none.
    pub boot: Boot,
    /// Begins from a snapshot instead: the rest says of what the machine was made.
    pub restore: Option<Restore>,
    /// Block devices in the order in which the guest sees them (`/dev/vda`, `/dev/vdb`, …).
    pub disks: Vec<Disk>,
    /// Network interfaces in the order in which the guest sees them.
    pub nics: Vec<Nic>,
    /// Network namespace of the VMM, where its TAPs are: a path such as `/run/netns/NAME`.
    /// `None`: the one of this process.
    pub netns: Option<PathBuf>,
    /// What is put around the VMM. Root must give one, or say [`MachineSpec::allow_insecure`].
    pub jail: Option<JailSpec>,
    /// Goes on without protections that cannot be had: no jail although there could be one, a
    /// Firecracker without system call filters. [`Machine::confinement`] shows it.
    pub allow_insecure: bool,
    /// What it may have beside the ordinary.
    pub options: MachineOptions,
    /// Whether the guest gets a channel for its agent; see [`Machine::agent_endpoint`].
    pub agent: bool,
    /// File that receives the guest's console, bounded and rotated by the engine.
    pub console_log: PathBuf,
}

/// What a machine boots.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Boot {
    /// Uncompressed ELF kernel (`vmlinux`).
    pub kernel: PathBuf,
    /// Initial RAM filesystem (newc).
    pub initramfs: Option<PathBuf>,
    /// Kernel arguments of the caller. The engine puts its own in front of them (console,
    /// reboot method, clock).
    pub args: Vec<String>,
}

/// One block device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disk {
    /// Name of the device towards the engine: `[A-Za-z0-9_]`, unique within the machine.
    pub id: String,
    /// Raw disk image on the host.
    pub path: PathBuf,
    /// Whether the guest may only read it.
    pub read_only: bool,
    /// What it may have beside the ordinary.
    pub options: DiskOptions,
}

/// Identity of a process that survives a number being reused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessIdentity {
    /// `/proc/sys/kernel/random/boot_id` when it was started.
    pub boot_id: String,
    /// Process number.
    pub pid: u32,
    /// Start time in clock ticks since boot: field 22 of `/proc/<pid>/stat`.
    pub start_time: u64,
}

/// What a machine is made of, as far as its snapshots depend on it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineShape {
    /// Virtual processors.
    pub vcpus: u8,
    /// Guest memory.
    pub mem_mib: u32,
    /// Whether the guest has a channel for its agent.
    pub agent: bool,
    /// Its disks, where the VMM found them when it was started.
    pub disks: Vec<DiskFacts>,
    /// Its interfaces.
    pub nics: Vec<NicFacts>,
    /// The kernel that it booted, where this process finds it.
    #[serde(default)]
    pub kernel: Option<PathBuf>,
    /// The file that is its memory, where there is one.
    pub memory_file: Option<PathBuf>,
    /// The VMM's descriptor of the file without a name that is its memory, where there is one.
    #[serde(default)]
    pub memory_fd: Option<i32>,
    /// Whether differences to its last snapshot are known.
    pub tracks_dirty_pages: bool,
    /// Protections that it runs without, as its owner wanted.
    #[serde(default)]
    pub without: Vec<Protection>,
}

impl MachineShape {
    pub(crate) fn of(spec: &MachineSpec) -> Self {
        Self {
            vcpus: spec.vcpus,
            mem_mib: spec.mem_mib,
            agent: spec.agent,
            disks: spec
                .disks
                .iter()
                .map(|disk| DiskFacts {
                    id: disk.id.clone(),
                    read_only: disk.read_only,
                    path: disk.path.clone(),
                })
                .collect(),
            nics: spec
                .nics
                .iter()
                .map(|nic| NicFacts {
                    id: nic.id.clone(),
                    tap: nic.tap.clone(),
                    mac: nic.mac,
                })
                .collect(),
            kernel: Some(spec.boot.kernel.clone()).filter(|path| !path.as_os_str().is_empty()),
            memory_file: spec.options.memory_file.clone(),
            memory_fd: None,
            tracks_dirty_pages: spec.options.track_dirty_pages,
            without: spec.options.without.clone(),
        }
    }
}

/// What has to be written down so that another process can take the machine over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineRecord {
    /// Name of the machine.
    pub id: String,
    /// Engine that runs it.
    pub engine: EngineKind,
    /// The VMM process.
    pub process: ProcessIdentity,
    /// Its sockets and FIFOs.
    pub runtime_dir: PathBuf,
    /// Its console file.
    pub console_log: PathBuf,
    /// What was put around it.
    #[serde(default)]
    pub jail: Option<JailRecord>,
    /// Whether protections may be missing.
    #[serde(default)]
    pub allow_insecure: bool,
    /// What it is made of.
    #[serde(default)]
    pub shape: MachineShape,
}

/// Where the host meets the agent of the guest.
///
/// In both cases bytes go through unchanged; the session protocol on top resynchronises.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AgentEndpoint {
    /// Connect to this Unix socket (QEMU: the virtio-serial port `agent.0`). A stream without
    /// edges: what an earlier session left in it may still arrive.
    Connect(PathBuf),
    /// Listen on this Unix socket; the guest's dial arrives there (Firecracker: vsock to host
    /// CID 2, port [`AGENT_PORT`](crate::AGENT_PORT)). Bind it with
    /// [`listen_for_agent`](crate::listen_for_agent): a jailed VMM is another user.
    Listen(PathBuf),
}

/// State of a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MachineState {
    /// The VMM runs, the guest does not yet.
    Spawned,
    /// The guest runs.
    Running,
    /// The guest's processors are halted by the host.
    Paused,
    /// The VMM is gone.
    Exited,
}

/// What a VMM says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineInfo {
    /// Name of the machine.
    pub id: String,
    /// State of the guest.
    pub state: MachineState,
    /// Version of the program that runs it, which may be older than the one that is installed.
    pub vmm_version: String,
}

/// How a VMM ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Exit {
    /// It returned this status. Status 0 also stands for a guest that rebooted, powered off or
    /// (with `panic=-1`) panicked.
    Code(i32),
    /// It was ended by this signal.
    Signal(i32),
    /// It was adopted, not started, by this process: the kernel tells nobody else.
    Unknown,
}

/// How long the parts of a start took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootTimings {
    /// From the decision to spawn until the VMM process existed.
    pub spawn: Duration,
    /// From then until the VMM answered on its control socket.
    pub control: Duration,
    /// From then until the guest was told to run.
    pub configure: Duration,
}

/// A program that runs machines.
#[async_trait]
pub trait Engine: Send + Sync + std::fmt::Debug {
    /// Which one it is.
    fn kind(&self) -> EngineKind;

    /// What it can do on this host.
    fn capabilities(&self) -> &Capabilities;

    /// What its snapshots depend on: they fit where these facts do.
    fn host_facts(&self) -> &HostFacts;

    /// Lets go of what is kept of a snapshot that is about to be removed. Machines that run from it
    /// keep what they have.
    fn forget_snapshot(&self, dir: &Path);

    /// Validates `spec` whole and starts the VMM process. The guest does not run yet: write
    /// [`Machine::record`] down, then call [`Machine::boot`].
    ///
    /// # Errors
    /// [`SpawnError::Invalid`] with every fault of the spec, before anything is touched; a VMM
    /// that cannot be started. Nothing is left behind.
    async fn spawn(&self, spec: &MachineSpec) -> Result<Box<dyn Machine>, SpawnError>;

    /// Takes over a machine that another process started.
    ///
    /// # Errors
    /// [`AdoptError::Gone`] when the recorded process does not run any more (its number may be a
    /// stranger's, who is never signalled); a VMM that does not answer.
    async fn adopt(&self, record: &MachineRecord) -> Result<Box<dyn Machine>, AdoptError>;
}

/// One run of a VMM. Dropping it leaves the VMM alone: machines outlive their daemon. End it
/// with [`Machine::close`].
#[async_trait]
pub trait Machine: Send + Sync + std::fmt::Debug {
    /// What has to be written down to adopt it.
    fn record(&self) -> &MachineRecord;

    /// Its state as this process knows it.
    fn state(&self) -> MachineState;

    /// What the guest printed so far, and what it prints from now on.
    fn console(&self) -> ConsoleLog;

    /// What holds around the VMM now, as the kernel tells it.
    ///
    /// # Errors
    /// The process is gone.
    fn confinement(&self) -> std::io::Result<Confinement>;

    /// Where its agent is met; `None` without [`MachineSpec::agent`].
    fn agent_endpoint(&self) -> Option<AgentEndpoint>;

    /// Configures the VMM, or loads the snapshot that it begins from, and lets the guest run,
    /// unless [`Restore::paused`](crate::Restore) says otherwise. Returns when the guest's processors run, not
    /// when the guest is up. A machine is booted once, by the process that spawned it.
    ///
    /// # Errors
    /// [`MachineError::Exited`] at once when the VMM dies, with its last output. After any error,
    /// and after a call that was given up, close the machine.
    async fn boot(&self) -> Result<BootTimings, MachineError>;

    /// Halts the guest's processors.
    ///
    /// # Errors
    /// Outside [`MachineState::Running`], or when the VMM refuses.
    async fn pause(&self) -> Result<(), MachineError>;

    /// Lets a paused guest run on.
    ///
    /// # Errors
    /// Outside [`MachineState::Paused`], or when the VMM refuses.
    async fn resume(&self) -> Result<(), MachineError>;

    /// What the VMM says of itself, asked now.
    ///
    /// # Errors
    /// Not running or paused.
    async fn info(&self) -> Result<MachineInfo, MachineError>;

    /// Presses Ctrl-Alt-Del, where [`Capabilities::ctrl_alt_del`] says that it works.
    ///
    /// # Errors
    /// [`MachineError::Unsupported`], or a VMM that refuses.
    async fn press_ctrl_alt_del(&self) -> Result<(), MachineError>;

    /// Replaces what the metadata service tells.
    ///
    /// # Errors
    /// Not running or paused, no metadata service, or content that is too long.
    async fn set_metadata(&self, content: &Value) -> Result<(), MachineError>;

    /// Merges a JSON merge patch into what the metadata service tells.
    ///
    /// # Errors
    /// As [`Machine::set_metadata`].
    async fn patch_metadata(&self, patch: &Value) -> Result<(), MachineError>;

    /// What the metadata service tells.
    ///
    /// # Errors
    /// As [`Machine::set_metadata`].
    async fn metadata(&self) -> Result<Value, MachineError>;

    /// Changes a disk of a running or paused machine.
    ///
    /// # Errors
    /// No such disk, or an engine that refuses; nothing changed then.
    async fn update_disk(&self, change: &DiskChange) -> Result<(), MachineError>;

    /// Changes the limits of an interface of a running or paused machine.
    ///
    /// # Errors
    /// No such interface, or an engine without limits.
    async fn update_nic(&self, change: &NicChange) -> Result<(), MachineError>;

    /// Says how much memory the guest shall give back.
    ///
    /// # Errors
    /// No balloon, or a guest whose driver is not up yet: try again later.
    async fn set_balloon(&self, amount_mib: u32) -> Result<(), MachineError>;

    /// How the balloon is.
    ///
    /// # Errors
    /// No balloon.
    async fn balloon(&self) -> Result<BalloonState, MachineError>;

    /// Says how much of the memory that can be added the guest shall have.
    ///
    /// # Errors
    /// No such memory, or a guest whose driver is not up yet: try again later.
    async fn set_hotplug_memory(&self, mib: u32) -> Result<(), MachineError>;

    /// How much of it the guest has.
    ///
    /// # Errors
    /// No such memory.
    async fn hotplug_memory(&self) -> Result<HotplugState, MachineError>;

    /// What the VMM counted, up to now.
    ///
    /// # Errors
    /// Not running or paused.
    async fn metrics(&self) -> Result<Metrics, MachineError>;

    /// Makes a snapshot of a paused machine, without its disks: copy those before it runs again.
    ///
    /// # Errors
    /// Not paused, a kind that the engine or the machine does not allow, or files that cannot be
    /// written; nothing is left then.
    async fn snapshot(&self, target: &SnapshotTarget) -> Result<Manifest, MachineError>;

    /// Waits until the VMM is gone and everything it printed has been taken. Cancel-safe; may be
    /// called by several tasks.
    async fn wait(&self) -> Exit;

    /// The last output of the VMM itself and of the guest's console, for error messages.
    fn diagnostics(&self) -> crate::Diagnostics;

    /// Ends the VMM if it still runs (SIGTERM when `grace` is not zero, then SIGKILL), waits for
    /// it and removes its sockets and FIFOs. Idempotent.
    ///
    /// # Errors
    /// What could not be removed; everything else is done all the same.
    async fn close(&self, grace: Duration) -> Result<Exit, MachineError>;
}
