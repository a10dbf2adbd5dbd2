//! A console as it comes.

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::Incoming;

use super::{ClientError, connection::Answer};

/// Bytes of a guest's console. Dropping it ends the request.
#[derive(Debug)]
pub struct LogStream {
    body: Incoming,
}

impl LogStream {
    pub(super) fn new(answer: Answer) -> Self {
        Self {
            body: answer.into_body(),
        }
    }

    /// The next bytes, `None` at the end. Cancel-safe.
    ///
    /// # Errors
    /// When the connection breaks before the end.
    pub async fn next(&mut self) -> Result<Option<Bytes>, ClientError> {
        while let Some(frame) = self.body.frame().await {
            if let Ok(bytes) = frame.map_err(ClientError::lost)?.into_data() {
                return Ok(Some(bytes));
            }
        }
        Ok(None)
    }
}
