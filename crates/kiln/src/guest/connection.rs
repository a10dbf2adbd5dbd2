//! One connection to an agent: the multiplexer, and operations on streams of their own.

use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use futures_util::io::{AsyncReadExt as _, ReadHalf, WriteHalf};
use kiln_agent_proto::frame::{FrameError, FrameReader, FrameWriter};
use kiln_agent_proto::gathered::Gathered;
use kiln_agent_proto::limits::MAX_STREAMS;
use kiln_agent_proto::message::{Hello, HelloReply, Reply, Request, reply, request};
use kiln_agent_proto::request::send;
use kiln_agent_proto::version::VersionRange;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

use super::error::{ConnectionError, GuestError};
use super::meet::Stream;
use super::port::PortStream;
use super::{AgentInfo, GuestIdentity};

/// Bytes that a stream may hold: the multiplexer's smallest window, which never grows here.
const STREAM_WINDOW: usize = 256 * 1024;
/// A closed stream counts until the multiplexer has noticed; these are left for such.
const CLOSING_STREAMS: usize = 64;
/// Streams that an agent may open before it is taken for hostile. It has no reason for any.
const UNASKED_STREAMS: usize = 16;
/// Random bytes that a guest gets.
const SEED: usize = 64;

/// Hands out streams of a connection that is driven elsewhere.
#[derive(Clone, Debug)]
pub(super) struct Streams {
    wanted: mpsc::Sender<oneshot::Sender<yamux::Stream>>,
    permits: Arc<Semaphore>,
}

/// Drives a connection.
pub(super) struct Driver {
    mux: yamux::Connection<Gathered<Stream>>,
    wanted: mpsc::Receiver<oneshot::Sender<yamux::Stream>>,
}

/// Puts the multiplexer on a stream. Nothing moves until the driver runs.
pub(super) fn multiplex(stream: Stream) -> (Streams, Driver) {
    let mut config = yamux::Config::default();
    config
        .set_max_num_streams(MAX_STREAMS)
        .set_max_connection_receive_window(Some(MAX_STREAMS * STREAM_WINDOW));
    let (sender, wanted) = mpsc::channel(16);
    let streams = Streams {
        wanted: sender,
        permits: Arc::new(Semaphore::new(MAX_STREAMS - CLOSING_STREAMS)),
    };
    let mux = yamux::Connection::new(Gathered::new(stream), config, yamux::Mode::Client);
    (streams, Driver { mux, wanted })
}

impl Driver {
    /// Moves bytes until the connection ends.
    pub(super) async fn run(mut self) -> ConnectionError {
        let mut asking: Option<oneshot::Sender<yamux::Stream>> = None;
        let mut unasked = 0;
        std::future::poll_fn(|cx| {
            loop {
                if asking.is_none()
                    && let Poll::Ready(Some(asker)) = self.wanted.poll_recv(cx)
                {
                    asking = Some(asker);
                }
                if let Some(asker) = asking.take() {
                    match self.mux.poll_new_outbound(cx) {
                        Poll::Ready(Ok(stream)) => {
                            // An asker that is gone drops the stream.
                            let _ = asker.send(stream);
                            continue;
                        }
                        Poll::Ready(Err(error)) => return Poll::Ready(ended(error)),
                        Poll::Pending => asking = Some(asker),
                    }
                }
                match self.mux.poll_next_inbound(cx) {
                    Poll::Ready(Some(Ok(_refused))) => {
                        unasked += 1;
                        if unasked > UNASKED_STREAMS {
                            return Poll::Ready(ConnectionError::Flood);
                        }
                    }
                    Poll::Ready(Some(Err(error))) => return Poll::Ready(ended(error)),
                    Poll::Ready(None) => return Poll::Ready(ConnectionError::Ended),
                    Poll::Pending => return Poll::Pending,
                }
            }
        })
        .await
    }
}

fn ended(error: yamux::ConnectionError) -> ConnectionError {
    match error {
        yamux::ConnectionError::Closed => ConnectionError::Ended,
        error => ConnectionError::Broken(error),
    }
}

/// Reading side of a stream.
pub(super) type Reader = FrameReader<ReadHalf<yamux::Stream>>;

