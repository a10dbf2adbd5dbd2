//! One client's connection: its limits and its peer.

use std::{io, sync::Arc, time::Duration};

use axum::{Extension, Router};
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use kiln::Host;
use tokio::{
    io::{AsyncRead, AsyncWrite},
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

/// How long a client that is connected may take to ask, once the daemon is about to end: it is told
/// so, and knows that nothing was done.
const LAST_CALL: Duration = Duration::from_secs(1);

/// What a request can ask about the connection it came on. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Connection {
    pub(crate) peer: Peer,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    lifetime: Lifetime,
    _busy: Busy,
}

impl Connection {
    pub(crate) fn new(stream: &UnixStream, lifetime: &Lifetime) -> io::Result<Self> {
        Ok(Self::with(Peer::of(stream)?, lifetime))
    }

    pub(crate) fn with(peer: Peer, lifetime: &Lifetime) -> Self {
        let shared = Shared {
            lifetime: lifetime.clone(),
            _busy: lifetime.busy(),
        };
        Self {
            peer,
            shared: Arc::new(shared),
        }
    }

    pub(crate) fn lifetime(&self) -> &Lifetime {
        &self.shared.lifetime
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
    pub(crate) async fn serve<S>(self, stream: S, connection: Connection)
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
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
            () = last_call(&lifetime) => {
                serving.as_mut().graceful_shutdown();
                serving.await
            }
        };
        if let Err(error) = result {
            tracing::debug!(%error, "a connection broke");
        }
    }
}

/// Waits until who has not asked by now is not waited for any more. Cancel-safe.
async fn last_call(lifetime: &Lifetime) {
    lifetime.stopping().await;
    tokio::time::sleep(LAST_CALL).await;
}
