//! Commands as they are asked for and told.

use serde::{Deserialize, Serialize};

use crate::CreateSandbox;

/// A command to run in a sandbox.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields, default)]
pub struct ExecRequest {
    /// Program and arguments; a login shell when empty.
    pub argv: Vec<String>,
    /// Environment on top of the guest's own, in order, later wins.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub env: Vec<(String, String)>,
    /// Working directory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cwd: Option<String>,
    /// `name`, `uid`, `name:group` or `uid:gid`; root when unset.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Give it a terminal of this size; all its output then comes as standard output.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tty: Option<TerminalSize>,
    /// Whether its standard input is open; `/dev/null` otherwise.
    pub stdin: bool,
    /// End it with all its processes when this client goes away; otherwise it runs on and can be
    /// attached to again.
    pub kill_on_detach: bool,
    /// With a terminal: let the sandbox's time-out end it also while this client is here.
    pub keep_timeout: bool,
    /// End it with all its processes after this long, whether somebody is attached or not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
    /// What all its processes together may take.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limits: Option<ExecLimits>,
}

/// What a command with all its processes may take, within what its sandbox has. Unset or 0 is as
/// much as there is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields, default)]
pub struct ExecLimits {
    /// Memory. What goes beyond it ends processes of this command.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mem_mib: Option<u32>,
    /// Processes and threads at once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub processes: Option<u32>,
    /// Thousandths of a processor.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu_milli: Option<u32>,
}

/// First message of an attach stream. It has no fields yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct AttachRequest {}

/// Create, start, run one command, and remove.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields, default)]
pub struct RunRequest {
    /// The sandbox to create.
    pub sandbox: CreateSandbox,
    /// What to run in it. An empty `argv` means the image's own command, and where the image says
    /// nothing a login shell, or with `detach` nothing.
    pub exec: ExecRequest,
    /// Runs instead of the image's entrypoint and command; `[]` or `[""]` takes them away.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub entrypoint: Option<Vec<String>>,
    /// Keep the sandbox when the command ends or this client goes away.
    pub keep: bool,
    /// End the stream once the command runs; the sandbox stays.
    pub detach: bool,
}

/// Size of a terminal in character cells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct TerminalSize {
    /// Lines.
    pub rows: u16,
    /// Characters in a line.
    pub cols: u16,
}

/// How a command ended: `{"code": 0}`, `{"signal": 9}` or `{"timed_out": 9}`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum ExitStatus {
    /// It returned this status.
    Code(i32),
    /// It was ended by this signal.
    Signal(i32),
    /// It was ended at its time-out, by this signal.
    TimedOut(i32),
}

impl ExitStatus {
    /// As a shell tells it: the status, 128 + the signal, or 124 at a time-out.
    #[must_use]
    pub fn shell_code(self) -> i32 {
        match self {
            Self::Code(code) => code,
            Self::Signal(signal) => signal.saturating_add(128),
            Self::TimedOut(_) => 124,
        }
    }
}

/// A command that runs, or has ended and whose output is still kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Session {
    /// Its number in its sandbox.
    pub id: u64,
    /// What it runs.
    pub argv: Vec<String>,
    /// Process number in the guest.
    pub pid: u32,
    /// Whether it has a terminal.
    pub tty: bool,
    /// Whether a client is attached.
    pub attached: bool,
    /// How it ended, if it did.
    #[serde(default)]
    pub exit: Option<ExitStatus>,
    /// How long it has run, or ran.
    pub age_ms: u64,
}
