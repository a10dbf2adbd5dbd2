//! Sandboxes: what users own.

mod confine;
pub(crate) mod driver;
mod id;
mod info;
pub(crate) mod launch;
mod spec;
mod state;
mod stop;
pub(crate) mod undo;
mod volume_mount;

pub(crate) use id::{is_sandbox_id, random_id};
pub use info::{SandboxInfo, Timings};
pub use spec::{InitSystem, SandboxSpec};
pub use state::SandboxState;
pub use volume_mount::VolumeMount;
