//! Why a registry does not give what is asked for.

use std::time::Duration;

use hyper_util::client::legacy::Error as ClientError;

use crate::credentials::CredentialError;
use crate::oci::{Digest, ManifestError, PlatformError};

/// A registry that refuses, fails or lies.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RegistryError {
    /// The settings, a redirect or a token server's address make no sense.
    #[error("{url} cannot be used: {problem}")]
    InvalidUrl {
        /// The URL.
        url: String,
        /// What is wrong.
        problem: &'static str,
    },
    /// No connection, no valid certificate, or no answer.
    #[error("cannot reach {url}")]
    Connect {
        /// The URL.
        url: String,
        /// The cause.
        #[source]
        source: ClientError,
    },
    /// Nothing came for the whole deadline.
    #[error("{url} sent nothing for {waited:?}")]
    Stalled {
        /// The URL.
        url: String,
        /// The deadline.
        waited: Duration,
    },
    /// The connection broke in the middle.
    #[error("the transfer of {url} broke off")]
    Interrupted {
        /// The URL.
        url: String,
        /// The cause.
        #[source]
        source: hyper::Error,
    },
    /// The registry wants to know who is asking, or does not want this one.
    #[error(
        "{registry} refuses access to {repository}: it does not exist, or needs other credentials"
    )]
    Unauthorized {
        /// The registry.
        registry: String,
        /// What was asked for.
        repository: String,
    },
    /// The registry asks for a proof that is not known.
    #[error("{registry} asks for credentials in a way that is not supported")]
    Challenge {
        /// The registry.
        registry: String,
    },
    /// There is no such image.
    #[error("{registry} has no {what}")]
    NotFound {
        /// The registry.
        registry: String,
        /// The image or blob.
        what: String,
    },
    /// Too many requests, even after waiting.
    #[error("{registry} asks for fewer requests; try again later, or log in")]
    RateLimited {
        /// The registry.
        registry: String,
    },
    /// Another refusal.
    #[error("{url} answered {status}")]
    Status {
        /// The URL.
        url: String,
        /// The HTTP status.
        status: u16,
    },
    /// More redirects than anyone needs.
    #[error("{url} redirects too often")]
    TooManyRedirects {
        /// The URL that was asked for.
        url: String,
    },
    /// The answer is malformed.
    #[error("{url} gave an answer that makes no sense: {problem}")]
    Malformed {
        /// The URL.
        url: String,
        /// What is wrong.
        problem: &'static str,
    },
    /// Not as long as the manifest says.
    #[error("{url} has {received} bytes, not {expected}")]
    WrongSize {
        /// The URL.
        url: String,
        /// What came, or was announced.
        received: u64,
        /// What was expected: exactly, or at most.
        expected: u64,
    },
    /// Other bytes than were asked for.
    #[error("{url} is not what was asked for: its digest is {found}, not {expected}")]
    WrongDigest {
        /// The URL.
        url: String,
        /// What came.
        found: Digest,
        /// What was asked for.
        expected: Digest,
    },
    /// The manifest is not one of an image.
    #[error("{image}: {source}")]
    Manifest {
        /// The image.
        image: String,
        /// What is wrong.
        source: ManifestError,
    },
    /// The image is not built for this machine.
    #[error(transparent)]
    Platform(#[from] PlatformError),
    /// The credentials cannot be read.
    #[error(transparent)]
    Credentials(#[from] CredentialError),
}

impl RegistryError {
    /// Whether another try may go better.
    pub(crate) fn is_passing(&self) -> bool {
        matches!(
            self,
            RegistryError::Connect { .. }
                | RegistryError::Stalled { .. }
                | RegistryError::Interrupted { .. }
        )
    }
}
