//! Sandboxes: what users own.

pub(crate) mod activity;
mod change;
pub(crate) mod command;
pub(crate) mod confine;
pub(crate) mod driver;
mod end;
mod filter;
mod id;
mod info;
mod labels;
pub(crate) mod launch;
mod pause;
mod restart;
mod spec;
mod start;
mod state;
mod stop;
mod timeouts;
pub(crate) mod turns;
pub(crate) mod undo;
mod update;
mod volume_mount;
mod wait;

pub use command::MainCommand;
pub use filter::Filter;
pub(crate) use id::{is_sandbox_id, random_id};
pub use info::{SandboxInfo, Timings};
pub use labels::Labels;
pub use restart::{NoRestartPolicy, RestartPolicy};
pub use spec::{InitSystem, SandboxSpec};
pub use state::SandboxState;
pub use update::SandboxUpdate;
pub use volume_mount::VolumeMount;
pub use wait::WaitFor;
pub(crate) use wait::wait;
