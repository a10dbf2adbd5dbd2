//! The task that keeps a connection to the agent: meets it, greets it, drives the multiplexer,
//! and begins anew after every break.

use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use kiln_agent_proto::message::{
    Event, PowerMode, PowerSource, Request, Subscribe, event, reply, request,
};
use tokio::sync::{broadcast, watch};
use tokio::time::{sleep, timeout};
use tokio_util::task::AbortOnDropHandle;
use tracing::debug;

use super::connection::{Driver, Operation, Streams, multiplex};
use super::error::{ConnectionError, GuestError};
use super::meet::{Meeting, Stream};
use super::{AgentInfo, GuestEvent, GuestIdentity, IntentSource, PowerIntent};

/// Between two attempts: so long after a connection, doubling up to the other after failures.
const FIRST_PAUSE: Duration = Duration::from_millis(2);
const LONGEST_PAUSE: Duration = Duration::from_millis(100);
/// An agent that shook hands but does not answer the hello is left, for a new handshake.
const HELLO_PATIENCE: Duration = Duration::from_secs(10);

/// What is known of the connection.
#[derive(Clone, Debug)]
pub(super) enum LinkState {
    /// There is none: why.
    Down(Arc<str>),
    /// There is one.
    Up(Up),
    /// There will be none.
    Failed(GuestError),
}

/// A connection that stands.
#[derive(Clone, Debug)]
pub(super) struct Up {
    pub(super) streams: Streams,
    pub(super) info: Arc<AgentInfo>,
    /// Counts connections.
    pub(super) epoch: u64,
}

/// Keeps the link until it is dropped.
pub(super) struct Keeper {
    pub(super) identity: GuestIdentity,
    pub(super) state: watch::Sender<LinkState>,
    pub(super) events: broadcast::Sender<GuestEvent>,
    pub(super) intent: watch::Sender<Option<PowerIntent>>,
}

impl Keeper {
    /// Runs until the agent turns out to be no use at all.
    pub(super) async fn run(self, mut meeting: Meeting) {
        let mut pause = FIRST_PAUSE;
        let mut epoch = 0;
        loop {
            let was_up = epoch;
            let end = self.connection(&mut meeting, &mut epoch).await;
            let reason: Arc<str> = chain(&end).into();
            if let ConnectionError::Hello(error @ GuestError::Version(_)) = end {
                self.state.send_replace(LinkState::Failed(error));
                return;
            }
            if epoch > was_up {
                debug!(%reason, "the connection to the agent ended");
                let _ = self.events.send(GuestEvent::Down(Arc::clone(&reason)));
            }
            self.state.send_replace(LinkState::Down(reason));
            pause = if epoch > was_up {
                FIRST_PAUSE
            } else {
                (pause * 2).min(LONGEST_PAUSE)
            };
            sleep(pause).await;
        }
    }

    /// One connection, from its beginning to its end.
    async fn connection(&self, meeting: &mut Meeting, epoch: &mut u64) -> ConnectionError {
        let stream = match meeting.meet().await {
            Ok(stream) => stream,
            Err(error) => return error,
        };
        let (streams, mut driver) = start(stream);
        let end = tokio::select! {
            // What the guest says last may come together with its end, and is heard first.
            biased;
            end = self.attend(streams, epoch) => end,
            () = meeting.superseded() => return ConnectionError::Superseded,
            end = &mut driver => return end.unwrap_or(ConnectionError::Multiplexer),
        };
        match (end, driver.now_or_never()) {
            // The end of a stream says less than that of the connection.
            (ConnectionError::Ended | ConnectionError::Hello(GuestError::Lost), Some(end)) => {
                end.unwrap_or(ConnectionError::Multiplexer)
            }
            (end, _) => end,
        }
    }

    /// Greets the agent, publishes the connection, and listens to its events. Ends only when
    /// something is wrong.
    async fn attend(&self, streams: Streams, epoch: &mut u64) -> ConnectionError {
        let info = match timeout(HELLO_PATIENCE, streams.greet(&self.identity)).await {
            Ok(Ok(info)) => Arc::new(info),
            Ok(Err(error)) => return error.into(),
            Err(_) => return GuestError::Lost.into(),
        };
        let subscription = match subscribe(&streams).await {
            Ok(subscription) => subscription,
            Err(error) => return error.into(),
        };
        *epoch += 1;
        let _ = self.events.send(GuestEvent::Up(Arc::clone(&info)));
        self.state.send_replace(LinkState::Up(Up {
            streams,
            info,
            epoch: *epoch,
        }));
        self.listen(subscription).await
    }

    async fn listen(&self, mut subscription: Operation) -> ConnectionError {
        loop {
            match subscription.reader.next::<Event>().await {
                Ok(Some(event)) => self.publish(&event),
                Ok(None) => return ConnectionError::Ended,
                Err(error) => return GuestError::from(error).into(),
            }
        }
    }

    fn publish(&self, event: &Event) {
        // An event of a newer agent is none of ours.
        let Some(event::Kind::PowerIntent(intent)) = &event.kind else {
            return;
        };
        let wanted = match intent.mode() {
            PowerMode::Reboot => PowerIntent::Reboot,
            PowerMode::PowerOff | PowerMode::Unspecified => PowerIntent::PowerOff,
        };
        let source = match intent.source() {
            PowerSource::Host => IntentSource::Host,
            PowerSource::CtrlAltDel => IntentSource::CtrlAltDel,
            PowerSource::Guest | PowerSource::Unspecified => IntentSource::Guest,
        };
        self.intent.send_replace(Some(wanted));
        let _ = self.events.send(GuestEvent::PowerIntent(wanted, source));
    }
}

/// The driver has a task of its own: should the multiplexer ever panic on what a guest sends,
/// that is the end of the connection and of nothing else.
fn start(stream: Stream) -> (Streams, AbortOnDropHandle<ConnectionError>) {
    let (streams, driver): (Streams, Driver) = multiplex(stream);
    (streams, AbortOnDropHandle::new(tokio::spawn(driver.run())))
}

async fn subscribe(streams: &Streams) -> Result<Operation, GuestError> {
    let request = Request::of(request::Kind::Events(Subscribe {}));
    match streams.call(&request).await? {
        (operation, reply::Kind::Done(_)) => Ok(operation),
        _ => Err(GuestError::Protocol(
            "it answers a subscription with something else",
        )),
    }
}

/// An error with its causes, for people.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
