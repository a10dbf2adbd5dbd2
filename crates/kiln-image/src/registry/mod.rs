//! Asking a registry (OCI distribution specification 1.1): manifests and blobs of one repository.
//!
//! Owns the way a request goes: mirrors, credentials and tokens, redirects, waiting and trying
//! again. It writes no files and knows no store.

mod backoff;
mod challenge;
mod endpoint;
mod error;
mod settings;
mod token;

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Limited};
use hyper::Response;
use hyper::body::Incoming;
use hyper::header::{ACCEPT, CONTENT_RANGE, HeaderValue, RANGE};
use tokio::time::timeout;

pub(crate) use backoff::Backoff;
pub use error::RegistryError;
pub use settings::{Patience, RegistrySetting, RegistrySettings};

pub(crate) use fuzz::{fuzz_challenge, fuzz_retry_after};

use crate::credentials::Keyring;
use crate::http;
use crate::oci::{Digest, Document, MAX_DOCUMENT, Reference};
use endpoint::EndpointClient;

/// One repository of a registry, asked by way of its mirrors.
pub(crate) struct Repository {
    endpoints: Vec<EndpointClient>,
    patience: Patience,
}

/// The body of a blob, from some byte on.
pub(crate) struct BlobBody {
    pub(crate) url: String,
    body: Incoming,
    /// Bytes at the beginning that the server sent although they were not asked for.
    pub(crate) excess: u64,
    stall: Duration,
}

impl Repository {
    /// Finds the ways to the image's repository; asks nothing yet.
    pub(crate) fn new(
        image: &Reference,
        settings: &RegistrySettings,
        keyring: &Keyring,
    ) -> Result<Repository, RegistryError> {
        let client = http::client(settings.patience.stall());
        let endpoints = settings.endpoints(image)?;
        let endpoints = endpoints.into_iter().map(|endpoint| {
            let repository = image.repository().to_owned();
            EndpointClient::new(
                endpoint,
                repository,
                client.clone(),
                keyring.clone(),
                settings.patience.clone(),
            )
        });
        Ok(Repository {
            endpoints: endpoints.collect(),
            patience: settings.patience.clone(),
        })
    }

    pub(crate) fn patience(&self) -> &Patience {
        &self.patience
    }

    /// The manifest or index with this tag or digest; a digest is checked.
    pub(crate) async fn manifest(
        &self,
        tag: Option<&str>,
        digest: Option<Digest>,
    ) -> Result<(Digest, Bytes), RegistryError> {
        let name = match (digest, tag) {
            (Some(digest), _) => digest.to_string(),
            (None, tag) => tag.unwrap_or("latest").to_owned(),
        };
        let path = format!("manifests/{name}");
        let accept = HeaderValue::try_from(Document::accept()).ok();
        let headers: Vec<_> = accept.map(|value| (ACCEPT, value)).into_iter().collect();
        let (url, bytes) = self.document(&path, &headers).await?;
        check_digest(url, digest, bytes)
    }

    /// A small blob, such as an image's config.
    pub(crate) async fn small_blob(&self, digest: Digest) -> Result<Bytes, RegistryError> {
        let (url, bytes) = self.document(&format!("blobs/{digest}"), &[]).await?;
        check_digest(url, Some(digest), bytes).map(|(_, bytes)| bytes)
    }

    /// A blob from this byte on.
    pub(crate) async fn blob(
        &self,
        digest: Digest,
        offset: u64,
    ) -> Result<BlobBody, RegistryError> {
        let path = format!("blobs/{digest}");
        let range = HeaderValue::try_from(format!("bytes={offset}-")).ok();
        let headers: Vec<_> = range
            .filter(|_| offset > 0)
            .map(|value| (RANGE, value))
            .into_iter()
            .collect();
        let (url, response) = self.ask(&path, &headers).await?;
        let start = start_of(&response, &url)?;
        if start > offset {
            let problem = "it begins behind the byte that was asked for";
            return Err(RegistryError::Malformed { url, problem });
        }
        Ok(BlobBody {
            url,
            body: response.into_body(),
            excess: offset - start,
            stall: self.patience.stall(),
        })
    }

