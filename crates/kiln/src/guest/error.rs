//! What can go wrong between the host and a guest's agent.

use std::io;
use std::time::Duration;

use kiln_agent_proto::frame::FrameError;
use kiln_agent_proto::message::{Error as WireError, ErrorCode};

/// An operation on a guest that failed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum GuestError {
    /// The place where the agent is met cannot be used.
    #[error("cannot listen for the guest's agent on {path}: {message}")]
    Endpoint {
        /// The socket.
        path: std::path::PathBuf,
        /// The system's reason.
        message: String,
    },
    /// There was no agent, or no answer, in time.
    #[error("the guest's agent did not answer within {waited:?} ({reason})")]
    Deadline {
        /// How long was waited.
        waited: Duration,
        /// What is known of the connection.
        reason: String,
    },
    /// Host and agent speak different protocols.
    #[error("{0}")]
    Version(String),
    /// The connection broke before the agent answered; whether it has done what was asked is
    /// not known.
    #[error("the connection to the guest's agent broke")]
    Lost,
    /// The command has ended: it takes no more input.
    #[error("the command has ended")]
    Ended,
    /// The link was closed on this side.
    #[error("the connection to the guest was closed")]
    Closed,
    /// The agent said something that it may not say. Its guest is broken or hostile.
    #[error("the guest's agent broke the protocol: {0}")]
    Protocol(&'static str),
    /// The command with its arguments and environment is too long.
    #[error("the command is too long: {0} bytes with its arguments and environment")]
    TooLong(usize),
    /// The agent refused.
    #[error("{message}")]
    Refused {
        /// What kind of refusal.
        kind: Refusal,
        /// The agent's words. From the guest: for people only.
        message: String,
    },
}

/// Why an agent refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Refusal {
    /// The program does not exist.
    NotFound,
    /// The program cannot be executed.
    NotExecutable,
    /// The user or group does not exist.
    NoSuchUser,
    /// The working directory does not exist or cannot be entered.
    BadCwd,
    /// There is no such session, or not any more.
    NoSuchSession,
    /// Another client has attached to the session.
    Replaced,
    /// Too many sessions run.
    Busy,
    /// The guest is going down.
    PoweringOff,
    /// Nothing in the guest takes connections at the port.
    PortClosed,
    /// The agent does not know the request: it is of an older Kiln, kept by a snapshot.
    TooOld,
    /// There is no such file or directory.
    NoSuchFile,
    /// The guest's file system refused something.
    FileRefused,
    /// The request makes no sense to the agent.
    BadRequest,
    /// The guest's kernel cannot hold a command to limits.
    NoLimits,
    /// Something failed in the guest.
    Internal,
}

impl GuestError {
    /// The exit code that a shell would give for a command that could not be run, when it is
    /// the command that is at fault: 127 or 126.
    #[must_use]
    pub fn exit_code(&self) -> Option<u8> {
        match self.refusal()? {
            Refusal::NotFound => Some(127),
            Refusal::NotExecutable | Refusal::BadCwd | Refusal::NoSuchUser => Some(126),
            _ => None,
        }
    }

    /// The kind of refusal, if it is one.
    #[must_use]
    pub fn refusal(&self) -> Option<Refusal> {
        match self {
            Self::Refused { kind, .. } => Some(*kind),
            _ => None,
        }
    }
}

/// Longest text of a guest that is passed on.
const MAX_WORDS: usize = 512;

impl From<WireError> for GuestError {
    fn from(error: WireError) -> Self {
        let message = readable(&error.message);
        let kind = match ErrorCode::try_from(error.code).unwrap_or(ErrorCode::Unspecified) {
            ErrorCode::Version => return Self::Version(message),
            ErrorCode::NoHello => return Self::Protocol("it forgot the hello"),
            ErrorCode::NotFound => Refusal::NotFound,
            ErrorCode::NotExecutable => Refusal::NotExecutable,
            ErrorCode::NoSuchUser => Refusal::NoSuchUser,
            ErrorCode::BadCwd => Refusal::BadCwd,
            ErrorCode::NoSuchSession => Refusal::NoSuchSession,
            ErrorCode::Replaced => Refusal::Replaced,
            ErrorCode::Busy => Refusal::Busy,
            ErrorCode::PoweringOff => Refusal::PoweringOff,
            ErrorCode::PortClosed => Refusal::PortClosed,
            ErrorCode::NoSuchFile => Refusal::NoSuchFile,
            ErrorCode::FileRefused => Refusal::FileRefused,
            ErrorCode::NoLimits => Refusal::NoLimits,
            ErrorCode::BadRequest | ErrorCode::Flooded => Refusal::BadRequest,
            ErrorCode::Unspecified | ErrorCode::Internal => Refusal::Internal,
        };
        Self::Refused { kind, message }
    }
}

/// A guest's text, short and without anything that moves a terminal's cursor.
fn readable(text: &str) -> String {
    let plain = |c: char| if c.is_control() { '\u{fffd}' } else { c };
    text.chars().take(MAX_WORDS).map(plain).collect()
}

impl From<FrameError> for GuestError {
    fn from(error: FrameError) -> Self {
        match error {
            FrameError::Io(_) | FrameError::Truncated => Self::Lost,
            FrameError::TooLong(_) => Self::Protocol("a frame is too long"),
            FrameError::Malformed(_) => Self::Protocol("a frame holds no valid message"),
        }
    }
}

/// Why a connection did not come to a session, or ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConnectionError {
    #[error("no agent is there")]
    Unreachable(#[source] io::Error),
    #[error("the agent does not answer the handshake")]
    Handshake(#[source] io::Error),
    #[error("the agent does not say hello")]
    Hello(#[from] GuestError),
    #[error("the connection broke")]
    Broken(#[source] yamux::ConnectionError),
    #[error("the agent ended the connection")]
    Ended,
    #[error("the agent opens streams, which it may not")]
    Flood,
    #[error("the agent dialled again")]
    Superseded,
    #[error("the multiplexer failed")]
    Multiplexer,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guests_words_cannot_move_the_cursor_or_fill_the_screen() {
        let error = WireError::new(
            ErrorCode::NotFound,
            format!("a\x1b[2J\n{}", "x".repeat(9999)),
        );
        let text = GuestError::from(error).to_string();
        assert!(!text.contains(char::is_control));
        assert_eq!(text.chars().count(), MAX_WORDS);
    }

    #[test]
    fn the_commands_own_faults_have_a_shells_exit_code() {
        let code = |code| GuestError::from(WireError::new(code, "")).exit_code();
        assert_eq!(code(ErrorCode::NotFound), Some(127));
        assert_eq!(code(ErrorCode::NotExecutable), Some(126));
        assert_eq!(code(ErrorCode::Busy), None);
        assert_eq!(GuestError::Lost.exit_code(), None);
    }
}
