//! What the frames hold.
//!
//! Field numbers are frozen; see the crate's documentation. Text that comes from the guest is
//! for people only: nothing is decided by it.

mod file;
mod session;
mod watch;

use prost::{Enumeration, Message, Oneof};

pub use file::{
    Download, FileEntry, FileKind, FileList, ListFiles, MakeDirectory, MoveFile, RemoveFile,
    StatFile, TreeBytes, Upload,
};
pub use session::{
    Attach, Attached, EnvVar, Exec, ExecLimits, Exited, InputAck, Kill, ListSessions, SessionEntry,
    SessionInput, SessionList, SessionOutput, Started, Wait, Waited, WindowSize, session_input,
    session_output,
};

pub use watch::{ChangeKind, FileChange, Watch};

/// First message of every stream, host to agent. A request that does not fit one frame comes as
/// several, each with a [`RequestPart`]; together they hold one encoded `Request`.
#[derive(Clone, PartialEq, Message)]
pub struct Request {
    /// What is asked.
    #[prost(
        oneof = "request::Kind",
        tags = "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19"
    )]
    pub kind: Option<request::Kind>,
}

/// Parts of [`Request`].
pub mod request {
    use super::Oneof;

    /// The operations.
    #[derive(Clone, PartialEq, Oneof)]
    pub enum Kind {
        /// Settle the version, tell the guest who and when it is.
        #[prost(message, tag = "1")]
        Hello(super::Hello),
        /// Start a command and attach to it.
        #[prost(message, tag = "2")]
        Exec(super::Exec),
        /// Attach to a session.
        #[prost(message, tag = "3")]
        Attach(super::Attach),
        /// List the sessions.
        #[prost(message, tag = "4")]
        Sessions(super::ListSessions),
        /// End a session with all its processes.
        #[prost(message, tag = "5")]
        Kill(super::Kill),
        /// End the guest.
        #[prost(message, tag = "6")]
        Power(super::Power),
        /// Ask for figures.
        #[prost(message, tag = "7")]
        Stats(super::GetStats),
        /// Listen to events.
        #[prost(message, tag = "8")]
        Events(super::Subscribe),
        /// Connect to a port of the guest's own. Since version 2.
        #[prost(message, tag = "17")]
        Connect(super::Connect),
        /// Wait for the end of a session. Since version 4.
        #[prost(message, tag = "19")]
        Wait(super::Wait),
        /// Ask what a path names.
        #[prost(message, tag = "9")]
        StatFile(super::StatFile),
        /// List a directory.
        #[prost(message, tag = "10")]
        ListFiles(super::ListFiles),
        /// Make a directory.
        #[prost(message, tag = "11")]
        MakeDirectory(super::MakeDirectory),
        /// Give a file or directory another path.
        #[prost(message, tag = "12")]
        MoveFile(super::MoveFile),
        /// Remove a file or directory.
        #[prost(message, tag = "13")]
        RemoveFile(super::RemoveFile),
        /// Write a tree; [`super::TreeBytes`] follow.
        #[prost(message, tag = "14")]
        Upload(super::Upload),
        /// A piece of a long request.
        #[prost(message, tag = "15")]
        Part(super::RequestPart),
        /// Read a tree.
        #[prost(message, tag = "16")]
        Download(super::Download),
        /// Tell what changes in a directory. Since version 3.
        #[prost(message, tag = "18")]
        Watch(super::Watch),
    }
}

/// A piece of a request that is longer than a frame.
#[derive(Clone, PartialEq, Message)]
pub struct RequestPart {
    /// The next bytes of the encoded request.
    #[prost(bytes = "vec", tag = "1")]
    pub data: Vec<u8>,
    /// Whether they are the last.
    #[prost(bool, tag = "2")]
    pub last: bool,
}

/// First operation of a connection.
#[derive(Clone, PartialEq, Message)]
pub struct Hello {
    /// Oldest protocol version that the host speaks.
    #[prost(uint32, tag = "1")]
    pub min_version: u32,
    /// Newest protocol version that the host speaks.
    #[prost(uint32, tag = "2")]
    pub max_version: u32,
    /// The host's clock, nanoseconds since 1970; 0 leaves the guest's alone.
    #[prost(uint64, tag = "3")]
    pub clock_unix_ns: u64,
    /// Random bytes for the guest's pool. A restored guest knows no other new ones.
    #[prost(bytes = "vec", tag = "4")]
    pub entropy: Vec<u8>,
    /// Name of the guest; empty leaves it alone.
    #[prost(string, tag = "5")]
    pub hostname: String,
}

