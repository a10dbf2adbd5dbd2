//! Sandboxes: what users own.

pub(crate) mod driver;
mod id;
mod info;
pub(crate) mod launch;
mod spec;
mod state;
mod stop;
pub(crate) mod undo;

pub(crate) use id::random_id;
pub use info::{SandboxInfo, Timings};
pub use spec::SandboxSpec;
pub use state::SandboxState;
