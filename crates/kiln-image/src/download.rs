//! Fetching one file whose content is known in advance.
//!
//! HTTP and HTTPS with certificates checked, a few redirects followed, never from HTTPS to HTTP; a
//! transfer that stops moving is given up. The file appears under its name only when its size and
//! SHA-256 are right. This room knows nothing of what it fetches.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::header::{HOST, LOCATION, USER_AGENT};
use hyper::{Request, Response, StatusCode, Uri};
use hyper_util::client::legacy::Error as ClientError;
use sha2::{Digest, Sha256};
use thiserror::Error;
use tokio::time::timeout;

use crate::http::{self, AGENT, HttpClient, MAX_REDIRECTS};
use crate::partial;
use crate::progress::{Progress, ProgressEvent};
use crate::publish::{parent, sync_directory};

const MAX_SIZE: u64 = 1 << 30;
const STALL: Duration = Duration::from_secs(30);
/// How often progress is told: every this many bytes.
const PROGRESS_STEP: u64 = 1 << 20;

/// What to fetch, and what it must be.
#[derive(Clone, Debug)]
pub struct Download<'a> {
    /// `https://…` or `http://…`.
    pub url: &'a str,
    /// SHA-256 of the content in hex; `None` where nobody has published one.
    pub sha256: Option<&'a str>,
    /// Its exact size, where known.
    pub size: Option<u64>,
    /// The most that is accepted in any case.
    pub max_size: u64,
    /// How long connecting, the answer, or the next bytes may take.
    pub stall: Duration,
}

impl<'a> Download<'a> {
    /// A download with this digest and the default limits.
    #[must_use]
    pub fn new(url: &'a str, sha256: &'a str) -> Self {
        Self {
            sha256: Some(sha256),
            ..Self::unpinned(url)
        }
    }

    /// A download of whatever is there: its caller decides what to make of the digest.
    #[must_use]
    pub fn unpinned(url: &'a str) -> Self {
        Self {
            url,
            sha256: None,
            size: None,
            max_size: MAX_SIZE,
            stall: STALL,
        }
    }
}

/// What was fetched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fetched {
    /// SHA-256 of the content in lower-case hex.
    pub sha256: String,
    /// Its size in bytes.
    pub size: u64,
}

/// Why a download failed.
#[derive(Debug, Error)]
pub enum DownloadError {
    /// The URL, or one it redirects to, cannot be used.
    #[error("{url} is not a URL that can be downloaded from: {problem}")]
    InvalidUrl {
        /// The URL.
        url: String,
        /// What is wrong.
        problem: &'static str,
    },
    /// No connection, no valid certificate, or no answer.
    #[error("cannot reach {url}: check the network, or give a mirror or a local file")]
    Connect {
        /// The URL.
        url: String,
        /// The cause.
        #[source]
        source: ClientError,
    },
    /// The server refused.
    #[error("{url} answered {status}: it may have moved; give another URL or a local file")]
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
    /// Nothing came for the whole deadline.
    #[error("{url} sent nothing for {seconds} s")]
    Stalled {
        /// The URL.
        url: String,
        /// The deadline.
        seconds: u64,
    },
    /// The connection broke in the middle.
    #[error("the transfer of {url} broke off after {received} bytes")]
    Interrupted {
        /// The URL.
        url: String,
        /// Bytes that had come.
        received: u64,
        /// The cause.
        #[source]
        source: hyper::Error,
    },
    /// Not as long as it must be.
    #[error("{url} has {received} bytes, not {expected}")]
    WrongSize {
        /// The URL.
        url: String,
        /// What came, or was announced, until it was clear.
        received: u64,
        /// What was expected: exactly, or at most.
        expected: u64,
    },
    /// Other bytes than were pinned.
    #[error("{url} is not the expected file: its SHA-256 is {found}, not {expected}")]
    WrongDigest {
        /// The URL.
        url: String,
        /// What came.
        found: String,
        /// What was expected.
        expected: String,
    },
    /// Nothing can be asked for on this thread.
    #[error("cannot start a download")]
    Runtime {
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The file cannot be written.
    #[error("cannot write {}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

/// Fetches a file and puts it at `target` when it is proven right.
///
/// # Errors
/// See [`DownloadError`]; `target` is then as it was.
pub async fn fetch(
    download: &Download<'_>,
    target: &Path,
    progress: &dyn Progress,
) -> Result<Fetched, DownloadError> {
    let url = parse(download.url)?;
    progress.report(ProgressEvent::Step(format!("Downloading {url}")));
    let response = follow(download, url).await?;
    let failed = |source| DownloadError::Write {
        path: target.to_owned(),
        source,
    };
    let directory = parent(target).map_err(failed)?;
    let mut file = partial::file_in(directory).map_err(failed)?;
    let fetched = receive(download, response, file.as_file_mut(), target, progress).await?;
    file.as_file().sync_all().map_err(failed)?;
    file.persist(target).map_err(|error| failed(error.error))?;
    sync_directory(directory).map_err(failed)?;
    Ok(fetched)
}

/// [`fetch`] for a blocking thread.
///
/// # Errors
/// See [`DownloadError`].
pub fn fetch_blocking(
    download: &Download<'_>,
    target: &Path,
    progress: &dyn Progress,
) -> Result<Fetched, DownloadError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|source| DownloadError::Write {
            path: target.to_owned(),
            source,
        })?;
    runtime.block_on(fetch(download, target, progress))
}

