//! Sandboxes: what users own.

mod info;
mod spec;
mod state;

pub use info::{SandboxInfo, Timings};
pub use spec::SandboxSpec;
pub use state::SandboxState;