/// Both sides of one operation's stream.
#[derive(Debug)]
pub(super) struct Operation {
    pub(super) reader: Reader,
    pub(super) writer: FrameWriter<WriteHalf<yamux::Stream>>,
    _permit: OwnedSemaphorePermit,
}

impl Streams {
    /// Starts an operation and reads the agent's first answer.
    pub(super) async fn call(
        &self,
        request: &Request,
    ) -> Result<(Operation, reply::Kind), GuestError> {
        let mut operation = self.open().await?;
        match send(&mut operation.writer, request).await {
            Err(FrameError::TooLong(len)) => return Err(GuestError::TooLong(len)),
            result => result?,
        }
        let kind = operation.reply().await?;
        Ok((operation, kind))
    }

    async fn open(&self) -> Result<Operation, GuestError> {
        let permit = Arc::clone(&self.permits).acquire_owned().await;
        let permit = permit.map_err(|_| GuestError::Lost)?;
        let (asker, stream) = oneshot::channel();
        self.wanted
            .send(asker)
            .await
            .map_err(|_| GuestError::Lost)?;
        let stream = stream.await.map_err(|_| GuestError::Lost)?;
        let (read, write) = stream.split();
        Ok(Operation {
            reader: FrameReader::new(read),
            writer: FrameWriter::new(write),
            _permit: permit,
        })
    }

    /// The first operation: settles the version and tells the guest who and when it is.
    pub(super) async fn greet(&self, identity: &GuestIdentity) -> Result<AgentInfo, GuestError> {
        let asked = Instant::now();
        let hello = Hello {
            min_version: VersionRange::OURS.min,
            max_version: VersionRange::OURS.max,
            clock_unix_ns: clock_unix_ns(),
            entropy: seed(),
            hostname: identity.hostname.clone(),
        };
        match self.call(&Request::of(request::Kind::Hello(hello))).await? {
            (_, reply::Kind::Hello(reply)) => AgentInfo::new(reply, asked.elapsed()),
            _ => Err(GuestError::Protocol(
                "it answers a hello with something else",
            )),
        }
    }
}

impl Operation {
    /// The rest of the stream as a connection's.
    pub(super) fn into_port(self) -> PortStream {
        PortStream {
            reader: self.reader,
            writer: self.writer,
            _permit: self._permit,
        }
    }

    /// The agent's next answer.
    pub(super) async fn reply(&mut self) -> Result<reply::Kind, GuestError> {
        let reply = self.reader.next::<Reply>().await?;
        match reply.ok_or(GuestError::Lost)?.kind {
            Some(reply::Kind::Error(error)) => Err(error.into()),
            Some(kind) => Ok(kind),
            None => Err(GuestError::Protocol("an answer of an unknown kind")),
        }
    }
}

impl AgentInfo {
    /// Everything in it comes from the guest: bounded, and trusted with nothing.
    fn new(reply: HelloReply, round_trip: Duration) -> Result<Self, GuestError> {
        let ours = VersionRange::OURS;
        if !(ours.min..=ours.max).contains(&reply.version) {
            return Err(GuestError::Protocol(
                "it chose a version that was not offered",
            ));
        }
        let marks = reply.marks.into_iter().take(Self::MAX_MARKS);
        let marks: Vec<_> = marks
            .map(|mark| {
                let name = mark.name.chars().take(64).collect();
                (name, Duration::from_micros(mark.uptime_us))
            })
            .collect();
        Ok(Self {
            version: reply.version,
            release: reply.agent.chars().take(64).collect(),
            instance: reply.instance,
            init_started: marks.first().map_or(Duration::ZERO, |(_, at)| *at),
            marks,
            round_trip,
        })
    }
}

fn clock_unix_ns() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    // 0 leaves the guest's clock alone, as is right when ours is before 1970.
    now.map_or(0, |now| now.as_nanos().try_into().unwrap_or(0))
}

/// Empty when this host has no random numbers: then the guest has to do with its own.
fn seed() -> Vec<u8> {
    let mut bytes = vec![0; SEED];
    match getrandom::fill(&mut bytes) {
        Ok(()) => bytes,
        Err(_) => Vec::new(),
    }
}
