//! One stable word for each way in which an engine can fail.
//!
//! Programs match on these; they do not change once released. The words of smartvm are kept with
//! their meaning.

use std::fmt;

use crate::error::{AdoptError, JailError, MachineError, SpawnError};
use crate::firecracker::api::ApiError;
use crate::jail::cgroup::CgroupsHidden;
use crate::program::ProgramError;
use crate::select::SelectError;
use crate::snapshot::SnapshotError;

/// What went wrong, for a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Code {
    /// The call does not fit the machine's state; nothing changed.
    InvalidState,
    /// The machine cannot be made as it is specified.
    InvalidConfig,
    /// The VMM's control socket did not come up in time.
    SocketTimeout,
    /// The VMM did not answer a call in time.
    ApiTimeout,
    /// The VMM's control socket broke.
    SocketRequestFailed,
    /// The VMM answered with an error.
    ApiError,
    /// A program is missing.
    BinaryNotFound,
    /// The VMM did not come up.
    StartFailed,
    /// There is no connection to the VMM any more.
    NoClient,
    /// The engine cannot do that.
    Unsupported,
    /// No engine can be used.
    NoEngine,
    /// The snapshot does not fit.
    SnapshotMismatch,
    /// A snapshot cannot be made or read.
    SnapshotFailed,
    /// A TAP cannot be used.
    TapCreateFailed,
    /// Control groups cannot be seen.
    CgroupsHidden,
    /// The jail cannot be made.
    JailFailed,
    /// A protection does not hold.
    Unconfined,
    /// The VMM is gone.
    Gone,
    /// Something could not be removed.
    CleanupFailed,
}

impl Code {
    /// The code as it is printed and sent.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::InvalidState => "INVALID_STATE",
            Self::InvalidConfig => "INVALID_CONFIG",
            Self::SocketTimeout => "SOCKET_TIMEOUT",
            Self::ApiTimeout => "API_TIMEOUT",
            Self::SocketRequestFailed => "SOCKET_REQUEST_FAILED",
            Self::ApiError => "API_ERROR",
            Self::BinaryNotFound => "BINARY_NOT_FOUND",
            Self::StartFailed => "START_FAILED",
            Self::NoClient => "NO_CLIENT",
            Self::Unsupported => "UNSUPPORTED",
            Self::NoEngine => "NO_ENGINE",
            Self::SnapshotMismatch => "SNAPSHOT_MISMATCH",
            Self::SnapshotFailed => "SNAPSHOT_FAILED",
            Self::TapCreateFailed => "TAP_CREATE_FAILED",
            Self::CgroupsHidden => "CGROUPS_HIDDEN",
            Self::JailFailed => "JAIL_FAILED",
            Self::Unconfined => "VMM_UNCONFINED",
            Self::Gone => "VMM_GONE",
            Self::CleanupFailed => "CLEANUP_FAILED",
        }
    }
}

impl fmt::Display for Code {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}

impl SpawnError {
    /// Its stable word.
    #[must_use]
    pub fn code(&self) -> Code {
        match self {
            Self::Invalid(_) => Code::InvalidConfig,
            Self::Program { source, .. } if source.kind() == std::io::ErrorKind::NotFound => {
                Code::BinaryNotFound
            }
            Self::Program { .. } | Self::Runtime { .. } => Code::StartFailed,
            Self::Jail(error) => error.code(),
            Self::Snapshot(error) => error.code(),
            Self::Tap { .. } => Code::TapCreateFailed,
        }
    }
}

impl MachineError {
    /// Its stable word.
    #[must_use]
    pub fn code(&self) -> Code {
        match self {
            Self::State { .. } => Code::InvalidState,
            Self::Unsupported(_) => Code::Unsupported,
            Self::Exited { during, .. } if is_start(during) => Code::StartFailed,
            Self::Exited { .. } => Code::Gone,
            Self::Refused { .. } => Code::ApiError,
            Self::Deadline { call, .. } if call == crate::instance::FIRST_CALL => {
                Code::SocketTimeout
            }
            Self::Deadline { .. } => Code::ApiTimeout,
            Self::Control { source, .. } if is_lost(source) => Code::NoClient,
            Self::Control { .. } => Code::SocketRequestFailed,
            Self::NoDevice(_) => Code::InvalidConfig,
            Self::Snapshot(error) => error.code(),
            Self::Jail(error) => error.code(),
            Self::Unconfined(_) => Code::Unconfined,
            Self::Cleanup { .. } => Code::CleanupFailed,
        }
    }
}

/// What goes on before a guest runs.
fn is_start(during: &str) -> bool {
    ["starting", "configuring", "booting", "loading a snapshot"].contains(&during)
}

/// The connection was given up by an earlier call.
fn is_lost(source: &std::io::Error) -> bool {
    source.kind() == std::io::ErrorKind::NotConnected
}

impl JailError {
    /// Its stable word.
    #[must_use]
    pub fn code(&self) -> Code {
        let cause = self.source.get_ref();
        if cause.is_some_and(|cause| cause.is::<CgroupsHidden>()) {
            Code::CgroupsHidden
        } else {
            Code::JailFailed
        }
    }
}

