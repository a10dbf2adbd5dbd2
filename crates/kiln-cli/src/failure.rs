//! How a command fails, and with which exit code.

use std::io;

use kiln_api::{ClientError, ErrorReport, code};
use thiserror::Error;

use crate::{place::PlaceError, remote::RemoteError, start::StartError};

/// Kiln itself failed.
pub(crate) const FAILED: u8 = 125;
/// The command cannot be executed.
const NOT_EXECUTABLE: u8 = 126;
/// The command is not found.
const NOT_FOUND: u8 = 127;

/// Why a command did not do what it should.
#[derive(Debug, Error)]
pub(crate) enum Failure {
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error(transparent)]
    Start(#[from] StartError),
    #[error(transparent)]
    Place(#[from] PlaceError),
    #[error(transparent)]
    Remote(#[from] RemoteError),
    /// The daemon that this process should be.
    #[error(transparent)]
    Open(#[from] kiln_daemon::OpenError),
    #[error(transparent)]
    Serve(#[from] kiln_daemon::ServeError),
    #[error(transparent)]
    Copy(#[from] crate::copy::CopyError),
    /// Something of the operating system.
    #[error("cannot {what}")]
    Io {
        what: &'static str,
        #[source]
        source: io::Error,
    },
    /// Said by the daemon, or already in its words.
    #[error("{}", .0.message)]
    Reported(Box<ErrorReport>),
    /// Several things were asked for and some of them failed; each has been told.
    #[error("{failed} of {asked} failed")]
    Several { failed: usize, asked: usize },
}

impl Failure {
    pub(crate) fn io(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { what, source }
    }

    pub(crate) fn reported(report: ErrorReport) -> Self {
        Self::Reported(Box::new(report))
    }

    /// In the words of the contract.
    pub(crate) fn report(&self) -> ErrorReport {
        match self {
            Self::Client(error) => error.report(),
            Self::Start(error) => error.report(),
            Self::Copy(error) => error.report(),
            Self::Remote(error) => error.report(),
            Self::Reported(report) => (**report).clone(),
            Self::Place(error) => ErrorReport::new(error.code(), with_causes(error))
                .with_hint("name one with --data-dir"),
            Self::Open(error) => {
                let report = ErrorReport::new(error.code(), with_causes(error));
                match error.hint() {
                    Some(hint) => report.with_hint(hint),
                    None => report,
                }
            }
            Self::Serve(_) => ErrorReport::new("CUT_OFF", self.to_string()),
            Self::Io { .. } => ErrorReport::new("IO", with_causes(self)),
            Self::Several { .. } => ErrorReport::new("SEVERAL_FAILED", self.to_string()),
        }
    }

    pub(crate) fn exit_code(&self) -> u8 {
        match self.report().code.as_str() {
            code::COMMAND_NOT_FOUND => NOT_FOUND,
            code::COMMAND_NOT_EXECUTABLE => NOT_EXECUTABLE,
            _ => FAILED,
        }
    }
}

/// An error and what caused it, in one line.
pub(crate) fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let part = error.to_string();
        if !text.ends_with(&part) {
            text.push_str(": ");
            text.push_str(&part);
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exit_code(code: &str) -> u8 {
        Failure::reported(ErrorReport::new(code, "x")).exit_code()
    }

    #[test]
    fn exit_codes_are_those_of_the_shell() {
        assert_eq!(exit_code("COMMAND_NOT_FOUND"), 127);
        assert_eq!(exit_code("COMMAND_NOT_EXECUTABLE"), 126);
        assert_eq!(exit_code("NOT_FOUND"), 125);
        assert_eq!(exit_code("SOMETHING_NEW"), 125);
    }
}
