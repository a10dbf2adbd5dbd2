//! One request on one connection.

use std::convert::Infallible;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited, combinators::UnsyncBoxBody};
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Body, Incoming},
    header::{self, HeaderValue},
    http::request,
};
use hyper_util::rt::TokioIo;
use serde::{Serialize, de::DeserializeOwned};
use tokio_tungstenite::tungstenite::handshake::{client::generate_key, derive_accept_key};

use super::{ClientError, endpoint::Endpoint};
use crate::{ErrorBody, TREE_TYPE, VERSION_HEADER};

/// Largest answer that is read whole: thousands of sandboxes fit.
const MAX_ANSWER: usize = 64 * 1024 * 1024;

pub(super) type Upgraded = TokioIo<hyper::upgrade::Upgraded>;
pub(super) type Answer = Response<Incoming>;

pub(super) fn body<T: Serialize>(request: &T) -> Result<Vec<u8>, ClientError> {
    serde_json::to_vec(request).map_err(ClientError::Encode)
}

pub(super) async fn send(
    endpoint: &Endpoint,
    version: Option<&str>,
    method: Method,
    path: &str,
    body: Option<Vec<u8>>,
    headers: &[(&str, &str)],
) -> Result<Answer, ClientError> {
    let mut builder = request(endpoint, version, method, path);
    for (name, value) in headers {
        builder = builder.header(*name, *value);
    }
    if body.is_some() {
        builder = builder.header(header::CONTENT_TYPE, "application/json");
    }
    let body = Full::<Bytes>::from(body.unwrap_or_default());
    exchange(endpoint, builder, body).await
}

/// As [`send`], with a body that comes as it is read.
pub(super) async fn send_stream(
    endpoint: &Endpoint,
    version: Option<&str>,
    method: Method,
    path: &str,
    body: UnsyncBoxBody<Bytes, Infallible>,
) -> Result<Answer, ClientError> {
    let builder = request(endpoint, version, method, path).header(header::CONTENT_TYPE, TREE_TYPE);
    exchange(endpoint, builder, body).await
}

/// Turns a connection into a WebSocket's.
pub(super) async fn upgrade(
    endpoint: &Endpoint,
    version: Option<&str>,
    path: &str,
) -> Result<Upgraded, ClientError> {
    let key = generate_key();
    let builder = request(endpoint, version, Method::GET, path)
        .header(header::CONNECTION, "upgrade")
        .header(header::UPGRADE, "websocket")
        .header(header::SEC_WEBSOCKET_VERSION, "13")
        .header(header::SEC_WEBSOCKET_KEY, &key);
    let response = exchange(endpoint, builder, Full::<Bytes>::default()).await?;
    let response = switched(response).await?;
    let accepts = response.headers().get(header::SEC_WEBSOCKET_ACCEPT);
    if accepts.map(HeaderValue::as_bytes) != Some(derive_accept_key(key.as_bytes()).as_bytes()) {
        return Err(ClientError::answer(
            "a stream that is not the one asked for",
        ));
    }
    take(response).await
}

/// Turns a connection into one that speaks `protocol`.
pub(super) async fn upgrade_to(
    endpoint: &Endpoint,
    version: Option<&str>,
    path: &str,
    protocol: &str,
) -> Result<Upgraded, ClientError> {
    let builder = request(endpoint, version, Method::GET, path)
        .header(header::CONNECTION, "upgrade")
        .header(header::UPGRADE, protocol);
    take(switched(exchange(endpoint, builder, Full::<Bytes>::default()).await?).await?).await
}

async fn switched(response: Answer) -> Result<Answer, ClientError> {
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        return Ok(response);
    }
    let status = accepted(response).await?.status();
    Err(ClientError::answer(format!(
        "status {status} instead of a stream"
    )))
}

async fn take(response: Answer) -> Result<Upgraded, ClientError> {
    hyper::upgrade::on(response)
        .await
        .map(TokioIo::new)
        .map_err(ClientError::lost)
}

async fn exchange<B>(
    endpoint: &Endpoint,
    builder: request::Builder,
    body: B,
) -> Result<Answer, ClientError>
where
    B: Body<Data = Bytes, Error = Infallible> + Send + 'static,
{
    // A user's text is in the path at most, and is escaped there.
    let request = builder
        .body(body)
        .map_err(|_| ClientError::answer("the request has no valid form in HTTP"))?;
    let stream = TokioIo::new(endpoint.connect().await?);
    let (mut sender, connection) = hyper::client::conn::http1::handshake(stream)
        .await
        .map_err(ClientError::lost)?;
    // Ends by itself with the connection; its error is also the request's.
    tokio::spawn(connection.with_upgrades());
    sender
        .send_request(request)
        .await
        .map_err(ClientError::lost)
}

fn request(
    endpoint: &Endpoint,
    version: Option<&str>,
    method: Method,
    path: &str,
) -> request::Builder {
    let mut builder = Request::builder()
        .method(method)
        .uri(path)
        .header(header::HOST, "kiln");
    if let Some(token) = endpoint.token() {
        builder = builder.header(header::AUTHORIZATION, format!("Bearer {token}"));
    }
    match version {
        Some(version) => builder.header(VERSION_HEADER, version),
        None => builder,
    }
}

/// The answer if it is a good one, else the refusal it carries.
pub(super) async fn accepted(response: Answer) -> Result<Answer, ClientError> {
    if response.status().is_success() {
        return Ok(response);
    }
    let status = response.status();
    Err(refusal(status, &read(response).await?))
}

/// A refusal from its status and body.
pub(super) fn refusal(status: StatusCode, body: &[u8]) -> ClientError {
    match serde_json::from_slice::<ErrorBody>(body) {
        Ok(body) => ClientError::Refused {
            status: Some(status),
            report: body.error,
        },
        Err(_) => ClientError::answer(format!("status {status} without the reason")),
    }
}

pub(super) async fn read_json<T: DeserializeOwned>(response: Answer) -> Result<T, ClientError> {
    serde_json::from_slice(&read(response).await?).map_err(|source| ClientError::Answer {
        what: "JSON of another shape".to_owned(),
        source: Some(Box::new(source)),
    })
}

async fn read(response: Answer) -> Result<Bytes, ClientError> {
    Limited::new(response.into_body(), MAX_ANSWER)
        .collect()
        .await
        .map(http_body_util::Collected::to_bytes)
        .map_err(|source| ClientError::Lost(Some(source)))
}