/// How a guest ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Enumeration)]
#[repr(i32)]
pub enum PowerMode {
    /// Not said; treated as [`PowerMode::PowerOff`].
    Unspecified = 0,
    /// It is to stay off.
    PowerOff = 1,
    /// It is to be started again.
    Reboot = 2,
}

/// End the guest: TERM to all, a grace time, KILL, sync, off.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct Power {
    /// How.
    #[prost(enumeration = "PowerMode", tag = "1")]
    pub mode: i32,
    /// Time between TERM and KILL.
    #[prost(uint32, tag = "2")]
    pub grace_ms: u32,
}

/// Ask for figures.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct GetStats {}

/// Listen to events.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct Subscribe {}

/// Connect to a TCP port of the guest's loopback address. After [`Done`], both sides send
/// [`PortData`] until they end their direction of the stream.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct Connect {
    /// Which, 1 to 65535.
    #[prost(uint32, tag = "1")]
    pub port: u32,
}

/// Bytes of a connection, at most [`CHUNK`](crate::limits::CHUNK). A side that does not read
/// closes the window of its stream.
#[derive(Clone, PartialEq, Message)]
pub struct PortData {
    /// The next ones.
    #[prost(bytes = "vec", tag = "1")]
    pub data: Vec<u8>,
}

/// First message of every stream, agent to host.
#[derive(Clone, PartialEq, Message)]
pub struct Reply {
    /// The answer.
    #[prost(oneof = "reply::Kind", tags = "1, 2, 3, 4, 5, 6, 7, 8, 9, 10")]
    pub kind: Option<reply::Kind>,
}

/// Parts of [`Reply`].
pub mod reply {
    use super::Oneof;

    /// The answers.
    #[derive(Clone, PartialEq, Oneof)]
    pub enum Kind {
        /// Refused or failed; nothing follows.
        #[prost(message, tag = "1")]
        Error(super::Error),
        /// To a hello.
        #[prost(message, tag = "2")]
        Hello(super::HelloReply),
        /// To an exec: it runs. [`super::SessionOutput`] follows.
        #[prost(message, tag = "3")]
        Started(super::Started),
        /// To an attach. [`super::SessionOutput`] follows.
        #[prost(message, tag = "4")]
        Attached(super::Attached),
        /// To a list; further ones follow until one says that it is the last.
        #[prost(message, tag = "5")]
        Sessions(super::SessionList),
        /// Done; nothing more to say.
        #[prost(message, tag = "6")]
        Done(super::Done),
        /// To a question for figures.
        #[prost(message, tag = "7")]
        Stats(super::Stats),
        /// To a question for a file.
        #[prost(message, tag = "8")]
        File(super::FileEntry),
        /// To a list of a directory; further ones follow until one says that it is the last.
        #[prost(message, tag = "9")]
        Files(super::FileList),
        /// To a wait: it has ended.
        #[prost(message, tag = "10")]
        Waited(super::Waited),
    }
}

/// Why a request failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Enumeration)]
#[repr(i32)]
pub enum ErrorCode {
    /// A code that this side does not know, or none.
    Unspecified = 0,
    /// The request makes no sense.
    BadRequest = 1,
    /// No version in common.
    Version = 2,
    /// An operation before the hello.
    NoHello = 3,
    /// The program does not exist: exit code 127.
    NotFound = 4,
    /// The program cannot be executed: exit code 126.
    NotExecutable = 5,
    /// The user or group does not exist.
    NoSuchUser = 6,
    /// The working directory does not exist or cannot be entered.
    BadCwd = 7,
    /// There is no such session, or not any more.
    NoSuchSession = 8,
    /// Too many sessions.
    Busy = 9,
    /// The guest is going down.
    PoweringOff = 10,
    /// The guest's system refused something.
    Internal = 11,
    /// Another client attached to the session.
    Replaced = 12,
    /// The client ignored a window.
    Flooded = 13,
    /// Nothing in the guest takes connections at the port.
    PortClosed = 16,
    /// There is no such file or directory.
    NoSuchFile = 14,
    /// The guest's file system refused something.
    FileRefused = 15,
    /// The guest's kernel cannot hold a command to the limits that were asked for.
    NoLimits = 17,
}

/// A failure.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Error {
    /// What kind.
    #[prost(enumeration = "ErrorCode", tag = "1")]
    pub code: i32,
    /// For people.
    #[prost(string, tag = "2")]
    pub message: String,
}