    /// Reads a whole answer, again if it breaks off.
    async fn document(
        &self,
        path: &str,
        headers: &[(hyper::header::HeaderName, HeaderValue)],
    ) -> Result<(String, Bytes), RegistryError> {
        let mut backoff = Backoff::new(&self.patience);
        loop {
            let (url, response) = self.ask(path, headers).await?;
            let error = match read_document(&url, response, self.patience.stall()).await {
                Ok(bytes) => return Ok((url, bytes)),
                Err(error) => error,
            };
            match backoff.next(None).filter(|_| error.is_passing()) {
                Some(wait) => tokio::time::sleep(wait).await,
                None => return Err(error),
            }
        }
    }

    /// Asks one endpoint after the other; the registry itself comes last and has the last word.
    async fn ask(
        &self,
        path: &str,
        headers: &[(hyper::header::HeaderName, HeaderValue)],
    ) -> Result<(String, Response<Incoming>), RegistryError> {
        let mut last = None;
        for endpoint in &self.endpoints {
            match endpoint.get(path, headers).await {
                Ok(response) => return Ok((endpoint.url(path), response)),
                Err(error) => {
                    tracing::debug!(url = endpoint.url(path), %error, "registry endpoint failed");
                    last = Some(error);
                }
            }
        }
        Err(last.unwrap_or_else(|| RegistryError::InvalidUrl {
            url: path.to_owned(),
            problem: "there is no registry",
        }))
    }
}

impl BlobBody {
    /// The next bytes; `None` at the end.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, RegistryError> {
        loop {
            let frame = timeout(self.stall, self.body.frame()).await;
            let frame = frame.map_err(|_| RegistryError::Stalled {
                url: self.url.clone(),
                waited: self.stall,
            })?;
            let Some(frame) = frame else {
                return Ok(None);
            };
            let frame = frame.map_err(|source| RegistryError::Interrupted {
                url: self.url.clone(),
                source,
            })?;
            if let Ok(data) = frame.into_data() {
                return Ok(Some(data));
            }
        }
    }
}

async fn read_document(
    url: &str,
    response: Response<Incoming>,
    stall: Duration,
) -> Result<Bytes, RegistryError> {
    let too_long = |received| RegistryError::WrongSize {
        url: url.to_owned(),
        received,
        expected: MAX_DOCUMENT,
    };
    let announced = hyper::body::Body::size_hint(response.body()).lower();
    if announced > MAX_DOCUMENT {
        return Err(too_long(announced));
    }
    let whole = Limited::new(response.into_body(), MAX_DOCUMENT as usize).collect();
    let whole = timeout(stall, whole)
        .await
        .map_err(|_| RegistryError::Stalled {
            url: url.to_owned(),
            waited: stall,
        })?;
    whole
        .map(|body| body.to_bytes())
        .map_err(|error| match error.downcast::<hyper::Error>() {
            Ok(source) => RegistryError::Interrupted {
                url: url.to_owned(),
                source: *source,
            },
            Err(_) => too_long(MAX_DOCUMENT + 1),
        })
}

fn check_digest(
    url: String,
    expected: Option<Digest>,
    bytes: Bytes,
) -> Result<(Digest, Bytes), RegistryError> {
    let found = Digest::of(&bytes);
    match expected {
        Some(expected) if expected != found => Err(RegistryError::WrongDigest {
            url,
            found,
            expected,
        }),
        _ => Ok((found, bytes)),
    }
}

/// The first byte of the answer: the one that was asked for, or the very first where a server knows
/// no ranges.
fn start_of(response: &Response<Incoming>, url: &str) -> Result<u64, RegistryError> {
    if response.status().as_u16() != 206 {
        return Ok(0);
    }
    let malformed = || RegistryError::Malformed {
        url: url.to_owned(),
        problem: "it does not say which part it is",
    };
    let header = response
        .headers()
        .get(CONTENT_RANGE)
        .ok_or_else(malformed)?;
    let text = header.to_str().map_err(|_| malformed())?;
    let start = text
        .strip_prefix("bytes ")
        .and_then(|range| range.split('-').next());
    start
        .and_then(|start| start.trim().parse().ok())
        .ok_or_else(malformed)
}

mod fuzz {
    /// Door for the fuzz target.
    pub(crate) fn fuzz_challenge(text: &str) {
        super::challenge::parse(text);
    }

    /// Door for the fuzz target.
    pub(crate) fn fuzz_retry_after(text: &str) {
        super::backoff::retry_after(text, std::time::SystemTime::UNIX_EPOCH);
    }
}
