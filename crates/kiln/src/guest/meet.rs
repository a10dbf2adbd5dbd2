//! Coming to a byte stream with the agent on the other end.
//!
//! Owns the socket where the agent is met and the in-band handshake. What comes after the
//! handshake is for [`super::connection`].

use std::io;
use std::path::{Path, PathBuf};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use kiln_agent_proto::handshake::{AckScanner, hello, repeated_hello};
use kiln_agent_proto::prefixed::Prefixed;
use kiln_vmm::AgentEndpoint;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};
use tokio::time::{Instant, timeout_at};
use tokio_util::compat::{Compat, TokioAsyncReadCompatExt as _};

use super::error::{ConnectionError, GuestError};
use super::unread::unread;

/// A stream on which the session begins.
pub(super) type Stream = Prefixed<Compat<UnixStream>>;

/// An acknowledgement is overdue after the first of these, doubling up to the other: a guest
/// that is emulated on a busy host may take long.
const FIRST_PATIENCE: Duration = Duration::from_millis(60);
const LONGEST_PATIENCE: Duration = Duration::from_secs(2);
/// How often it is looked whether a guest that does not run yet has begun to read.
const READ_POLL: Duration = Duration::from_millis(5);
/// A stream that dialled us and says nothing is dropped after this.
const DIALLED_PATIENCE: Duration = Duration::from_secs(10);

/// Where the agent is met.
#[derive(Debug)]
pub(super) enum Meeting {
    /// We connect.
    Connect(PathBuf),
    /// It dials.
    Listen(Listening),
}

/// A socket of ours in the file system.
#[derive(Debug)]
pub(super) struct Listening {
    path: PathBuf,
    listener: UnixListener,
    /// The last one who dialled and was not met yet.
    newest: Option<UnixStream>,
}

impl Drop for Listening {
    fn drop(&mut self) {
        // The machine's clean-up removes it as well.
        let _ = std::fs::remove_file(&self.path);
    }
}

impl Meeting {
    /// Prepares the place. Must be done before the guest dials.
    pub(super) fn prepare(endpoint: AgentEndpoint) -> Result<Self, GuestError> {
        match endpoint {
            AgentEndpoint::Connect(path) => Ok(Self::Connect(path)),
            AgentEndpoint::Listen(path) => match listen(&path) {
                Ok(listener) => Ok(Self::Listen(Listening {
                    path,
                    listener,
                    newest: None,
                })),
                Err(error) => Err(GuestError::Endpoint {
                    path,
                    message: error.to_string(),
                }),
            },
        }
    }

    /// Comes to a stream on which the session can begin.
    pub(super) async fn meet(&mut self) -> Result<Stream, ConnectionError> {
        match self {
            Self::Connect(path) => {
                let socket = UnixStream::connect(path).await;
                let mut socket = socket.map_err(ConnectionError::Unreachable)?;
                let rest = resynchronise(&mut socket).await;
                let rest = rest.map_err(ConnectionError::Handshake)?;
                Ok(Prefixed::new(rest, socket.compat()))
            }
            Self::Listen(listening) => listening.meet().await,
        }
    }

    /// Waits until the agent dials again, which ends whatever connection there was. Never
    /// returns where we connect. Cancel-safe.
    pub(super) async fn superseded(&mut self) {
        match self {
            Self::Connect(_) => std::future::pending().await,
            Self::Listen(listening) => listening.dialled().await,
        }
    }
}

fn listen(path: &Path) -> io::Result<UnixListener> {
    UnixListener::from_std(kiln_vmm::listen_for_agent(path)?)
}

impl Listening {
    /// Takes the newest dial and shakes hands on it.
    async fn meet(&mut self) -> Result<Stream, ConnectionError> {
        if self.newest.is_none() {
            self.dialled().await;
        }
        while let Some(newer) = self.waiting() {
            self.newest = Some(newer);
        }
        let mut socket = self.newest.take().ok_or(ConnectionError::Superseded)?;
        let deadline = Instant::now() + DIALLED_PATIENCE;
        tokio::select! {
            rest = greet(&mut socket, deadline) => {
                let rest = rest.map_err(ConnectionError::Handshake)?;
                Ok(Prefixed::new(rest, socket.compat()))
            }
            () = self.dialled() => Err(ConnectionError::Superseded),
        }
    }

    /// Waits for a dial. Cancel-safe.
    async fn dialled(&mut self) {
        loop {
            match self.listener.accept().await {
                Ok((stream, _)) => {
                    self.newest = Some(stream);
                    return;
                }
                // Out of descriptors, or the dial is gone again.
                Err(_) => tokio::time::sleep(READ_POLL).await,
            }
        }
    }

    fn waiting(&self) -> Option<UnixStream> {
        let mut cx = Context::from_waker(Waker::noop());
        match self.listener.poll_accept(&mut cx) {
            Poll::Ready(Ok((stream, _))) => Some(stream),
            _ => None,
        }
    }
}

/// The handshake on a stream that is new: what is on it is ours.
async fn greet(socket: &mut UnixStream, deadline: Instant) -> io::Result<Vec<u8>> {
    let nonce = nonce()?;
    socket.write_all(&hello(nonce)).await?;
    let mut scanner = AckScanner::new(nonce);
    acknowledged(socket, &mut scanner, deadline)
        .await?
        .ok_or_else(|| io::ErrorKind::TimedOut.into())
}

/// The handshake on a stream that may still hold the bytes of an earlier session.
async fn resynchronise(socket: &mut UnixStream) -> io::Result<Vec<u8>> {
    let mut nonce = nonce()?;
    let mut patience = FIRST_PATIENCE;
    socket.write_all(&hello(nonce)).await?;
    loop {
        let mut scanner = AckScanner::new(nonce);
        // As long as the guest does not read, another hello would only pile up behind the first.
        while unread(&*socket)? > 0 {
            let soon = Instant::now() + READ_POLL;
            if let Some(rest) = acknowledged(socket, &mut scanner, soon).await? {
                return Ok(rest);
            }
        }
        let deadline = Instant::now() + patience;
        if let Some(rest) = acknowledged(socket, &mut scanner, deadline).await? {
            return Ok(rest);
        }
        nonce = nonce.wrapping_add(1);
        patience = (patience * 2).min(LONGEST_PATIENCE);
        socket.write_all(&repeated_hello(nonce)).await?;
    }
}

/// Reads until the acknowledgement is in; `None` at the deadline. Cancel-safe as long as the
/// scanner is kept.
async fn acknowledged(
    socket: &mut UnixStream,
    scanner: &mut AckScanner,
    deadline: Instant,
) -> io::Result<Option<Vec<u8>>> {
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let Ok(read) = timeout_at(deadline, socket.read(&mut buffer)).await else {
            return Ok(None);
        };
        let n = read?;
        if n == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if let Some(used) = scanner.push(&buffer[..n]) {
            return Ok(Some(buffer[used..n].to_vec()));
        }
    }
}

fn nonce() -> io::Result<u64> {
    getrandom::u64().map_err(io::Error::from)
}
