//! A client of Firecracker's API socket.
//!
//! One connection, one request at a time: Firecracker serves strictly in order, and its ten
//! connections are all there is. A deadline that passes, or a call that is dropped before its
//! answer, leaves the connection in the middle of an exchange and Firecracker's state unknown:
//! the client is of no use then and says so; close the machine.

use std::io::{Error, ErrorKind};
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::header::{ACCEPT, CONTENT_LENGTH, CONTENT_TYPE, HOST};
use hyper::{Method, Request as HttpRequest, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::net::UnixStream;
use tokio::sync::Mutex;
use tokio::task::AbortHandle;
use tokio::time::timeout;

use super::config::{FirecrackerVersion, Request, Verb};
use super::ready::SocketWatch;
use super::version::{Feature, Version};

/// What is longer is refused by Firecracker, which then takes the rest for further requests.
pub const MAX_REQUEST_BYTES: usize = 51_200;
/// More than any answer; a broken server must not fill memory.
const MAX_ANSWER_BYTES: usize = 1024 * 1024;

/// Why a call has no answer.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// Firecracker refused.
    #[error("Firecracker answered {status}: {message}")]
    Refused {
        /// HTTP status.
        status: u16,
        /// Its own words.
        message: String,
    },
    /// No answer in time.
    #[error("no answer within {0:?}")]
    Deadline(Duration),
    /// The request is longer than Firecracker takes; nothing was sent.
    #[error("a request of {0} bytes; Firecracker takes {MAX_REQUEST_BYTES}")]
    TooLong(usize),
    /// This version of Firecracker does not know it; nothing was sent.
    #[error("Firecracker {version} does not know {feature:?}")]
    NotInVersion {
        /// What was asked for.
        feature: Feature,
        /// The version.
        version: Version,
    },
    /// The answer is not what the documentation says.
    #[error("an answer that cannot be understood")]
    Answer(#[source] serde_json::Error),
    /// The connection broke, or an earlier call broke it.
    #[error("the API connection broke")]
    Broken(#[source] Error),
}

/// A connection to one Firecracker.
#[derive(Debug)]
pub struct Client {
    /// `None` after a call without a whole answer.
    connection: Mutex<Option<Connection>>,
    /// What requests are held against.
    version: Option<Version>,
}

/// An answer as it came.
#[derive(Clone, Debug, PartialEq)]
pub struct RawAnswer {
    /// HTTP status.
    pub status: u16,
    /// The body: null when there is none, a string when it is no JSON.
    pub body: Value,
}

#[derive(Debug)]
struct Connection {
    sender: SendRequest<Full<Bytes>>,
    driver: AbortHandle,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl Client {
    /// Connects to the socket at `path`.
    ///
    /// # Errors
    /// Nobody listens there.
    pub async fn connect(path: &Path) -> Result<Self, Error> {
        Self::over(UnixStream::connect(path).await?).await
    }

    /// Waits for a Firecracker that is being started: connects as soon as its socket is there, and
    /// asks for its version until it answers. Requests are held against that version.
    ///
    /// # Errors
    /// [`ApiError::Deadline`] when it is not there by then; an answer that is none.
    pub async fn when_ready(path: &Path, deadline: Duration) -> Result<Self, ApiError> {
        let ready = async {
            let watch = SocketWatch::new(path.to_owned()).map_err(ApiError::Broken)?;
            let stream = watch.connect().await.map_err(ApiError::Broken)?;
            let client = Self::over(stream).await.map_err(ApiError::Broken)?;
            let told: FirecrackerVersion = client.get("/version", deadline).await?;
            let version = told
                .firecracker_version
                .parse()
                .map_err(|error| ApiError::Broken(Error::new(ErrorKind::InvalidData, error)))?;
            Ok(client.for_version(version))
        };
        timeout(deadline, ready)
            .await
            .unwrap_or(Err(ApiError::Deadline(deadline)))
    }

    /// Talks over a connected socket.
    ///
    /// # Errors
    /// The connection broke already.
    pub async fn over(stream: UnixStream) -> Result<Self, Error> {
        let (sender, connection) = handshake(TokioIo::new(stream)).await.map_err(broken_io)?;
        let driver = tokio::spawn(async move {
            // Its errors reach whoever waits for an answer.
            let _ = connection.await;
        });
        Ok(Self {
            connection: Mutex::new(Some(Connection {
                sender,
                driver: driver.abort_handle(),
            })),
            version: None,
        })
    }

    /// Holds typed requests against `version` before they are sent.
    #[must_use]
    pub fn for_version(mut self, version: Version) -> Self {
        self.version = Some(version);
        self
    }

    /// The version that requests are held against.
    #[must_use]
    pub fn version(&self) -> Option<Version> {
        self.version
    }

    /// Sends a typed request, within its own deadline.
    ///
    /// # Errors
    /// As [`ApiError`] says; [`ApiError::NotInVersion`] before anything is sent.
    pub async fn send<R: Request>(&self, request: &R) -> Result<(), ApiError> {
        self.send_within(request, request.deadline()).await
    }

    /// Sends a typed request with another deadline.
    ///
    /// # Errors
    /// As [`Client::send`].
    pub async fn send_within<R: Request>(
        &self,
        request: &R,
        deadline: Duration,
    ) -> Result<(), ApiError> {
        if let Some(version) = self.version
            && let Some(feature) = request.needs().into_iter().find(|one| !one.is_in(version))
        {
            return Err(ApiError::NotInVersion { feature, version });
        }
        let path = request.path();
        let method = match request.verb() {
            Verb::Put => Method::PUT,
            Verb::Patch => Method::PATCH,
            // Has no body.
            Verb::Delete => {
                let answer = self.request(Method::DELETE, &path, None, deadline);
                return answer.await.map(drop);
            }
        };
        self.send_body(method, &path, request, deadline).await
    }

    /// `GET` of what has no type here yet; an answer of Firecracker's is one whatever its status.
    ///
    /// # Errors
    /// There is no answer.
    pub async fn get_raw(&self, path: &str, deadline: Duration) -> Result<RawAnswer, ApiError> {
        self.raw(Method::GET, path, None, deadline).await
    }

    /// `PUT` of what has no type here yet; as [`Client::get_raw`].
    ///
    /// # Errors
    /// There is no answer.
    pub async fn put_raw(
        &self,
        path: &str,
        body: &Value,
        deadline: Duration,
    ) -> Result<RawAnswer, ApiError> {
        self.raw(Method::PUT, path, Some(body), deadline).await
    }

    /// `PATCH` of what has no type here yet; as [`Client::get_raw`].
    ///
    /// # Errors
    /// There is no answer.
    pub async fn patch_raw(
        &self,
        path: &str,
        body: &Value,
        deadline: Duration,
    ) -> Result<RawAnswer, ApiError> {
        self.raw(Method::PATCH, path, Some(body), deadline).await
    }

    async fn raw(
        &self,
        method: Method,
        path: &str,
        body: Option<&Value>,
        deadline: Duration,
    ) -> Result<RawAnswer, ApiError> {
        let body = body.map(to_body).transpose()?;
        let (status, body) = self.exchange(method, path, body, deadline).await?;
        let body = match serde_json::from_slice(&body) {
            Ok(value) => value,
            Err(_) if body.is_empty() => Value::Null,
            Err(_) => Value::String(String::from_utf8_lossy(&body).into_owned()),
        };
        Ok(RawAnswer {
            status: status.as_u16(),
            body,
        })
    }

    /// Reads a resource.
    ///
    /// # Errors
    /// As [`ApiError`] says.
    pub async fn get<T: DeserializeOwned>(
        &self,
        path: &str,
        deadline: Duration,
    ) -> Result<T, ApiError> {
        let body = self.request(Method::GET, path, None, deadline).await?;
        serde_json::from_slice(&body).map_err(ApiError::Answer)
    }

    async fn send_body<T: Serialize + Sync>(
        &self,
        method: Method,
        path: &str,
        body: &T,
        deadline: Duration,
    ) -> Result<(), ApiError> {
        let body = to_body(body)?;
        self.request(method, path, Some(body), deadline)
            .await
            .map(drop)
    }

    async fn request(
        &self,
        method: Method,
        path: &str,
        body: Option<Vec<u8>>,
        deadline: Duration,
    ) -> Result<Bytes, ApiError> {
        let (status, body) = self.exchange(method, path, body, deadline).await?;
        if status.is_success() {
            Ok(body)
        } else {
            Err(ApiError::Refused {
                status: status.as_u16(),
                message: refusal(&body),
            })
        }
    }

    async fn exchange(
        &self,
        method: Method,
        path: &str,
        body: Option<Vec<u8>>,
        deadline: Duration,
    ) -> Result<(StatusCode, Bytes), ApiError> {
        let request = build(method, path, body)?;
        let exchange = async {
            let mut slot = self.connection.lock().await;
            // Taken out, and put back only behind a whole answer: whatever ends this early, an
            // error, the deadline, a caller who leaves, ends the connection too.
            let mut connection = slot.take().ok_or_else(given_up)?;
            let answer = exchange(&mut connection.sender, request).await?;
            *slot = Some(connection);
            Ok(answer)
        };
        timeout(deadline, exchange)
            .await
            .unwrap_or(Err(ApiError::Deadline(deadline)))
    }
}

fn to_body<T: Serialize>(body: &T) -> Result<Vec<u8>, ApiError> {
    let body = serde_json::to_vec(body).map_err(ApiError::Answer)?;
    if body.len() > MAX_REQUEST_BYTES {
        return Err(ApiError::TooLong(body.len()));
    }
    Ok(body)
}

fn build(
    method: Method,
    path: &str,
    body: Option<Vec<u8>>,
) -> Result<HttpRequest<Full<Bytes>>, ApiError> {
    let mut request = HttpRequest::builder()
        .method(method)
        .uri(path)
        .header(HOST, "localhost")
        .header(ACCEPT, "application/json");
    if let Some(body) = &body {
        request = request
            .header(CONTENT_TYPE, "application/json")
            // Firecracker refuses chunked bodies.
            .header(CONTENT_LENGTH, body.len());
    }
    request
        .body(Full::from(body.unwrap_or_default()))
        .map_err(|error| ApiError::Broken(Error::new(ErrorKind::InvalidInput, error)))
}

async fn exchange(
    sender: &mut SendRequest<Full<Bytes>>,
    request: HttpRequest<Full<Bytes>>,
) -> Result<(StatusCode, Bytes), ApiError> {
    let response: Response<Incoming> = async {
        sender.ready().await?;
        sender.send_request(request).await
    }
    .await
    .map_err(|error| ApiError::Broken(broken_io(error)))?;
    let status = response.status();
    let body = Limited::new(response.into_body(), MAX_ANSWER_BYTES)
        .collect()
        .await
        .map_err(|error| ApiError::Broken(Error::new(ErrorKind::ConnectionAborted, error)))?
        .to_bytes();
    Ok((status, body))
}

/// The reason in an error body: refused calls carry `fault_message`, refused HTTP `error`, and
/// anything else is shown as it is.
#[must_use]
pub fn refusal(body: &[u8]) -> String {
    const LONGEST: usize = 4096;
    let words = serde_json::from_slice::<Value>(body)
        .ok()
        .and_then(|value| {
            ["fault_message", "error"]
                .iter()
                .find_map(|key| value.get(key)?.as_str().map(str::to_owned))
        })
        .unwrap_or_else(|| String::from_utf8_lossy(body).into_owned());
    words.trim().chars().take(LONGEST).collect()
}

fn given_up() -> ApiError {
    ApiError::Broken(Error::new(
        ErrorKind::NotConnected,
        "an earlier call was given up",
    ))
}

fn broken_io(error: hyper::Error) -> Error {
    Error::new(ErrorKind::ConnectionAborted, error)
}

#[cfg(test)]
mod tests;
