//! Commands that run in the guest: how they are started, fed, heard and listed.

use prost::{Message, Oneof};

/// A command to run.
#[derive(Clone, PartialEq, Message)]
pub struct Exec {
    /// Program and arguments.
    #[prost(bytes = "vec", repeated, tag = "1")]
    pub argv: Vec<Vec<u8>>,
    /// Environment on top of the default.
    #[prost(message, repeated, tag = "2")]
    pub env: Vec<EnvVar>,
    /// Working directory; the user's home when empty.
    #[prost(bytes = "vec", tag = "3")]
    pub cwd: Vec<u8>,
    /// `name`, `uid`, `name:group` or `uid:gid`; root when empty.
    #[prost(string, tag = "4")]
    pub user: String,
    /// Give it a terminal of this size.
    #[prost(message, optional, tag = "5")]
    pub tty: Option<WindowSize>,
    /// Whether standard input is open.
    #[prost(bool, tag = "6")]
    pub stdin: bool,
    /// End it when its client goes away.
    #[prost(bool, tag = "7")]
    pub kill_on_detach: bool,
    /// End it with all its processes after this long; 0 for never.
    #[prost(uint64, tag = "8")]
    pub timeout_ms: u64,
    /// Make the working directory if it is missing.
    #[prost(bool, tag = "20")]
    pub make_cwd: bool,
    /// It is the guest's main process: when the guest is to end, it gets this signal first and
    /// time to end; 0 if it is like any other.
    #[prost(uint32, tag = "21")]
    pub stop_signal: u32,
    /// What all its processes together may take at most. Since version 3.
    #[prost(message, optional, tag = "22")]
    pub limits: Option<ExecLimits>,
}

/// What a command with all its processes may take; 0 for as much as there is.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct ExecLimits {
    /// Memory, caches included.
    #[prost(uint64, tag = "1")]
    pub memory_bytes: u64,
    /// Processes and threads at once.
    #[prost(uint32, tag = "2")]
    pub processes: u32,
    /// Thousandths of a processor.
    #[prost(uint32, tag = "3")]
    pub cpu_milli: u32,
}

/// One environment variable.
#[derive(Clone, PartialEq, Message)]
pub struct EnvVar {
    /// Name.
    #[prost(bytes = "vec", tag = "1")]
    pub name: Vec<u8>,
    /// Value.
    #[prost(bytes = "vec", tag = "2")]
    pub value: Vec<u8>,
}

/// Size of a terminal.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct WindowSize {
    /// Lines.
    #[prost(uint32, tag = "1")]
    pub rows: u32,
    /// Characters in a line.
    #[prost(uint32, tag = "2")]
    pub cols: u32,
}

/// Attach to a session; whoever was attached is replaced.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct Attach {
    /// Which.
    #[prost(uint64, tag = "1")]
    pub session: u64,
    /// Offset of the first output byte that is wanted.
    #[prost(uint64, tag = "2")]
    pub from_offset: u64,
}

/// List the sessions.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct ListSessions {}

/// End a session with all its processes.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct Kill {
    /// Which.
    #[prost(uint64, tag = "1")]
    pub session: u64,
}

/// Wait for the end of a session, without being its client.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct Wait {
    /// Which.
    #[prost(uint64, tag = "1")]
    pub session: u64,
}

/// A session has ended.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct Waited {
    /// How.
    #[prost(message, required, tag = "1")]
    pub exit: Exited,
    /// How long it ran.
    #[prost(uint64, tag = "2")]
    pub age_ms: u64,
}

/// A session has started.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct Started {
    /// Its number.
    #[prost(uint64, tag = "1")]
    pub session: u64,
    /// Its process.
    #[prost(uint32, tag = "2")]
    pub pid: u32,
}

/// What a client has to know to go on with a session.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct Attached {
    /// Its number.
    #[prost(uint64, tag = "1")]
    pub session: u64,
    /// Its process.
    #[prost(uint32, tag = "2")]
    pub pid: u32,
    /// Offset of the first output byte that follows.
    #[prost(uint64, tag = "3")]
    pub output_offset: u64,
    /// Input messages received so far.
    #[prost(uint64, tag = "4")]
    pub input_frames: u64,
    /// Bytes of standard input received so far.
    #[prost(uint64, tag = "5")]
    pub stdin_received: u64,
    /// Bytes of standard input that the command has taken so far.
    #[prost(uint64, tag = "6")]
    pub stdin_taken: u64,
    /// Whether it has a terminal.
    #[prost(bool, tag = "7")]
    pub tty: bool,
}

