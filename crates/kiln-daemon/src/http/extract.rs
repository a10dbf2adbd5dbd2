//! What is taken from a request, bounded, with refusals in the contract's words.

use std::time::Duration;

use axum::{
    extract::{FromRequest, FromRequestParts, Path, Query, Request, WebSocketUpgrade},
    http::request::Parts,
};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use kiln_api::stream::{MAX_REQUEST, READ_BUFFER, WRITE_BUFFER};
use serde::de::DeserializeOwned;
use tokio::time::timeout;

use super::error::ApiError;

/// How long a client may take to send a body.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);

/// The body as JSON; an empty one as `{}`.
#[derive(Debug)]
pub(crate) struct Body<T>(pub(crate) T);

impl<S: Sync, T: DeserializeOwned> FromRequest<S> for Body<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, _: &S) -> Result<Self, ApiError> {
        let reading = Limited::new(request.into_body(), MAX_REQUEST).collect();
        let read = timeout(BODY_TIMEOUT, reading)
            .await
            .map_err(|_| ApiError::invalid("the request's body did not come in time"))?;
        let bytes = match read {
            Ok(body) => body.to_bytes(),
            Err(error) if error.is::<LengthLimitError>() => {
                return Err(ApiError::too_large(MAX_REQUEST));
            }
            Err(_) => return Err(ApiError::invalid("the request's body is not whole")),
        };
        let json: &[u8] = if bytes.is_empty() { b"{}" } else { &bytes };
        parse(json).map(Self)
    }
}

/// JSON of a request, which is an object.
pub(crate) fn parse<T: DeserializeOwned>(json: &[u8]) -> Result<T, ApiError> {
    // serde would take an array as well, for the fields in their order.
    if json.trim_ascii_start().first() != Some(&b'{') {
        return Err(ApiError::invalid("the request is not a JSON object"));
    }
    serde_json::from_slice(json)
        .map_err(|error| ApiError::invalid(format!("the request is not understood: {error}")))
}

/// What the path names.
#[derive(Debug)]
pub(crate) struct Named<T>(pub(crate) T);

impl<S: Send + Sync, T: DeserializeOwned + Send> FromRequestParts<S> for Named<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let path = Path::<T>::from_request_parts(parts, state).await;
        path.map(|Path(named)| Self(named))
            .map_err(|error| ApiError::invalid(format!("the path is not understood: {error}")))
    }
}

/// What the query string says.
#[derive(Debug)]
pub(crate) struct Options<T>(pub(crate) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Options<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let query = Query::<T>::from_request_parts(parts, state).await;
        query.map(|Query(options)| Self(options)).map_err(|error| {
            ApiError::invalid(format!(
                "the query is not understood: {}",
                error.body_text()
            ))
        })
    }
}

/// A stream about to begin, with bounded buffers.
#[derive(Debug)]
pub(crate) struct Upgrade(pub(crate) WebSocketUpgrade);

impl<S: Send + Sync> FromRequestParts<S> for Upgrade {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let upgrade = WebSocketUpgrade::from_request_parts(parts, state)
            .await
            .map_err(|error| ApiError::invalid(error.body_text()))?;
        let upgrade = upgrade
            .read_buffer_size(READ_BUFFER)
            .write_buffer_size(WRITE_BUFFER)
            // Room above the buffer for what is written at once: one message, one pong.
            .max_write_buffer_size(4 * WRITE_BUFFER)
            .max_message_size(MAX_REQUEST)
            .max_frame_size(MAX_REQUEST);
        Ok(Self(upgrade))
    }
}
