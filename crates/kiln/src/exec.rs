//! Running commands in a guest: what is asked, and the two ends of a running session.

use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// What to run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExecSpec {
    /// Program and arguments; the program is looked up in the guest's `PATH`.
    pub argv: Vec<String>,
    /// Environment on top of the guest's default, in order, later wins.
    #[serde(default)]
    pub env: Vec<(String, String)>,
    /// Working directory; the user's home when unset.
    #[serde(default)]
    pub cwd: Option<String>,
    /// `name`, `uid`, `name:group` or `uid:gid`, resolved in the guest; root when unset.
    #[serde(default)]
    pub user: Option<String>,
    /// Give it a terminal of this size; output is then all on [`ExecOutput::Stdout`].
    #[serde(default)]
    pub tty: Option<TerminalSize>,
    /// Whether standard input is open; `/dev/null` otherwise.
    #[serde(default)]
    pub stdin: bool,
    /// End the session, with all its processes, when its client goes away. Otherwise it runs on
    /// and can be attached to again.
    #[serde(default)]
    pub kill_on_detach: bool,
    /// It is the sandbox's main process: when that is stopped, it is asked first, by the signal that
    /// the image names, and has the grace time to end.
    #[serde(default)]
    pub main: bool,
    /// With a terminal: let the sandbox's time-out end it also while this client is attached.
    #[serde(default)]
    pub keep_timeout: bool,
    /// End it with all its processes after this long, whether somebody is attached or not.
    #[serde(default)]
    pub timeout_ms: Option<u64>,
    /// What all its processes together may take.
    #[serde(default)]
    pub limits: ExecLimits,
}

/// What a command with all its processes may take, within what its sandbox has. Unset or 0 is as
/// much as there is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ExecLimits {
    /// Memory. What goes beyond it ends processes of this command.
    pub mem_mib: Option<u32>,
    /// Processes and threads at once.
    pub processes: Option<u32>,
    /// Thousandths of a processor.
    pub cpu_milli: Option<u32>,
}

/// Size of a terminal in character cells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TerminalSize {
    /// Lines.
    pub rows: u16,
    /// Characters in a line.
    pub cols: u16,
}

/// What a client sends to a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExecInput {
    /// Bytes for standard input.
    Stdin(Bytes),
    /// Standard input ends.
    StdinEof,
    /// The terminal has a new size.
    Resize(TerminalSize),
    /// A signal for the session's process group.
    Signal(i32),
}

/// What a session sends to its client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExecOutput {
    /// Bytes from standard output, or from the terminal.
    Stdout(Bytes),
    /// Bytes from standard error.
    Stderr(Bytes),
    /// Output that the ring had already dropped when the client attached, in bytes.
    Lost(u64),
    /// It ended; nothing follows.
    Exited(ExecExit),
}

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExecExit {
    /// It returned this status.
    Code(i32),
    /// It was ended by this signal.
    Signal(i32),
    /// It was ended at its time-out, by this signal.
    TimedOut(i32),
}

impl ExecExit {
    /// As a shell tells it: the status, 128 + the signal, or 124 at a time-out.
    #[must_use]
    pub fn shell_code(self) -> i32 {
        match self {
            Self::Code(code) => code,
            Self::Signal(signal) => 128 + signal,
            Self::TimedOut(_) => 124,
        }
    }
}

/// A session that runs or has ended and whose output is still kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionInfo {
    /// Number of the session, unique in the guest's life.
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
    pub exit: Option<ExecExit>,
    /// How long it has run, or ran.
    pub age: Duration,
    /// Whether it is a main process of the sandbox.
    pub main: bool,
}
