//! The daemon's life: open, accept, drain, close.

use std::{io, net::SocketAddr, path::Path, pin::pin, time::Duration};

use kiln::{Host, HostConfig};
use thiserror::Error;
use tokio::{
    net::{TcpStream, UnixStream},
    signal::unix::{Signal, SignalKind, signal},
    time,
};

use crate::{
    http::{Connection, Service, auth::Peer},
    lifetime::Lifetime,
    lock::{DaemonLock, LockError},
    memory,
    remote::{Remote, RemoteConfig, RemoteError},
    socket::{self, Socket, SocketError},
};

/// Back-off when the process has no descriptor left for another connection.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What a daemon needs to know.
#[derive(Debug)]
pub struct DaemonConfig {
    /// What it serves.
    pub host: HostConfig,
    /// End after this long without clients and machines; never when unset.
    pub idle_exit: Option<Duration>,
    /// Listen beyond this host too; with TLS and tokens, never without.
    pub remote: Option<RemoteConfig>,
    /// How long requests under way may take to finish when the daemon ends.
    pub drain: Duration,
}

/// Why a daemon does not come up.
#[derive(Debug, Error)]
pub enum OpenError {
    /// Its place is taken.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// It has nowhere to listen.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// The host it should serve does not open.
    #[error("{}", .0.message())]
    Host(kiln::Error),
    /// It cannot listen beyond this host as it should.
    #[error(transparent)]
    Remote(#[from] RemoteError),
    /// Signals cannot be received.
    #[error("cannot receive signals")]
    Signals(#[source] io::Error),
}

impl OpenError {
    /// Stable name of the failure.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Lock(LockError::Running { .. } | LockError::Held { .. })
            | Self::Socket(SocketError::InUse { .. }) => "DAEMON_RUNNING",
            Self::Lock(LockError::File { .. }) | Self::Socket(_) => "SOCKET_FAILED",
            Self::Host(error) => error.code().as_str(),
            Self::Remote(_) => "REMOTE_FAILED",
            Self::Signals(_) => kiln_api::code::INTERNAL,
        }
    }

    /// What to do about it.
    #[must_use]
    pub fn hint(&self) -> Option<&str> {
        match self {
            Self::Lock(LockError::Running { .. }) | Self::Socket(SocketError::InUse { .. }) => {
                Some("use it, or end it with `kiln daemon --stop`; its machines run on")
            }
            Self::Lock(LockError::Held { .. }) => Some("end that process, then try again"),
            Self::Socket(SocketError::UnsafeDirectory { .. }) => {
                Some("name a socket in a directory that only you can write to, with --socket")
            }
            Self::Socket(SocketError::PathTooLong { .. }) => {
                Some("name a shorter path with --socket")
            }
            Self::Host(error) => error.hint(),
            _ => None,
        }
    }
}

/// Why a daemon ended other than asked to.
#[derive(Debug, Error)]
pub enum ServeError {
    /// Requests were still under way at the deadline; they were cut off.
    #[error("requests were still under way when the daemon ended")]
    Cut,
}

/// A daemon that listens.
#[derive(Debug)]
#[must_use]
pub struct Daemon {
    host: Host,
    lifetime: Lifetime,
    signals: Signals,
    socket: Socket,
    remote: Option<Remote>,
    idle_exit: Option<Duration>,
    drain: Duration,
}

#[derive(Debug)]
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl DaemonLock {
    /// Takes the place of the daemon that serves `socket`, making its directory if it is missing.
    /// Waits for a daemon that is about to end.
    ///
    /// # Errors
    /// When another daemon has the place and stays, or others could replace the socket.
    pub async fn take(socket: &Path) -> Result<Self, OpenError> {
        socket::prepare_directory(socket)?;
        Ok(Self::acquire(socket).await?)
    }
}

impl Daemon {
    /// Opens the host and publishes the socket. On return, clients can connect.
    ///
    /// # Errors
    /// When the host does not open, or the socket cannot be published.
    pub async fn open(config: DaemonConfig, lock: &DaemonLock) -> Result<Self, OpenError> {
        let signals = Signals::catch().map_err(OpenError::Signals)?;
        // First what is refused without touching anything.
        let remote = match &config.remote {
            Some(config) => Some(Remote::open(config).await?),
            None => None,
        };
        let host = Host::open(config.host).await.map_err(OpenError::Host)?;
        let mut daemon = Self::listen(host, signals, config.drain, lock).await?;
        daemon.remote = remote;
        daemon.idle_exit = config.idle_exit;
        Ok(daemon)
    }

    /// As [`Daemon::open`], for a host that somebody has opened: on the socket alone, until it is
    /// asked to end.
    ///
    /// # Errors
    /// When the socket cannot be published.
    pub async fn of(host: Host, drain: Duration, lock: &DaemonLock) -> Result<Self, OpenError> {
        let signals = Signals::catch().map_err(OpenError::Signals)?;
        Self::listen(host, signals, drain, lock).await
    }

