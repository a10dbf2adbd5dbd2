//! What travels on the WebSocket of a command.
//!
//! The client's first message is text: the JSON of the request. After it, both sides send
//!
//! - binary messages of at most [`MAX_MESSAGE`] bytes: one byte that names the [`Channel`], then
//!   that channel's bytes;
//! - text messages: JSON with a `type`, [`ClientControl`] one way, [`ServerControl`] the other.
//!
//! The server ends the stream by closing it, after `exited`, `error`, or, detached, `started`.
//! A WebSocket has no half-close, so the end of standard input is the control message `eof`.
//!
//! Output has the socket's own back-pressure: a client that does not read stops the command. Input
//! has a window: a client may send [`INPUT_WINDOW`] bytes of standard input after `started`, and as
//! many more as each `window` message says. So the server never has to stop reading, and a signal
//! never waits behind input that the command does not take.

use bytes::{BufMut, Bytes, BytesMut};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::{ErrorReport, ExitStatus, Image, PulledBaseImage, TerminalSize, Timings};

/// Largest binary message, channel byte included.
pub const MAX_MESSAGE: usize = 64 * 1024;
/// Most bytes of a channel in one message.
pub const MAX_CHUNK: usize = MAX_MESSAGE - 1;
/// Largest first message of a client: arguments and environment of a command.
pub const MAX_REQUEST: usize = 1024 * 1024;
/// Bytes of standard input that a client may send before the first `window` message.
pub const INPUT_WINDOW: usize = 256 * 1024;
/// How much a side may hold back before it waits for the socket.
pub const WRITE_BUFFER: usize = MAX_MESSAGE;
/// Size of the buffer that a side reads into.
pub const READ_BUFFER: usize = MAX_MESSAGE;

/// Where bytes belong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Channel {
    /// From the client, for the command.
    Stdin = 0,
    /// From the command, or its terminal.
    Stdout = 1,
    /// From the command.
    Stderr = 2,
}

/// A message that breaks the contract.
#[derive(Debug, Error)]
pub enum StreamError {
    /// No room for the channel.
    #[error("a binary message without its channel byte")]
    Empty,
    /// A channel that does not exist.
    #[error("a message for channel {0}, which does not exist")]
    UnknownChannel(u8),
    /// Too large.
    #[error("a message of {0} bytes, more than {MAX_MESSAGE}")]
    TooLarge(usize),
    /// Input that the server has not asked for.
    #[error("more standard input than the window allows")]
    WindowExceeded,
    /// Input after the message that ended it.
    #[error("standard input after its end")]
    AfterEof,
    /// Not a control message.
    #[error("a control message that is none")]
    Control(#[source] serde_json::Error),
}

/// Frames bytes of a channel.
///
/// # Errors
/// When there are more than [`MAX_CHUNK`].
pub fn encode(channel: Channel, bytes: &[u8]) -> Result<Bytes, StreamError> {
    if bytes.len() > MAX_CHUNK {
        return Err(StreamError::TooLarge(bytes.len().saturating_add(1)));
    }
    let mut message = BytesMut::with_capacity(bytes.len() + 1);
    message.put_u8(channel as u8);
    message.put_slice(bytes);
    Ok(message.freeze())
}

/// Takes a binary message apart, without copying.
///
/// # Errors
/// When it is empty, too large, or names no channel.
pub fn decode(mut message: Bytes) -> Result<(Channel, Bytes), StreamError> {
    if message.len() > MAX_MESSAGE {
        return Err(StreamError::TooLarge(message.len()));
    }
    let channel = match message.first() {
        None => return Err(StreamError::Empty),
        Some(0) => Channel::Stdin,
        Some(1) => Channel::Stdout,
        Some(2) => Channel::Stderr,
        Some(other) => return Err(StreamError::UnknownChannel(*other)),
    };
    Ok((channel, message.split_off(1)))
}

/// What a client says besides bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum ClientControl {
    /// The terminal has a new size.
    Resize {
        /// Lines.
        rows: u16,
        /// Characters in a line.
        cols: u16,
    },
    /// A signal for the command's process group.
    Signal {
        /// Its Linux number.
        signal: i32,
    },
    /// Standard input ends.
    Eof {},
    /// Leave. The command runs on unless its request said `kill_on_detach`; the sandbox stays.
    Detach {},
}

impl ClientControl {
    /// The message for a new size.
    #[must_use]
    pub fn resize(size: TerminalSize) -> Self {
        Self::Resize {
            rows: size.rows,
            cols: size.cols,
        }
    }

    /// Reads one.
    ///
    /// # Errors
    /// When it is not one.
    pub fn parse(text: &str) -> Result<Self, StreamError> {
        serde_json::from_str(text).map_err(StreamError::Control)
    }
}

/// What the server says besides bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ServerControl {
    /// Something takes its time.
    Progress(ProgressStep),
    /// Something the user should know.
    Warning {
        /// What.
        message: String,
    },
    /// The sandbox exists.
    Created {
        /// Its id.
        id: String,
        /// Its name, if it has one.
        #[serde(default)]
        name: Option<String>,
    },
    /// The command runs.
    Started {
        /// Number of its session.
        session: u64,
        /// Its process number in the guest, where the daemon knows it.
        #[serde(default)]
        pid: Option<u32>,
    },
    /// Output that was dropped before this client attached.
    Lost {
        /// How much.
        bytes: u64,
    },
    /// So many more bytes of standard input may be sent.
    Window {
        /// How many.
        bytes: usize,
    },
    /// The command ended; no output follows.
    Exited(ExitStatus),
    /// How long it all took. After `exited`, and after the removal where there is one.
    Timings(Timings),
    /// The images that came of it. Nothing follows.
    Images {
        /// All of them.
        images: Vec<Image>,
    },
    /// The base image that came of it. Nothing follows.
    BaseImage(Box<PulledBaseImage>),
    /// It failed; nothing follows.
    Error(ErrorReport),
    /// One that this client is too old to know.
    #[serde(other)]
    Unknown,
}

/// Progress of something that takes its time; has exactly one of its fields.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(default)]
pub struct ProgressStep {
    /// A step began.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub step: Option<String>,
    /// The running step got this far.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes: Option<BytesDone>,
    /// A fallback was taken, and why.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

/// How far a step got.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct BytesDone {
    /// Bytes done.
    pub done: u64,
    /// Bytes in all, where known.
    #[serde(default)]
    pub total: Option<u64>,
}

impl ServerControl {
    /// Reads one.
    ///
    /// # Errors
    /// When it is not one.
    pub fn parse(text: &str) -> Result<Self, StreamError> {
        serde_json::from_str(text).map_err(StreamError::Control)
    }
}
