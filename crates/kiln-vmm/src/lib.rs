//! The engine seam: spawn, configure, drive and reap a virtual machine monitor.
//!
//! This crate knows machines and nothing above them: no sandboxes, images, policies or SQL. An
//! [`Engine`] turns a [`MachineSpec`] into a [`Machine`]; what an engine cannot do is stated by
//! its [`Capabilities`] and refused with an error, never quietly ignored.
//!
//! ```text
//! Engine::spawn ──► Spawned ──boot──► Running ⇄ Paused ──► Exited
//! ```
//!
//! A machine outlives the process that started it: its [`MachineRecord`] is complete before the
//! guest runs, and [`Engine::adopt`] takes a running machine over from the record alone.

mod agent_socket;
mod boot_cache;
mod code;
pub mod console;
mod discard;
mod error;
pub mod fake;
pub mod firecracker;
mod instance;
pub mod jail;
mod machine;
mod metrics;
mod netns;
mod nic;
mod options;
mod output;
pub mod probe;
pub mod process;
mod program;
pub mod qemu;
mod readable_fd;
pub mod select;
pub mod snapshot;
mod tap;
pub mod uffd;
mod validate;

pub use agent_socket::listen_for_agent;
pub use code::Code;
pub use discard::discard;
pub use error::{AdoptError, Diagnostics, JailError, MachineError, SpawnError};
pub use machine::{
    Acceleration, AgentEndpoint, Boot, BootTimings, Capabilities, Disk, Engine, EngineKind, Exit,
    Machine, MachineInfo, MachineRecord, MachineShape, MachineSpec, MachineState, ProcessIdentity,
};
pub use metrics::{DiskMetrics, Metrics, NicMetrics};
pub use nic::{MacAddress, MacAddressError, Nic, RateLimit, TokenBucket};
pub use options::{
    BalloonOptions, BalloonState, DiskChange, DiskOptions, HotplugOptions, HotplugState,
    MachineOptions, MetadataOptions, NicChange, UserNetwork,
};
pub use program::ProgramError;
pub use select::{
    EnginePreference, Finding, SelectError, SelectOptions, Selection, Subject, select,
};
pub use snapshot::{Manifest, Restore, SnapshotError, SnapshotKind, SnapshotTarget};
pub use validate::{
    MAX_DISK_ID_BYTES, MAX_KERNEL_ARGS_BYTES, MAX_SOCKET_PATH_BYTES, SpecFault, SpecFaults,
};

/// Vsock port on the host that a Firecracker guest's agent dials (`KLN` on a telephone keypad,
/// above the privileged range).
pub const AGENT_PORT: u32 = 5556;
