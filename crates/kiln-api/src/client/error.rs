//! How a request to the daemon fails.

use std::{io, path::PathBuf};

use hyper::StatusCode;
use thiserror::Error;

use crate::{ErrorReport, code, stream::StreamError};

/// Why there is no answer, or no good one.
#[derive(Debug, Error)]
pub enum ClientError {
    /// Nobody to ask.
    #[error("cannot connect to the daemon at {}", socket.display())]
    Connect {
        /// Where it should be.
        socket: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Nobody to ask on another host, or none whom its certificate makes the one that was meant.
    #[error("cannot connect to the daemon at {address}")]
    ConnectRemote {
        /// Where it should be.
        address: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// What was said of another host's daemon is of no use.
    #[error("cannot reach another host: {what}")]
    Remote {
        /// What is wrong.
        what: String,
        /// Why.
        #[source]
        source: Option<Box<dyn std::error::Error + Send + Sync>>,
    },
    /// The daemon said no.
    #[error("{}", report.message)]
    Refused {
        /// How HTTP says it; absent when a running stream said it.
        status: Option<StatusCode>,
        /// How Kiln says it.
        report: ErrorReport,
    },
    /// The connection broke.
    #[error("the connection to the daemon was lost")]
    Lost(#[source] Option<Box<dyn std::error::Error + Send + Sync>>),
    /// The answer is not what the contract says.
    #[error("the daemon's answer is not understood: {what}")]
    Answer {
        /// What is wrong.
        what: String,
        /// Why.
        #[source]
        source: Option<Box<dyn std::error::Error + Send + Sync>>,
    },
    /// A message of a stream is not what the contract says.
    #[error(transparent)]
    Stream(#[from] StreamError),
    /// The request cannot be written down.
    #[error("the request cannot be encoded")]
    Encode(#[source] serde_json::Error),
}

impl ClientError {
    /// Whether there is no daemon, so that starting one may help.
    #[must_use]
    pub fn is_not_running(&self) -> bool {
        match self {
            Self::Connect { source, .. } => {
                matches!(
                    source.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
                )
            }
            Self::Refused { report, .. } => report.code == code::DAEMON_STOPPING,
            _ => false,
        }
    }

    /// The failure in the contract's own words.
    #[must_use]
    pub fn report(&self) -> ErrorReport {
        match self {
            Self::Refused { report, .. } => report.clone(),
            Self::Connect { .. } => ErrorReport::new(code::DAEMON_UNREACHABLE, self.with_causes())
                .with_hint(
                    "start it with `kiln daemon --background`, or name its socket with --socket",
                ),
            Self::ConnectRemote { .. } => ErrorReport::new(
                code::DAEMON_UNREACHABLE,
                self.with_causes(),
            )
            .with_hint(
                "see that `kiln daemon --listen` runs there, and that the certificate is its own",
            ),
            Self::Remote { .. } => ErrorReport::new("INVALID_CONFIG", self.with_causes()),
            Self::Lost(_) => ErrorReport::new(code::CONNECTION_LOST, self.with_causes())
                .with_hint("its log is daemon.log in the data directory"),
            Self::Answer { .. } | Self::Stream(_) => {
                ErrorReport::new(code::BAD_ANSWER, self.with_causes())
            }
            Self::Encode(_) => ErrorReport::new(code::INTERNAL, self.with_causes()),
        }
    }

    fn with_causes(&self) -> String {
        let mut text = self.to_string();
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            text.push_str(&format!(": {error}"));
            cause = error.source();
        }
        text
    }

    pub(super) fn lost(source: impl std::error::Error + Send + Sync + 'static) -> Self {
        Self::Lost(Some(Box::new(source)))
    }

    pub(super) fn remote(
        what: impl Into<String>,
        source: Option<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Self::Remote {
            what: what.into(),
            source,
        }
    }

    pub(super) fn answer(what: impl Into<String>) -> Self {
        Self::Answer {
            what: what.into(),
            source: None,
        }
    }
}