/// A piece of the list of sessions.
#[derive(Clone, PartialEq, Message)]
pub struct SessionList {
    /// Sessions.
    #[prost(message, repeated, tag = "1")]
    pub sessions: Vec<SessionEntry>,
    /// Whether the list is complete with these.
    #[prost(bool, tag = "2")]
    pub last: bool,
}

/// A session in a list.
#[derive(Clone, PartialEq, Message)]
pub struct SessionEntry {
    /// Its number.
    #[prost(uint64, tag = "1")]
    pub session: u64,
    /// What it runs; cut when long.
    #[prost(bytes = "vec", repeated, tag = "2")]
    pub argv: Vec<Vec<u8>>,
    /// Its process.
    #[prost(uint32, tag = "3")]
    pub pid: u32,
    /// Whether it has a terminal.
    #[prost(bool, tag = "4")]
    pub tty: bool,
    /// Whether a client is attached.
    #[prost(bool, tag = "5")]
    pub attached: bool,
    /// How it ended, if it did.
    #[prost(message, optional, tag = "6")]
    pub exit: Option<Exited>,
    /// How long it has run, or ran.
    #[prost(uint64, tag = "7")]
    pub age_ms: u64,
    /// Whether it is a main process of the guest.
    #[prost(bool, tag = "8")]
    pub main: bool,
}

/// Host to agent, after [`Started`] or [`Attached`].
#[derive(Clone, PartialEq, Message)]
pub struct SessionInput {
    /// What.
    #[prost(oneof = "session_input::Kind", tags = "1, 2, 3, 4, 5, 6")]
    pub kind: Option<session_input::Kind>,
}

/// Parts of [`SessionInput`].
pub mod session_input {
    use super::Oneof;

    /// The inputs. All but the last two are counted by both sides, so that after a break none is
    /// lost and none comes twice.
    #[derive(Clone, PartialEq, Oneof)]
    pub enum Kind {
        /// Bytes for standard input.
        #[prost(bytes, tag = "1")]
        Stdin(Vec<u8>),
        /// Standard input ends.
        #[prost(message, tag = "2")]
        StdinEof(super::super::Done),
        /// The terminal has a new size.
        #[prost(message, tag = "3")]
        Resize(super::WindowSize),
        /// A signal for the process group.
        #[prost(uint32, tag = "4")]
        Signal(u32),
        /// The client has all output before this offset.
        #[prost(uint64, tag = "5")]
        OutputAck(u64),
        /// The client goes away, on purpose.
        #[prost(message, tag = "6")]
        Detach(super::super::Done),
    }
}

/// Agent to host, after [`Started`] or [`Attached`].
#[derive(Clone, PartialEq, Message)]
pub struct SessionOutput {
    /// What.
    #[prost(oneof = "session_output::Kind", tags = "1, 2, 3, 4, 5, 6")]
    pub kind: Option<session_output::Kind>,
}

/// Parts of [`SessionOutput`].
pub mod session_output {
    use super::Oneof;

    /// The outputs.
    #[derive(Clone, PartialEq, Oneof)]
    pub enum Kind {
        /// Bytes of standard output, or of the terminal.
        #[prost(bytes, tag = "1")]
        Stdout(Vec<u8>),
        /// Bytes of standard error.
        #[prost(bytes, tag = "2")]
        Stderr(Vec<u8>),
        /// This many bytes of output, next in order, were dropped.
        #[prost(uint64, tag = "3")]
        Lost(u64),
        /// It ended; nothing follows.
        #[prost(message, tag = "4")]
        Exited(super::Exited),
        /// What became of the input.
        #[prost(message, tag = "5")]
        InputAck(super::InputAck),
        /// The client is put out; nothing follows.
        #[prost(message, tag = "6")]
        Error(super::super::Error),
    }
}

/// How a command ended.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct Exited {
    /// Its status, when `signal` is 0.
    #[prost(int32, tag = "1")]
    pub code: i32,
    /// The signal that ended it, or 0.
    #[prost(uint32, tag = "2")]
    pub signal: u32,
    /// It was ended at its time-out.
    #[prost(bool, tag = "3")]
    pub timed_out: bool,
}

/// How far the input has come.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct InputAck {
    /// Counted input messages received.
    #[prost(uint64, tag = "1")]
    pub frames: u64,
    /// Bytes of standard input that the command has taken, or refused for good.
    #[prost(uint64, tag = "2")]
    pub stdin_taken: u64,
}

impl SessionInput {
    /// An input of this kind.
    #[must_use]
    pub fn of(kind: session_input::Kind) -> Self {
        Self { kind: Some(kind) }
    }
}

impl SessionOutput {
    /// An output of this kind.
    #[must_use]
    pub fn of(kind: session_output::Kind) -> Self {
        Self { kind: Some(kind) }
    }
}
