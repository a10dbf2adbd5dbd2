//! What happens on the host, as server-sent events.

use std::collections::VecDeque;

use axum::{
    Extension,
    body::Body,
    extract::State,
    http::header,
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use futures_util::stream;
use kiln::Event;
use serde::Deserialize;
use tokio::sync::broadcast;

use super::App;
use crate::http::{Connection, error::ApiError, extract::Options};

/// Which events are wanted.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct EventOptions {
    #[serde(default)]
    since: u64,
    #[serde(default)]
    follow: bool,
}

pub(super) async fn read(
    State(app): State<App>,
    Extension(connection): Extension<Connection>,
    Options(options): Options<EventOptions>,
) -> Result<Response, ApiError> {
    let (past, coming) = app.host.events_since(options.since);
    let source = Source {
        past: past.into(),
        coming: options.follow.then_some(coming),
        connection,
    };
    let body = Body::from_stream(stream::unfold(source, Source::next));
    Ok(([(header::CONTENT_TYPE, "text/event-stream")], body).into_response())
}

struct Source {
    past: VecDeque<Event>,
    coming: Option<broadcast::Receiver<Event>>,
    connection: Connection,
}

impl Source {
    /// The next event in bytes; the end with the daemon's.
    async fn next(mut self) -> Option<(Result<Bytes, std::convert::Infallible>, Self)> {
        let event = match self.past.pop_front() {
            Some(event) => event,
            None => {
                let coming = self.coming.as_mut()?;
                tokio::select! {
                    event = next_of(coming) => event?,
                    () = self.connection.lifetime().stopping() => return None,
                }
            }
        };
        Some((Ok(bytes(&event)), self))
    }
}

/// Who falls behind misses some, and sees it by their numbers.
async fn next_of(coming: &mut broadcast::Receiver<Event>) -> Option<Event> {
    loop {
        match coming.recv().await {
            Ok(event) => return Some(event),
            Err(broadcast::error::RecvError::Lagged(_)) => {}
            Err(broadcast::error::RecvError::Closed) => return None,
        }
    }
}

fn bytes(event: &Event) -> Bytes {
    // Without a line break: JSON has none of its own.
    let json = serde_json::to_string(event).unwrap_or_default();
    let (number, kind) = (event.number, event.kind.as_str());
    format!("id: {number}\nevent: {kind}\ndata: {json}\n\n").into()
}