    async fn listen(
        host: Host,
        signals: Signals,
        drain: Duration,
        lock: &DaemonLock,
    ) -> Result<Self, OpenError> {
        let socket = Socket::bind(&lock.socket).await?;
        tracing::info!(socket = %lock.socket.display(), pid = std::process::id(), "listening");
        Ok(Self {
            host,
            lifetime: Lifetime::new(),
            signals,
            socket,
            remote: None,
            idle_exit: None,
            drain,
        })
    }

    /// Serves until a signal, a client, or idleness ends it. Machines run on.
    ///
    /// # Errors
    /// When requests had to be cut off to end.
    pub async fn serve(mut self) -> Result<(), ServeError> {
        let service = Service::new(self.host.clone(), self.lifetime.clone());
        let reason = self.accept_until_end(&service).await;
        tracing::info!(reason, "ending");
        self.lifetime.stop();
        self.socket.unpublish();
        self.refuse_backlog(&service).await;
        let drained = self.lifetime.drained(self.drain).await;
        self.host.close().await;
        tracing::info!(drained, "ended");
        if drained {
            Ok(())
        } else {
            Err(ServeError::Cut)
        }
    }

    /// Accepts connections until there is a reason not to.
    async fn accept_until_end(&mut self, service: &Service) -> &'static str {
        let idle = {
            let (lifetime, host, span) = (self.lifetime.clone(), self.host.clone(), self.idle_exit);
            async move {
                match span {
                    Some(span) => lifetime.idle(span, || host.live_sandboxes() > 0).await,
                    None => std::future::pending().await,
                }
            }
        };
        let mut idle = pin!(idle);
        let lifetime = self.lifetime.clone();
        let mut giving_back = pin!(memory::give_back_when_idle(&lifetime));
        loop {
            tokio::select! {
                accepted = self.socket.listener.accept() => match accepted {
                    Ok((stream, _)) => spawn(stream, &self.lifetime, service),
                    Err(error) => {
                        tracing::warn!(%error, "cannot accept a connection");
                        time::sleep(ACCEPT_PAUSE).await;
                    }
                },
                accepted = accept_remote(self.remote.as_ref()) => {
                    if let Some((remote, stream, address)) = accepted {
                        greet(remote, stream, address, &self.lifetime, service);
                    } else {
                        time::sleep(ACCEPT_PAUSE).await;
                    }
                }
                name = self.signals.next() => return name,
                () = self.lifetime.stopping() => return "asked to",
                () = &mut idle => return "idle",
                () = &mut giving_back => {}
            }
        }
    }

    /// Who connected before the socket was gone is told that the daemon ends, instead of being
    /// cut off: a client then knows that it may ask the next one.
    async fn refuse_backlog(&self, service: &Service) {
        while let Ok(Ok((stream, _))) =
            time::timeout(Duration::ZERO, self.socket.listener.accept()).await
        {
            spawn(stream, &self.lifetime, service);
        }
    }
}

/// The next connection from elsewhere; never where nobody listens for them. `None` when it failed.
/// Cancel-safe.
async fn accept_remote(remote: Option<&Remote>) -> Option<(&Remote, TcpStream, SocketAddr)> {
    let Some(remote) = remote else {
        return std::future::pending().await;
    };
    match remote.accept().await {
        Ok((stream, address)) => Some((remote, stream, address)),
        Err(error) => {
            tracing::warn!(%error, "cannot accept a connection");
            None
        }
    }
}

/// Comes to terms with a connection from elsewhere, and serves it.
fn greet(
    remote: &Remote,
    stream: TcpStream,
    address: SocketAddr,
    lifetime: &Lifetime,
    service: &Service,
) {
    let (greeter, tokens) = (remote.greeter(), remote.tokens.clone());
    let (lifetime, service) = (lifetime.clone(), service.clone());
    tokio::spawn(async move {
        match greeter.greet(stream).await {
            Ok(stream) => {
                let peer = Peer::Remote { address, tokens };
                service
                    .serve(stream, Connection::with(peer, &lifetime))
                    .await;
            }
            Err(error) => tracing::debug!(%address, %error, "no terms with a client"),
        }
    });
}

fn spawn(stream: UnixStream, lifetime: &Lifetime, service: &Service) {
    match Connection::new(&stream, lifetime) {
        Ok(connection) => {
            tokio::spawn(service.clone().serve(stream, connection));
        }
        Err(error) => tracing::warn!(%error, "cannot tell who connected"),
    }
}

impl Signals {
    fn catch() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    /// The next signal's name. Cancel-safe.
    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}
