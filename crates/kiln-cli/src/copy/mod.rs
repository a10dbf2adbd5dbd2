//! Copies between this machine and a sandbox: where they go, and the trees on their way.

mod destination;
mod trees;

use std::io;
use std::path::PathBuf;

use kiln_api::{ClientError, ErrorReport};
use thiserror::Error;

use crate::failure::with_causes;

pub(crate) use destination::{Place, Source, Target, from_root, target};
pub(crate) use trees::{Copied, from_sandbox, to_sandbox};

/// Why a copy failed.
#[derive(Debug, Error)]
pub(crate) enum CopyError {
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error("cannot read {}", path.display())]
    Local {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error(transparent)]
    Read(#[from] kiln_tree::ReadError),
    #[error(transparent)]
    Write(#[from] kiln_tree::WriteError),
    #[error(transparent)]
    Bytes(#[from] kiln_tree::wire::NoTree),
    #[error("{0}")]
    Destination(String),
    #[error("the reading of files died")]
    Died,
}

impl CopyError {
    pub(crate) fn report(&self) -> ErrorReport {
        match self {
            Self::Client(error) => error.report(),
            Self::Destination(_) => ErrorReport::new("USAGE", self.to_string())
                .with_hint("a side in a sandbox is SANDBOX:/PATH; see `kiln cp --help`"),
            Self::Write(kiln_tree::WriteError::Failed(reason)) => {
                ErrorReport::new("FILE_FAILED", crate::output::printable(reason))
            }
            _ => ErrorReport::new("COPY_FAILED", crate::output::printable(&with_causes(self))),
        }
    }
}
