//! One client's connection: its limits, its peer, and whether it is still there.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
    time::Duration,
};

use axum::{Extension, Router};
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use kiln::Host;
use tokio::{
    io::{Interest, unix::AsyncFd},
    net::UnixStream,
    sync::Semaphore,
};

use super::auth::Peer;
use crate::{
    lifetime::{Busy, Lifetime},
    v1,
};

/// How long a client may take to say what it wants.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// Largest head of a request, and what a connection buffers.
const MAX_BUFFER: usize = 64 * 1024;
/// More at once than this and the rest wait, before they cost memory.
const MAX_CONNECTIONS: usize = 1024;

/// What a request can ask about the connection it came on. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Connection {
    pub(crate) peer: Peer,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    /// A descriptor of our own, to watch while the stream itself is in other hands.
    socket: OwnedFd,
    lifetime: Lifetime,
    _busy: Busy,
}

impl Connection {
    pub(crate) fn new(stream: &UnixStream, lifetime: &Lifetime) -> io::Result<Self> {
        let peer = Peer::of(stream)?;
        let socket = stream.as_fd().try_clone_to_owned()?;
        let shared = Shared {
            socket,
            lifetime: lifetime.clone(),
            _busy: lifetime.busy(),
        };
        Ok(Self {
            peer,
            shared: Arc::new(shared),
        })
    }

    pub(crate) fn lifetime(&self) -> &Lifetime {
        &self.shared.lifetime
    }

    /// Waits until the client has closed its end. Cancel-safe.
    ///
    /// Reading would tell it too, but nobody reads while the command does not take its input.
    pub(crate) async fn hung_up(&self) {
        if let Err(error) = self.wait_for_hang_up().await {
            tracing::warn!(%error, "cannot watch a connection");
            std::future::pending::<()>().await;
        }
    }

    async fn wait_for_hang_up(&self) -> io::Result<()> {
        // EPOLLHUP comes with any interest; this one wakes seldom otherwise.
        let fd = AsyncFd::with_interest(self.shared.socket.as_fd(), Interest::WRITABLE)?;
        loop {
            let mut guard = fd.writable().await?;
            if guard.ready().is_write_closed() {
                return Ok(());
            }
            guard.clear_ready();
        }
    }
}

/// Serves connections. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Service {
    router: Router,
    slots: Arc<Semaphore>,
}

impl Service {
    pub(crate) fn new(host: Host, lifetime: Lifetime) -> Self {
        let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        Self {
            router: v1::router(host, lifetime),
            slots,
        }
    }

    /// Serves one connection to its end.
    pub(crate) async fn serve(self, stream: UnixStream, connection: Connection) {
        let Ok(_slot) = self.slots.acquire().await else {
            return;
        };
        let lifetime = connection.lifetime().clone();
        let router = self.router.clone().layer(Extension(connection));
        let serving = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEADER_TIMEOUT)
            .max_buf_size(MAX_BUFFER)
            .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router))
            .with_upgrades();
        let mut serving = std::pin::pin!(serving);
        let result = tokio::select! {
            result = &mut serving => result,
            () = lifetime.stopping() => {
                serving.as_mut().graceful_shutdown();
                serving.await
            }
        };
        if let Err(error) = result {
            tracing::debug!(%error, "a connection broke");
        }
    }
}
