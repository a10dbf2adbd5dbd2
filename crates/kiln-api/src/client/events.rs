//! What happens on a host.

use std::marker::PhantomData;

use hyper::Method;
use serde::de::DeserializeOwned;

use super::{Client, ClientError, LogStream, connection};
use crate::{CollectGarbage, Event, Kernel, Leftover};

/// Longest line of the stream that is taken: an event is far shorter.
const MAX_LINE: usize = 64 * 1024;

/// Events as they come, of a host or of a sandbox's files. Dropping it ends the request.
#[derive(Debug)]
pub struct EventStream<T = Event> {
    body: LogStream,
    rest: Vec<u8>,
    events: PhantomData<T>,
}

impl<T: DeserializeOwned> EventStream<T> {
    pub(super) fn new(body: LogStream) -> Self {
        Self {
            body,
            rest: Vec::new(),
            events: PhantomData,
        }
    }

    /// The next event, `None` at the end. Cancel-safe.
    ///
    /// # Errors
    /// When the connection breaks, or what comes is no event.
    pub async fn next(&mut self) -> Result<Option<T>, ClientError> {
        loop {
            while let Some(end) = self.rest.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.rest.drain(..=end).collect();
                // Only data lines say more than the data does.
                let Some(json) = line.strip_prefix(b"data: ") else {
                    continue;
                };
                let event = serde_json::from_slice(json.trim_ascii_end());
                return event.map(Some).map_err(|source| ClientError::Answer {
                    what: "an event of another shape".to_owned(),
                    source: Some(Box::new(source)),
                });
            }
            if self.rest.len() > MAX_LINE {
                return Err(ClientError::answer("an event without end"));
            }
            match self.body.next().await? {
                Some(bytes) => self.rest.extend_from_slice(&bytes),
                None => return Ok(None),
            }
        }
    }
}

impl Client {
    /// What has happened since the event of this number, as far as it is kept; with `follow` also
    /// what comes.
    ///
    /// # Errors
    /// [`ClientError::Refused`] with the daemon's reason, or why it could not be asked.
    pub async fn events(&self, since: u64, follow: bool) -> Result<EventStream, ClientError> {
        let path = format!("/v1/events?since={since}&follow={follow}");
        let answer = self.send(Method::GET, &path, None).await?;
        let answer = connection::accepted(answer).await?;
        Ok(EventStream::new(LogStream::new(answer)))
    }

    /// Finds what nobody owns, and unless it is a dry run removes it.
    ///
    /// # Errors
    /// [`ClientError::Refused`] with the daemon's reason, or why it could not be asked.
    pub async fn collect_garbage(
        &self,
        request: CollectGarbage,
    ) -> Result<Vec<Leftover>, ClientError> {
        let body = Some(connection::body(&request)?);
        self.json(Method::POST, "/v1/gc", body).await
    }

    /// The guest kernels on the host.
    ///
    /// # Errors
    /// [`ClientError::Refused`] with the daemon's reason, or why it could not be asked.
    pub async fn kernels(&self) -> Result<Vec<Kernel>, ClientError> {
        self.json(Method::GET, "/v1/kernels", None).await
    }

    /// Figures of the host in the text format of Prometheus.
    ///
    /// # Errors
    /// [`ClientError::Refused`] with the daemon's reason, or why it could not be asked.
    pub async fn metrics(&self) -> Result<String, ClientError> {
        let answer = self.send(Method::GET, "/v1/metrics", None).await?;
        let mut body = LogStream::new(connection::accepted(answer).await?);
        let mut text = Vec::new();
        while let Some(bytes) = body.next().await? {
            text.extend_from_slice(&bytes);
        }
        String::from_utf8(text).map_err(|_| ClientError::answer("metrics that are no text"))
    }
}
