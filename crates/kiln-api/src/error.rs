//! The body of every refusal.

use serde::{Deserialize, Serialize};

/// Codes that the contract itself gives meaning to; the library behind the daemon has more.
pub mod code {
    /// The path names nothing.
    pub const NO_SUCH_PATH: &str = "NO_SUCH_PATH";
    /// The method is not one this path has.
    pub const METHOD_NOT_ALLOWED: &str = "METHOD_NOT_ALLOWED";
    /// The request is not what the contract says.
    pub const INVALID_REQUEST: &str = "INVALID_REQUEST";
    /// The request's body is larger than any honest one.
    pub const REQUEST_TOO_LARGE: &str = "REQUEST_TOO_LARGE";
    /// The caller may not use this daemon.
    pub const FORBIDDEN: &str = "FORBIDDEN";
    /// The caller shows no token that this daemon knows.
    pub const UNAUTHORIZED: &str = "UNAUTHORIZED";
    /// Daemon and caller are different versions of Kiln.
    pub const VERSION_MISMATCH: &str = "VERSION_MISMATCH";
    /// The daemon is about to end and takes no more work.
    pub const DAEMON_STOPPING: &str = "DAEMON_STOPPING";
    /// Something broke that should not have.
    pub const INTERNAL: &str = "INTERNAL";
    /// The daemon cannot be reached.
    pub const DAEMON_UNREACHABLE: &str = "DAEMON_UNREACHABLE";
    /// The connection to the daemon broke before the answer was whole.
    pub const CONNECTION_LOST: &str = "CONNECTION_LOST";
    /// The daemon answered something that is not the contract.
    pub const BAD_ANSWER: &str = "BAD_ANSWER";
    /// The guest has no such program.
    pub const COMMAND_NOT_FOUND: &str = "COMMAND_NOT_FOUND";
    /// The guest has the program but cannot execute it.
    pub const COMMAND_NOT_EXECUTABLE: &str = "COMMAND_NOT_EXECUTABLE";
}

/// What failed: `{"error": {"code": …, "message": …}}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ErrorBody {
    /// The failure.
    pub error: ErrorReport,
}

/// One failure, for programs (the code) and for people (the rest).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ErrorReport {
    /// Stable name of the failure, upper case.
    pub code: String,
    /// What was tried and how it failed.
    pub message: String,
    /// What to do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// Facts for programs and for bug reports; the shape depends on the code.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub details: Option<serde_json::Value>,
}

impl ErrorReport {
    /// A failure without hint and details.
    #[must_use]
    pub fn new(code: &str, message: impl Into<String>) -> Self {
        Self {
            code: code.to_owned(),
            message: message.into(),
            hint: None,
            details: None,
        }
    }

    /// Adds what to do about it.
    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Adds facts.
    #[must_use]
    pub fn with_details(mut self, details: serde_json::Value) -> Self {
        self.details = Some(details);
        self
    }
}