/// Where a URL redirects to; for a blocking thread.
///
/// # Errors
/// See [`DownloadError`]; [`DownloadError::Status`] where it does not redirect.
pub(crate) fn redirect_blocking(url: &str) -> Result<String, DownloadError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|source| DownloadError::Runtime { source })?;
    runtime.block_on(first_redirect(url, Download::unpinned(url).stall))
}

/// Fetches a short text of which nothing is known in advance, such as a published digest.
///
/// # Errors
/// See [`DownloadError`]; [`DownloadError::WrongSize`] when it is longer than `max_size`.
pub(crate) async fn fetch_text(
    url: &str,
    max_size: u64,
    stall: Duration,
) -> Result<String, DownloadError> {
    let download = Download {
        max_size,
        stall,
        ..Download::unpinned(url)
    };
    let response = follow(&download, parse(url)?).await?;
    let mut body = response.into_body();
    let mut text = Vec::new();
    while let Some(frame) = timeout(stall, body.frame())
        .await
        .map_err(|_| stalled(&download))?
    {
        let frame = frame.map_err(|source| DownloadError::Interrupted {
            url: url.to_owned(),
            received: text.len() as u64,
            source,
        })?;
        if let Ok(data) = frame.into_data() {
            text.extend_from_slice(&data);
        }
        if text.len() as u64 > max_size {
            return Err(DownloadError::WrongSize {
                url: url.to_owned(),
                received: text.len() as u64,
                expected: max_size,
            });
        }
    }
    Ok(String::from_utf8_lossy(&text).into_owned())
}

/// Where a URL redirects to, without going there.
///
/// # Errors
/// See [`DownloadError`]; [`DownloadError::Status`] when it does not redirect.
pub(crate) async fn first_redirect(url: &str, stall: Duration) -> Result<String, DownloadError> {
    let download = Download {
        stall,
        ..Download::unpinned(url)
    };
    let asked = parse(url)?;
    let response = ask(&http::client_without_reuse(stall), &download, &asked).await?;
    let status = response.status();
    if !status.is_redirection() {
        return Err(DownloadError::Status {
            url: url.to_owned(),
            status: status.as_u16(),
        });
    }
    let location = response.headers().get(LOCATION);
    let location = location.and_then(|value| value.to_str().ok());
    redirected(&asked, location.unwrap_or_default()).map(|target| target.to_string())
}

