//! Asks a resolver on a guest's behalf: a fresh random port and id per question, TCP when cut.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use hickory_proto::op::{Edns, Message, MessageType, Query};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, UdpSocket};
use tokio::time::timeout;

/// The size that passes every path unfragmented (DNS flag day 2020).
pub(super) const UDP_PAYLOAD: u16 = 1232;
const UDP_TIMEOUT: Duration = Duration::from_millis(1500);
const TCP_TIMEOUT: Duration = Duration::from_secs(4);
/// Each resolver is asked this often before the next.
const ATTEMPTS: usize = 2;

/// The first usable answer of any resolver. `source` is the address to ask from, if it matters.
pub(super) async fn resolve(
    resolvers: &[SocketAddr],
    source: Option<Ipv4Addr>,
    question: &Query,
) -> Option<Message> {
    let id = random_id()?;
    let request = request(id, question)?;
    for resolver in resolvers {
        for _ in 0..ATTEMPTS {
            match timeout(
                UDP_TIMEOUT,
                by_udp(*resolver, source, &request, question, id),
            )
            .await
            {
                Ok(Ok(answer)) if !answer.metadata.truncation => return Some(answer),
                Ok(Ok(_)) => {
                    let answer = by_tcp(*resolver, source, &request);
                    match timeout(TCP_TIMEOUT, answer).await {
                        Ok(Ok(answer)) if answers(&answer, question, id) => return Some(answer),
                        _ => break,
                    }
                }
                Ok(Err(_)) => break,
                Err(_) => {}
            }
        }
    }
    None
}

fn random_id() -> Option<u16> {
    let mut bytes = [0; 2];
    let filled = rustix::rand::getrandom(&mut bytes[..], rustix::rand::GetRandomFlags::empty());
    (filled == Ok(2)).then(|| u16::from_ne_bytes(bytes))
}

fn request(id: u16, question: &Query) -> Option<Vec<u8>> {
    let mut message = Message::query();
    message.metadata.id = id;
    message.metadata.recursion_desired = true;
    message.add_query(question.clone());
    let mut edns = Edns::new();
    edns.set_max_payload(UDP_PAYLOAD).set_version(0);
    message.set_edns(edns);
    message.to_vec().ok()
}

/// Whether a message answers exactly what was asked.
fn answers(message: &Message, question: &Query, id: u16) -> bool {
    let echoed = message.queries.first().is_some_and(|echo| {
        echo.name().to_lowercase() == question.name().to_lowercase()
            && echo.query_type() == question.query_type()
    });
    message.metadata.id == id && message.metadata.message_type == MessageType::Response && echoed
}

fn source_address(resolver: SocketAddr, source: Option<Ipv4Addr>) -> SocketAddr {
    match resolver.ip() {
        IpAddr::V4(_) => (source.unwrap_or(Ipv4Addr::UNSPECIFIED), 0).into(),
        IpAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    }
}

async fn by_udp(
    resolver: SocketAddr,
    source: Option<Ipv4Addr>,
    request: &[u8],
    question: &Query,
    id: u16,
) -> io::Result<Message> {
    let socket = UdpSocket::bind(source_address(resolver, source)).await?;
    socket.connect(resolver).await?;
    socket.send(request).await?;
    let mut buffer = [0; 4096];
    // What does not answer the question is ignored: a forger must not end the wait.
    loop {
        let length = socket.recv(&mut buffer).await?;
        match Message::from_vec(&buffer[..length]) {
            Ok(message) if answers(&message, question, id) => return Ok(message),
            _ => {}
        }
    }
}

async fn by_tcp(
    resolver: SocketAddr,
    source: Option<Ipv4Addr>,
    request: &[u8],
) -> io::Result<Message> {
    let socket = if resolver.is_ipv4() {
        TcpSocket::new_v4()?
    } else {
        TcpSocket::new_v6()?
    };
    socket.bind(source_address(resolver, source))?;
    let mut stream = socket.connect(resolver).await?;
    let length = u16::try_from(request.len()).map_err(io::Error::other)?;
    stream
        .write_all(&[&length.to_be_bytes(), request].concat())
        .await?;
    let mut answer = vec![0; usize::from(stream.read_u16().await?)];
    stream.read_exact(&mut answer).await?;
    Message::from_vec(&answer).map_err(io::Error::other)
}