impl AdoptError {
    /// Its stable word.
    #[must_use]
    pub fn code(&self) -> Code {
        match self {
            Self::Gone { .. } => Code::Gone,
            Self::Unresponsive { .. } => Code::SocketRequestFailed,
            Self::OtherEngine { .. } => Code::InvalidState,
        }
    }
}

impl SnapshotError {
    /// Its stable word.
    #[must_use]
    pub fn code(&self) -> Code {
        match self {
            Self::Mismatch(_) => Code::SnapshotMismatch,
            Self::Unsupported(_) | Self::NoBase => Code::Unsupported,
            Self::File { .. } | Self::Manifest { .. } => Code::SnapshotFailed,
        }
    }
}

impl ApiError {
    /// Its stable word.
    #[must_use]
    pub fn code(&self) -> Code {
        match self {
            Self::Refused { .. } | Self::Answer(_) => Code::ApiError,
            Self::Deadline(_) => Code::ApiTimeout,
            Self::TooLong(_) => Code::InvalidConfig,
            Self::NotInVersion { .. } => Code::Unsupported,
            Self::Broken(source) if is_lost(source) => Code::NoClient,
            Self::Broken(_) => Code::SocketRequestFailed,
        }
    }
}

impl SelectError {
    /// Its stable word.
    #[must_use]
    pub fn code(&self) -> Code {
        match self {
            Self::NoFirecracker | Self::NoQemu => Code::BinaryNotFound,
            Self::Firecracker(error) | Self::Qemu(error) => error.code(),
            Self::Filters(_) => Code::InvalidConfig,
            Self::UnusableKvm(_) | Self::None(_) => Code::NoEngine,
        }
    }
}

impl ProgramError {
    /// Its stable word.
    #[must_use]
    pub fn code(&self) -> Code {
        match self {
            Self::Missing(_) => Code::BinaryNotFound,
            Self::Start { .. }
            | Self::Version { .. }
            | Self::Unsupported { .. }
            | Self::Silent { .. } => Code::NoEngine,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Error, ErrorKind};

    use super::*;
    use crate::error::Diagnostics;
    use crate::machine::{Exit, MachineState};

    #[test]
    fn a9_codes_keep_the_meaning_that_the_old_sdk_gave_them() {
        let control = |kind: ErrorKind| MachineError::Control {
            call: "pause".into(),
            source: Error::from(kind),
        };
        let deadline = |call: &str| MachineError::Deadline {
            call: call.into(),
            deadline_ms: 1,
            diagnostics: Box::default(),
        };
        let exited = |during| MachineError::Exited {
            during,
            exit: Exit::Code(1),
            diagnostics: Box::new(Diagnostics::default()),
        };
        let state = MachineError::State {
            call: "pause",
            state: MachineState::Spawned,
        };
        let refused = MachineError::Refused {
            call: "pause".into(),
            status: Some(400),
            message: "no".into(),
        };
        for (error, code) in [
            (state, "INVALID_STATE"),
            (refused, "API_ERROR"),
            (deadline(crate::instance::FIRST_CALL), "SOCKET_TIMEOUT"),
            (deadline("pause"), "API_TIMEOUT"),
            (
                control(ErrorKind::ConnectionAborted),
                "SOCKET_REQUEST_FAILED",
            ),
            (control(ErrorKind::NotConnected), "NO_CLIENT"),
            (exited("booting"), "START_FAILED"),
            (exited("pausing"), "VMM_GONE"),
        ] {
            assert_eq!(error.code().to_string(), code, "{error:?}");
        }
        let program = |kind: ErrorKind| SpawnError::Program {
            program: "/fc".into(),
            source: Error::from(kind),
        };
        assert_eq!(
            program(ErrorKind::NotFound).code().as_str(),
            "BINARY_NOT_FOUND"
        );
        assert_eq!(
            program(ErrorKind::PermissionDenied).code().as_str(),
            "START_FAILED"
        );
        assert_eq!(
            SelectError::NoFirecracker.code().as_str(),
            "BINARY_NOT_FOUND"
        );
    }

    /// Programs match on them: no two alike, all of one form.
    #[test]
    fn a9_codes_are_words_of_their_own() {
        let all = [
            Code::InvalidState,
            Code::InvalidConfig,
            Code::SocketTimeout,
            Code::ApiTimeout,
            Code::SocketRequestFailed,
            Code::ApiError,
            Code::BinaryNotFound,
            Code::StartFailed,
            Code::NoClient,
            Code::Unsupported,
            Code::NoEngine,
            Code::SnapshotMismatch,
            Code::SnapshotFailed,
            Code::TapCreateFailed,
            Code::CgroupsHidden,
            Code::JailFailed,
            Code::Unconfined,
            Code::Gone,
            Code::CleanupFailed,
        ];
        let words: std::collections::HashSet<&str> = all.iter().map(|code| code.as_str()).collect();
        assert_eq!(words.len(), all.len());
        let plain = |word: &&str| word.bytes().all(|b| b.is_ascii_uppercase() || b == b'_');
        assert!(words.iter().all(plain));
    }
}
