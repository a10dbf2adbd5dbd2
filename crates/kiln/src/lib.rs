//! Run untrusted code in hardware-isolated microVMs.
//!
//! A [`Host`] owns a data directory and everything in it. It knows nothing of HTTP.

mod agent;
mod base_images;
mod clock;
mod config;
mod console;
mod doctor;
mod engines;
mod error;
mod events;
mod exec;
mod files;
mod firecracker;
mod gc;
mod guest;
mod hooks;
mod host;
mod image_choice;
mod images;
mod lock;
mod material;
mod metrics;
mod network;
mod orphans;
mod process;
mod recover;
mod sandbox;
#[cfg(any(test, feature = "scripted"))]
pub mod scripted;
mod snapshot;
mod store;
mod usage;
mod volumes;

#[cfg(test)]
mod tests;

pub use base_images::EnsureBaseImage;
pub use config::{HOOK_TIMEOUT, HostConfig, KVM_BOOT_DEADLINE, TCG_BOOT_DEADLINE};
pub use console::ConsoleReader;
pub use doctor::{Check, Level, doctor};
pub use error::{Error, ErrorCode};
pub use events::{Event, EventKind};
pub use exec::{ExecExit, ExecInput, ExecLimits, ExecOutput, ExecSpec, SessionInfo, TerminalSize};
pub use files::{ChangeKind, FileChange, FileInfo, FileKind, MakeDirectory, Upload};
pub use firecracker::{FirecrackerRelease, FirecrackerReleaseError};
pub use gc::{Leftover, LeftoverKind};
pub use guest::{
    ExecInputSender, ExecOutputReceiver, ExecSession, FileWatch, GuestStats, PortStream,
    TreeDownload, TreeUpload,
};
pub use hooks::{Hook, HookCall, HookError, HookPoint, OnFailure};
pub use host::{Host, HostInfo};
pub use images::{ImportImage, PruneImages, PullImage};
pub use kiln_image::Volume;
pub use kiln_image::bundle::{
    BaseFile, BaseImage, Ensured as EnsuredBaseImage, Preset as BasePreset,
};
pub(crate) use kiln_image::failpoint;
pub use kiln_image::kernel::KernelBundle;
pub use kiln_image::library::{ImageInfo, Pruned, PullPolicy, Removed};
pub use kiln_image::oci::ImageConfig;
pub use kiln_image::{Progress, ProgressEvent, Silent};
pub use kiln_net::policy::{
    Action, BandwidthSpec, Mode as PolicyMode, PolicySpec, PortSpec, Protocol, RuleSpec,
};
pub use kiln_vmm::jail::Protection;
pub use kiln_vmm::uffd::{COMMAND as SERVE_PAGES, UffdError, serve as serve_pages};
pub use kiln_vmm::{Acceleration, EngineKind, EnginePreference};
pub use metrics::HostMetrics;
pub use network::{
    NamedNetwork, NetworkInfo, NetworkMember, NetworkMode, NetworkSpec, NewNetwork, Proof,
    ProofOutcome, Secret, Tunnel, TunnelInfo, WireGuard,
};
pub use sandbox::{
    Filter, InitSystem, Labels, MainCommand, NoRestartPolicy, RestartPolicy, SandboxInfo,
    SandboxSpec, SandboxState, SandboxUpdate, Timings, VolumeMount, WaitFor,
};
pub use snapshot::{AfterSnapshot, NewSnapshot, SnapshotInfo};
pub use usage::{SandboxStats, VmmUsage};
pub use volumes::{NewVolume, VolumeSource};