/// The agent introduces itself.
#[derive(Clone, PartialEq, Message)]
pub struct HelloReply {
    /// The version settled on.
    #[prost(uint32, tag = "1")]
    pub version: u32,
    /// Release of the agent.
    #[prost(string, tag = "2")]
    pub agent: String,
    /// Random; another one is another agent, whose sessions are others.
    #[prost(fixed64, tag = "3")]
    pub instance: u64,
    /// When the agent reached the steps of its start.
    #[prost(message, repeated, tag = "4")]
    pub marks: Vec<Mark>,
}

/// A step of the agent's start.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Mark {
    /// Its name.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Microseconds since the guest's kernel started.
    #[prost(uint64, tag = "2")]
    pub uptime_us: u64,
}

/// Done; nothing more to say.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct Done {}

/// Figures of the guest.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Stats {
    /// Resident memory of the agent.
    #[prost(uint64, tag = "1")]
    pub agent_rss_kib: u64,
    /// Since the kernel started.
    #[prost(uint64, tag = "2")]
    pub uptime_ms: u64,
    /// Memory that the guest's kernel manages.
    #[prost(uint64, tag = "3")]
    pub mem_total_kib: u64,
    /// Memory available to new programs.
    #[prost(uint64, tag = "4")]
    pub mem_available_kib: u64,
    /// Sessions that run.
    #[prost(uint32, tag = "5")]
    pub sessions_running: u32,
    /// Sessions that have ended and are kept.
    #[prost(uint32, tag = "6")]
    pub sessions_ended: u32,
    /// Processes in the guest.
    #[prost(uint32, tag = "7")]
    pub processes: u32,
    /// Load of the last minute, in hundredths.
    #[prost(uint32, tag = "8")]
    pub load1_centi: u32,
    /// Time that its processors have worked, all together, since the kernel started.
    #[prost(uint64, tag = "9")]
    pub cpu_busy_ms: u64,
    /// Processors.
    #[prost(uint32, tag = "10")]
    pub cpus: u32,
    /// Size of the root file system.
    #[prost(uint64, tag = "11")]
    pub disk_total_kib: u64,
    /// Of it, in use.
    #[prost(uint64, tag = "12")]
    pub disk_used_kib: u64,
    /// Bytes received by all interfaces but the loopback.
    #[prost(uint64, tag = "13")]
    pub net_rx_bytes: u64,
    /// Bytes sent.
    #[prost(uint64, tag = "14")]
    pub net_tx_bytes: u64,
}

/// Agent to host, after [`Done`] to a [`Subscribe`].
#[derive(Clone, PartialEq, Message)]
pub struct Event {
    /// What.
    #[prost(oneof = "event::Kind", tags = "1")]
    pub kind: Option<event::Kind>,
}

/// Parts of [`Event`].
pub mod event {
    use super::Oneof;

    /// The events.
    #[derive(Clone, PartialEq, Oneof)]
    pub enum Kind {
        /// The guest is about to go down.
        #[prost(message, tag = "1")]
        PowerIntent(super::PowerIntent),
    }
}

/// Who wanted the guest to go down.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Enumeration)]
#[repr(i32)]
pub enum PowerSource {
    /// Not said.
    Unspecified = 0,
    /// The host, by [`Power`].
    Host = 1,
    /// A signal to process 1, as `poweroff` and `reboot` send it.
    Guest = 2,
    /// The host's Ctrl-Alt-Del.
    CtrlAltDel = 3,
}

/// The guest is about to go down.
#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct PowerIntent {
    /// What was wanted.
    #[prost(enumeration = "PowerMode", tag = "1")]
    pub mode: i32,
    /// By whom.
    #[prost(enumeration = "PowerSource", tag = "2")]
    pub source: i32,
}

impl Request {
    /// A request of this kind.
    #[must_use]
    pub fn of(kind: request::Kind) -> Self {
        Self { kind: Some(kind) }
    }
}

impl Reply {
    /// A reply of this kind.
    #[must_use]
    pub fn of(kind: reply::Kind) -> Self {
        Self { kind: Some(kind) }
    }

    /// A failure.
    #[must_use]
    pub fn error(code: ErrorCode, message: impl Into<String>) -> Self {
        Self::of(reply::Kind::Error(Error::new(code, message)))
    }
}

impl Error {
    /// A failure of this kind.
    #[must_use]
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self {
            code: code as i32,
            message: message.into(),
        }
    }
}
