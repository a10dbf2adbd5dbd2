//! Run untrusted code in hardware-isolated microVMs.
//!
//! A [`Host`] owns a data directory and everything in it. It knows nothing of HTTP.

mod error;
mod exec;
mod sandbox;

pub use error::{Error, ErrorCode};
pub use exec::{ExecExit, ExecInput, ExecOutput, ExecSpec, SessionInfo, TerminalSize};
pub use kiln_image::{Progress, ProgressEvent, Silent};
pub use kiln_vmm::{Acceleration, EngineKind, EnginePreference};
pub use sandbox::{SandboxInfo, SandboxSpec, SandboxState, Timings};
