//! Takes redirected connections, checks the name, and relays.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt, copy};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::time::timeout;

use super::{Peek, hello, request};
use crate::accept::accept;
use crate::dns::{Gate, Subscriber};
use crate::policy::DomainName;

/// A guest says what it wants at once.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// For all sandboxes together; one sandbox gets a part of it.
const CONCURRENT: usize = 4096;
const HTTP: u16 = 80;

pub(crate) async fn serve(gate: Arc<Gate>, listener: TcpListener) {
    let converse = move |stream, peer| converse(Arc::clone(&gate), stream, peer);
    accept(listener, CONCURRENT, converse).await;
}

/// A connection that was let through, and why.
struct Passage {
    subscriber: Weak<Subscriber>,
    to: SocketAddrV4,
    name: Option<DomainName>,
}

impl Passage {
    fn is_current(&self, name: &DomainName) -> bool {
        self.subscriber
            .upgrade()
            .is_some_and(|subscriber| subscriber.lock().is_current(name, *self.to.ip()))
    }

    /// Whether the policy of this moment lets it through.
    fn is_open(&self) -> bool {
        self.subscriber
            .upgrade()
            .is_some_and(|subscriber| subscriber.lock().lets_through(self.to, self.name.as_ref()))
    }
}

async fn converse(gate: Arc<Gate>, mut guest: TcpStream, peer: SocketAddr) -> io::Result<()> {
    let to = rustix::net::sockopt::ip_original_dst(&guest)?;
    let IpAddr::V4(source) = peer.ip() else {
        return Ok(());
    };
    let Some(subscriber) = gate.subscriber(source).filter(|_| *to.ip() != gate.gateway) else {
        return Ok(());
    };
    let Ok(_permit) = Arc::clone(subscriber.connections()).try_acquire_owned() else {
        return Ok(());
    };
    let (mut changes, ask_from) = (subscriber.changes(), subscriber.lock().ask_from);
    let mut passage = Passage {
        subscriber: Arc::downgrade(&subscriber),
        to,
        name: None,
    };
    // The sandbox may go while the connection is still open.
    drop(subscriber);
    let (mut head, mut budget) = (Vec::new(), None);
    // What a rule about addresses allows needs no name.
    if !passage.is_open() {
        let read = read_head(&mut guest, to.port(), &mut head);
        let Some((name, limit)) = timeout(HEAD_TIMEOUT, read).await?? else {
            return Ok(());
        };
        let current = passage.is_current(&name);
        (passage.name, budget) = (Some(name), limit);
        if !current || !passage.is_open() {
            return Ok(());
        }
    }
    let server = timeout(CONNECT_TIMEOUT, connect(to, ask_from)).await??;
    let relay = relay(guest, server, head, budget);
    tokio::pin!(relay);
    loop {
        tokio::select! {
            done = &mut relay => return done,
            changed = changes.changed() => if changed.is_err() || !passage.is_open() {
                return Ok(());
            },
        }
    }
}

/// Read until the name is known; what was read stays in `head`.
async fn read_head(
    guest: &mut TcpStream,
    port: u16,
    head: &mut Vec<u8>,
) -> io::Result<Option<(DomainName, Option<u64>)>> {
    loop {
        let seen = if port == HTTP {
            request::peek(head)
        } else {
            hello::peek(head)
        };
        match seen {
            Peek::Named { name, budget } => return Ok(Some((name, budget))),
            Peek::Refused => return Ok(None),
            Peek::More if guest.read_buf(head).await? == 0 => return Ok(None),
            Peek::More => {}
        }
    }
}

async fn connect(to: SocketAddrV4, from: Option<Ipv4Addr>) -> io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.set_keepalive(true)?;
    if let Some(from) = from {
        socket.bind((from, 0).into())?;
    }
    socket.connect(to.into()).await
}

/// Both ways until both ends are done, or one fails, or the guest sends more than its request.
async fn relay(
    mut guest: TcpStream,
    mut server: TcpStream,
    head: Vec<u8>,
    budget: Option<u64>,
) -> io::Result<()> {
    let (mut from_guest, mut to_guest) = guest.split();
    let (mut from_server, mut to_server) = server.split();
    let up = async {
        let sent = u64::try_from(head.len()).map_err(io::Error::other)?;
        let left = match budget {
            Some(budget) => budget.checked_sub(sent).ok_or_else(second_request)?,
            None => u64::MAX,
        };
        to_server.write_all(&head).await?;
        copy(&mut (&mut from_guest).take(left), &mut to_server).await?;
        if from_guest.read(&mut [0; 1]).await? > 0 {
            return Err(second_request());
        }
        to_server.shutdown().await
    };
    let down = async {
        copy(&mut from_server, &mut to_guest).await?;
        to_guest.shutdown().await
    };
    tokio::try_join!(up, down).map(drop)
}

fn second_request() -> io::Error {
    io::Error::other("a second request on one connection could name another host")
}
