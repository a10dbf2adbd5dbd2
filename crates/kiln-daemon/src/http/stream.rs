//! A client on a WebSocket: its request, what it is told, and how it ends.

use std::{sync::Arc, time::Duration};

use axum::extract::ws::{Message, WebSocket};
use futures_util::{
    SinkExt, StreamExt,
    stream::{SplitSink, SplitStream},
};
use kiln::{ExecSession, Progress, ProgressEvent};
use kiln_api::{
    ErrorReport, ExitStatus,
    stream::{BytesDone, ClientControl, ProgressStep, ServerControl},
};
use serde::de::DeserializeOwned;
use tokio::{sync::mpsc, time::timeout};

use super::{Connection, error::ApiError, extract::parse, pump::pump};

pub(super) type Sink = SplitSink<WebSocket, Message>;
pub(super) type Source = SplitStream<WebSocket>;

/// How long a client may take to say what it wants, once the stream stands.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a client may take to read the last words.
const FAREWELL_TIMEOUT: Duration = Duration::from_secs(5);
/// Progress a client may be behind; more is dropped, since newer progress says more.
const PROGRESS_BACKLOG: usize = 64;

/// A client's stream.
#[derive(Debug)]
pub(crate) struct Stream {
    sink: Sink,
    source: Source,
    connection: Connection,
}

/// Why a stream ends.
#[derive(Debug)]
pub(crate) enum End {
    /// The command ended.
    Exited(ExitStatus),
    /// The client said that it leaves.
    Detached,
    /// The client is no more.
    Gone,
    /// It failed, or the client broke the contract.
    Failed(ApiError),
}

impl Stream {
    pub(crate) fn new(socket: WebSocket, connection: Connection) -> Self {
        let (sink, source) = socket.split();
        Self {
            sink,
            source,
            connection,
        }
    }

    /// The client's first message.
    pub(crate) async fn request<T: DeserializeOwned>(&mut self) -> Result<T, End> {
        match timeout(REQUEST_TIMEOUT, self.source.next()).await {
            Err(_) => Err(End::Failed(ApiError::invalid(
                "the request did not come in time",
            ))),
            Ok(Some(Ok(Message::Text(text)))) => parse(text.as_bytes()).map_err(End::Failed),
            Ok(Some(Ok(Message::Binary(_)))) => Err(End::Failed(ApiError::invalid(
                "the first message is not a request",
            ))),
            Ok(_) => Err(End::Gone),
        }
    }

    /// Says something.
    pub(crate) async fn say(&mut self, control: &ServerControl) -> Result<(), End> {
        say(&mut self.sink, control).await
    }

    /// Waits for work to finish and passes on its progress. Leaves it alone, to go on by itself,
    /// when the client is gone or the daemon ends.
    pub(crate) async fn watch<T>(
        &mut self,
        work: impl Future<Output = Result<T, kiln::Error>>,
        mut progress: mpsc::Receiver<ProgressEvent>,
    ) -> Result<T, End> {
        let mut work = std::pin::pin!(work);
        let result = loop {
            tokio::select! {
                biased;
                Some(event) = progress.recv() => self.say(&progress_control(event)).await?,
                result = &mut work => break result,
                end = leaves(&mut self.source) => return Err(end),
                end = cut_off(&self.connection) => return Err(end),
            }
        };
        while let Ok(event) = progress.try_recv() {
            self.say(&progress_control(event)).await?;
        }
        result.map_err(|error| End::Failed(error.into()))
    }

    /// Connects the client with a session until one of them ends.
    pub(crate) async fn connect(&mut self, session: ExecSession) -> End {
        let ExecSession { input, output, .. } = session;
        tokio::select! {
            end = pump(&mut self.source, &mut self.sink, input, output) => end,
            end = cut_off(&self.connection) => end,
        }
    }

    /// Says the last words and closes.
    pub(crate) async fn end(mut self, last: Option<ServerControl>) {
        let farewell = async {
            if let Some(last) = last {
                say(&mut self.sink, &last).await?;
            }
            self.sink.close().await.map_err(|_| End::Gone)
        };
        if !matches!(timeout(FAREWELL_TIMEOUT, farewell).await, Ok(Ok(()))) {
            tracing::debug!("a client left before the last words");
        }
    }

    /// Tells the end, then closes.
    pub(crate) async fn end_with(self, end: End) {
        let last = match end {
            End::Failed(error) => Some(ServerControl::Error(error.report)),
            End::Exited(status) => Some(ServerControl::Exited(status)),
            End::Detached | End::Gone => None,
        };
        self.end(last).await;
    }
}

/// Collects the progress of work, for [`Stream::watch`].
pub(crate) fn progress() -> (Arc<dyn Progress>, mpsc::Receiver<ProgressEvent>) {
    let (sender, receiver) = mpsc::channel(PROGRESS_BACKLOG);
    (Arc::new(Reporter(sender)), receiver)
}

#[derive(Debug)]
struct Reporter(mpsc::Sender<ProgressEvent>);

impl Progress for Reporter {
    fn report(&self, event: ProgressEvent) {
        // Must not block; a client that is so far behind misses nothing it could still show.
        drop(self.0.try_send(event));
    }
}

fn progress_control(event: ProgressEvent) -> ServerControl {
    let mut step = ProgressStep::default();
    match event {
        ProgressEvent::Step(name) => step.step = Some(name),
        ProgressEvent::Bytes { done, total } => step.bytes = Some(BytesDone { done, total }),
        ProgressEvent::Note(note) => step.note = Some(note),
    }
    ServerControl::Progress(step)
}

/// The end that comes from the daemon's own. Cancel-safe.
async fn cut_off(connection: &Connection) -> End {
    connection.lifetime().stopping().await;
    End::Failed(ApiError::stopping())
}

/// Waits for the client to leave while nothing runs that it could talk to. Cancel-safe.
async fn leaves(source: &mut Source) -> End {
    loop {
        match source.next().await {
            // A new size, a signal: there is nobody yet to pass it to.
            Some(Ok(Message::Text(text))) => {
                if let Ok(ClientControl::Detach {}) = ClientControl::parse(&text) {
                    return End::Detached;
                }
            }
            Some(Ok(Message::Binary(_))) => {
                return End::Failed(ApiError::invalid("input came before the command started"));
            }
            Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
            Some(Ok(Message::Close(_)) | Err(_)) | None => return End::Gone,
        }
    }
}

pub(super) async fn say(sink: &mut Sink, control: &ServerControl) -> Result<(), End> {
    let text = serde_json::to_string(control).map_err(|error| {
        End::Failed(ApiError::internal(format!(
            "a message cannot be encoded: {error}"
        )))
    })?;
    sink.send(Message::text(text)).await.map_err(|_| End::Gone)
}

/// A failure in the words of a stream's client.
pub(crate) fn report(error: kiln::Error) -> ErrorReport {
    ApiError::from(error).report
}
