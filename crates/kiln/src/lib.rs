//! Run untrusted code in hardware-isolated microVMs.
//!
//! A [`Host`] owns a data directory and everything in it. It knows nothing of HTTP.

mod agent;
mod base_images;
mod clock;
mod config;
mod console;
mod engines;
mod error;
mod events;
mod exec;
mod guest;
mod host;
mod image_choice;
mod images;
mod lock;
mod material;
mod network;
mod process;
mod recover;
mod sandbox;
mod store;
mod volumes;

pub use base_images::EnsureBaseImage;
pub use config::{HostConfig, KVM_BOOT_DEADLINE, TCG_BOOT_DEADLINE};
pub use console::ConsoleReader;
pub use error::{Error, ErrorCode};
pub use events::Event;
pub use exec::{ExecExit, ExecInput, ExecOutput, ExecSpec, SessionInfo, TerminalSize};
pub use guest::{ExecInputSender, ExecOutputReceiver, ExecSession, GuestStats};
pub use host::{Host, HostInfo};
pub use images::{ImportImage, PruneImages, PullImage};
pub use kiln_image::Volume;
pub use kiln_image::bundle::{
    BaseFile, BaseImage, Ensured as EnsuredBaseImage, Preset as BasePreset,
};
pub use kiln_image::library::{ImageInfo, Pruned, PullPolicy, Removed};
pub use kiln_image::oci::ImageConfig;
pub use kiln_image::{Progress, ProgressEvent, Silent};
pub use kiln_net::policy::{
    Action, BandwidthSpec, Mode as PolicyMode, PolicySpec, PortSpec, Protocol, RuleSpec,
};
pub use kiln_vmm::{Acceleration, EngineKind, EnginePreference};
pub use network::{NetworkInfo, NetworkMode, NetworkSpec, Proof, ProofOutcome};
pub use sandbox::{InitSystem, SandboxInfo, SandboxSpec, SandboxState, Timings, VolumeMount};
pub use volumes::{NewVolume, VolumeSource};
