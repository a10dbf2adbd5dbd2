//! Listens at the gateway address, by UDP and TCP.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::timeout;

use super::gate::Gate;
use crate::accept::accept;
use crate::hosts;

const PORT: u16 = 53;
const IDLE: Duration = Duration::from_secs(5);
/// Requests in work for all sandboxes together.
const CONCURRENT_REQUESTS: usize = 1024;
const CONCURRENT_CONNECTIONS: usize = 256;

/// The resolver, or the check of server names, cannot listen.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen at {address}")]
pub struct ServeError {
    /// Where.
    pub address: SocketAddr,
    /// Why.
    #[source]
    pub source: io::Error,
}

/// A resolver that answers; it stops when this is dropped.
#[derive(Debug)]
pub struct Server {
    tasks: [JoinHandle<()>; 3],
}

impl Drop for Server {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

impl Gate {
    /// Start answering questions and checking the names of web servers. Needs a tokio runtime whose threads are in the host's network namespace.
    ///
    /// # Errors
    /// [`ServeError`] when the address is taken.
    pub async fn serve(self: &Arc<Self>) -> Result<Server, ServeError> {
        let address = SocketAddr::from((self.gateway, PORT));
        let failed = |source| ServeError { address, source };
        let udp = UdpSocket::bind(address).await.map_err(failed)?;
        let tcp = TcpListener::bind(address).await.map_err(failed)?;
        let address = SocketAddr::from((self.gateway, hosts::PORT));
        let failed = |source| ServeError { address, source };
        let web = TcpListener::bind(address).await.map_err(failed)?;
        let datagrams = tokio::spawn(serve_udp(Arc::clone(self), Arc::new(udp)));
        let connections = tokio::spawn(accept(tcp, CONCURRENT_CONNECTIONS, {
            let gate = Arc::clone(self);
            move |stream, peer| converse(Arc::clone(&gate), stream, peer)
        }));
        let checks = tokio::spawn(hosts::serve(Arc::clone(self), web));
        Ok(Server {
            tasks: [datagrams, connections, checks],
        })
    }
}

/// A request that finds no room is dropped: the guest asks again.
async fn serve_udp(gate: Arc<Gate>, socket: Arc<UdpSocket>) {
    let room = Arc::new(Semaphore::new(CONCURRENT_REQUESTS));
    let mut work = JoinSet::new();
    let mut buffer = [0; 4096];
    loop {
        while work.try_join_next().is_some() {}
        let Ok((length, peer)) = socket.recv_from(&mut buffer).await else {
            continue;
        };
        let (IpAddr::V4(source), Ok(permit)) = (peer.ip(), Arc::clone(&room).try_acquire_owned())
        else {
            continue;
        };
        let (gate, socket) = (Arc::clone(&gate), Arc::clone(&socket));
        let request = buffer[..length].to_vec();
        work.spawn(async move {
            if let Some(answer) = gate.answer(source, &request, true).await {
                // A guest that is gone needs no answer.
                let _ = socket.send_to(&answer, peer).await;
            }
            drop(permit);
        });
    }
}

async fn converse(gate: Arc<Gate>, mut stream: TcpStream, peer: SocketAddr) -> io::Result<()> {
    let IpAddr::V4(source) = peer.ip() else {
        return Ok(());
    };
    loop {
        let request = timeout(IDLE, read_request(&mut stream)).await??;
        let Some(answer) = gate.answer(source, &request, false).await else {
            return Ok(());
        };
        let length = u16::try_from(answer.len()).map_err(io::Error::other)?;
        let framed = [&length.to_be_bytes(), answer.as_slice()].concat();
        timeout(IDLE, stream.write_all(&framed)).await??;
    }
}

async fn read_request(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut request = vec![0; usize::from(stream.read_u16().await?)];
    stream.read_exact(&mut request).await?;
    Ok(request)
}