/// Asks for the URL and the ones it redirects to, until one answers with content.
async fn follow(
    download: &Download<'_>,
    mut url: Uri,
) -> Result<Response<Incoming>, DownloadError> {
    let client = http::client_without_reuse(download.stall);
    for _ in 0..=MAX_REDIRECTS {
        let response = ask(&client, download, &url).await?;
        let status = response.status();
        if status == StatusCode::OK {
            return Ok(response);
        }
        if !status.is_redirection() {
            return Err(DownloadError::Status {
                url: url.to_string(),
                status: status.as_u16(),
            });
        }
        let location = response
            .headers()
            .get(LOCATION)
            .and_then(|value| value.to_str().ok());
        url = redirected(&url, location.unwrap_or_default())?;
    }
    Err(DownloadError::TooManyRedirects {
        url: download.url.to_owned(),
    })
}

async fn ask(
    client: &HttpClient,
    download: &Download<'_>,
    url: &Uri,
) -> Result<Response<Incoming>, DownloadError> {
    let invalid = |problem| DownloadError::InvalidUrl {
        url: url.to_string(),
        problem,
    };
    let host = url.authority().ok_or_else(|| invalid("it has no host"))?;
    let request = Request::get(url.clone())
        .header(HOST, host.as_str())
        .header(USER_AGENT, AGENT)
        .body(Full::default())
        .map_err(|_| invalid("it cannot be asked for"))?;
    let answer = timeout(download.stall, client.request(request)).await;
    let answer = answer.map_err(|_| stalled(download))?;
    answer.map_err(|source| DownloadError::Connect {
        url: url.to_string(),
        source,
    })
}

fn redirected(from: &Uri, location: &str) -> Result<Uri, DownloadError> {
    http::redirected(from, location).map_err(|problem| DownloadError::InvalidUrl {
        url: from.to_string(),
        problem,
    })
}

fn parse(url: &str) -> Result<Uri, DownloadError> {
    http::parse_url(url).map_err(|problem| DownloadError::InvalidUrl {
        url: url.to_owned(),
        problem,
    })
}

/// Writes the body to `file`, checking size and digest on the way.
async fn receive(
    download: &Download<'_>,
    response: Response<Incoming>,
    file: &mut File,
    target: &Path,
    progress: &dyn Progress,
) -> Result<Fetched, DownloadError> {
    let url = || download.url.to_owned();
    let limit = download.size.unwrap_or(download.max_size);
    let wrong_size = |received| DownloadError::WrongSize {
        url: url(),
        received,
        expected: limit,
    };
    let mut body = response.into_body();
    let announced = hyper::body::Body::size_hint(&body).exact();
    if let Some(announced) = announced
        && (announced > limit || download.size.is_some_and(|size| size != announced))
    {
        return Err(wrong_size(announced));
    }
    let mut hasher = Sha256::new();
    let (mut received, mut told) = (0_u64, 0_u64);
    while let Some(frame) = timeout(download.stall, body.frame())
        .await
        .map_err(|_| stalled(download))?
    {
        let frame = frame.map_err(|source| DownloadError::Interrupted {
            url: url(),
            received,
            source,
        })?;
        let Ok(data) = frame.into_data() else {
            continue;
        };
        received += data.len() as u64;
        if received > limit {
            return Err(wrong_size(received));
        }
        hasher.update(&data);
        let written = file.write_all(&data);
        written.map_err(|source| DownloadError::Write {
            path: target.to_owned(),
            source,
        })?;
        if received - told >= PROGRESS_STEP {
            told = received;
            let total = download.size.or(announced);
            progress.report(ProgressEvent::Bytes {
                done: received,
                total,
            });
        }
    }
    if download.size.is_some_and(|size| size != received) {
        return Err(wrong_size(received));
    }
    let found = hex::encode(hasher.finalize());
    if let Some(expected) = download.sha256
        && !found.eq_ignore_ascii_case(expected)
    {
        return Err(DownloadError::WrongDigest {
            url: url(),
            found,
            expected: expected.to_owned(),
        });
    }
    Ok(Fetched {
        sha256: found,
        size: received,
    })
}

fn stalled(download: &Download<'_>) -> DownloadError {
    let seconds = download.stall.as_secs();
    DownloadError::Stalled {
        url: download.url.to_owned(),
        seconds,
    }
}
