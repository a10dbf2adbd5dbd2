//! What can go wrong with a machine.

use std::path::PathBuf;

use crate::jail::Breach;
use crate::machine::{EngineKind, Exit, MachineState};
use crate::snapshot::SnapshotError;
use crate::validate::SpecFaults;

/// The last words of a VMM and its guest, for error messages and post-mortems.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Diagnostics {
    /// Tail of what the VMM itself printed, lossy UTF-8.
    pub vmm_output: String,
    /// Tail of the guest's console, lossy UTF-8.
    pub console: String,
}

/// A machine that could not be spawned. Nothing is left behind.
#[derive(Debug, thiserror::Error)]
pub enum SpawnError {
    /// Every fault of the spec, together.
    #[error("invalid machine: {0}")]
    Invalid(SpecFaults),
    /// The program cannot be started.
    #[error("cannot start {program}")]
    Program {
        /// The VMM's path.
        program: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Its jail cannot be made.
    #[error(transparent)]
    Jail(#[from] JailError),
    /// The snapshot that it begins from cannot be used.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// A TAP of it cannot be opened.
    #[error("cannot open the TAP {tap}")]
    Tap {
        /// Its name.
        tap: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Its sockets or FIFOs cannot be made.
    #[error("cannot prepare {path}")]
    Runtime {
        /// What was being made.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

/// Something of the jail that cannot be made.
#[derive(Debug, thiserror::Error)]
#[error("cannot {step} for the jail: {path}")]
pub struct JailError {
    /// What was being done.
    pub step: &'static str,
    /// With what.
    pub path: PathBuf,
    /// Why.
    #[source]
    pub source: std::io::Error,
}

/// A machine that did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// The call does not fit the state; nothing changed.
    #[error("cannot {call} a machine that is {state:?}")]
    State {
        /// What was asked.
        call: &'static str,
        /// The state it is in.
        state: MachineState,
    },
    /// The engine cannot do that at all.
    #[error("this engine cannot {0}")]
    Unsupported(&'static str),
    /// The VMM is gone.
    #[error("the VMM ended ({exit:?}) while {during}")]
    Exited {
        /// What was going on.
        during: &'static str,
        /// How it ended.
        exit: Exit,
        /// Its last output.
        diagnostics: Box<Diagnostics>,
    },
    /// The VMM answered with an error.
    #[error("the VMM refused to {call}: {message}")]
    Refused {
        /// What was asked.
        call: String,
        /// HTTP status, where there is one.
        status: Option<u16>,
        /// Its own words.
        message: String,
    },
    /// The VMM did not answer in time. What it did is unknown, so it has been killed.
    #[error("the VMM did not {call} within {deadline_ms} ms")]
    Deadline {
        /// What was asked.
        call: String,
        /// The deadline.
        deadline_ms: u64,
        /// Its last output.
        diagnostics: Box<Diagnostics>,
    },
    /// The control socket broke.
    #[error("lost the VMM's control socket while trying to {call}")]
    Control {
        /// What was asked.
        call: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// It has no device of that name.
    #[error("the machine has no device {0:?}")]
    NoDevice(String),
    /// No snapshot could be made.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// A file cannot come into its jail.
    #[error(transparent)]
    Jail(#[from] JailError),
    /// A protection that was promised does not hold; the VMM has been killed.
    #[error("the VMM is not confined: {}; --allow-insecure-vmm accepts that", list(.0))]
    Unconfined(Vec<Breach>),
    /// Something of the machine could not be removed.
    #[error("cannot remove {path}")]
    Cleanup {
        /// What is left.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

/// A machine that could not be taken over.
#[derive(Debug, thiserror::Error)]
pub enum AdoptError {
    /// The recorded process is gone; its number may now be a stranger's.
    #[error("the VMM of machine {id} is gone")]
    Gone {
        /// Name of the machine.
        id: String,
    },
    /// It runs but does not answer.
    #[error("the VMM of machine {id} does not answer")]
    Unresponsive {
        /// Name of the machine.
        id: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Another engine runs it.
    #[error("machine {id} belongs to {engine:?}")]
    OtherEngine {
        /// Name of the machine.
        id: String,
        /// Who runs it.
        engine: EngineKind,
    },
}

fn list(breaches: &[Breach]) -> String {
    let words: Vec<String> = breaches.iter().map(ToString::to_string).collect();
    words.join("; ")
}
