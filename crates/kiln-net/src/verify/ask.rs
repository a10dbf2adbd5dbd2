//! Asks a question from where the calling thread is.

use std::io::{self, ErrorKind};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use hickory_proto::op::{Message, Query, ResponseCode};
use hickory_proto::rr::{Name, RData, RecordType};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, ipproto, sockopt};

use super::{Observed, Question};

/// Whoever has not answered by then is silent.
const PATIENCE: Duration = Duration::from_millis(1500);

/// Ask from the calling thread's network namespace and wait, at most 1.5 seconds.
pub fn ask(question: &Question) -> Observed {
    let answer = match question {
        Question::Tcp(to) => tcp(*to),
        Question::Ping(to) => ping(*to),
        Question::Name { resolver, name } => resolve(*resolver, name),
    };
    answer.unwrap_or_else(|error| match error.kind() {
        ErrorKind::ConnectionRefused
        | ErrorKind::ConnectionReset
        | ErrorKind::HostUnreachable
        | ErrorKind::NetworkUnreachable => Observed::Refused,
        _ => Observed::Silent,
    })
}

fn tcp(to: SocketAddrV4) -> io::Result<Observed> {
    TcpStream::connect_timeout(&SocketAddr::V4(to), PATIENCE)?;
    Ok(Observed::Answered)
}

fn resolve(resolver: Ipv4Addr, name: &str) -> io::Result<Observed> {
    let name = Name::from_ascii(name).map_err(io::Error::other)?;
    let mut request = Message::query();
    request.metadata.id = 0x6b6e;
    request.metadata.recursion_desired = true;
    request.add_query(Query::query(name, RecordType::A));
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.connect((resolver, 53))?;
    socket.send(&request.to_vec().map_err(io::Error::other)?)?;
    let mut buffer = [0; 4096];
    let length = socket.recv(&mut buffer)?;
    let answer = Message::from_vec(&buffer[..length]).map_err(io::Error::other)?;
    let has_address = answer
        .answers
        .iter()
        .any(|record| matches!(record.data, RData::A(_)));
    let found = answer.metadata.response_code == ResponseCode::NoError && has_address;
    Ok(if found {
        Observed::Answered
    } else {
        Observed::Refused
    })
}

/// Our echo requests carry this, so that others' replies are not taken for ours.
const IDENTIFIER: [u8; 2] = [0x4b, 0x56];
const ECHO_REPLY: u8 = 0;

fn ping(to: Ipv4Addr) -> io::Result<Observed> {
    let socket = rustix::net::socket_with(
        AddressFamily::INET,
        SocketType::RAW,
        SocketFlags::CLOEXEC,
        Some(ipproto::ICMP),
    )?;
    let target = SocketAddrV4::new(to, 0);
    rustix::net::sendto(&socket, &echo_request(), SendFlags::empty(), &target)?;
    let deadline = Instant::now() + PATIENCE;
    let mut buffer = [0; 256];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(Observed::Silent);
        }
        sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, Some(left))?;
        let (_, length) = rustix::net::recv(&socket, &mut buffer[..], RecvFlags::empty())?;
        if is_reply(&buffer[..length.min(buffer.len())], to) {
            return Ok(Observed::Answered);
        }
    }
}

fn echo_request() -> [u8; 8] {
    const ECHO: u8 = 8;
    let [a, b] = IDENTIFIER;
    // The sum of the other words, folded; it does not overflow for these.
    let sum = !(u16::from_be_bytes([ECHO, 0]) + u16::from_be_bytes(IDENTIFIER) + 1);
    let [high, low] = sum.to_be_bytes();
    [ECHO, 0, high, low, a, b, 0, 1]
}

/// Whether an IP packet is the answer; only addresses and our own number count.
fn is_reply(packet: &[u8], from: Ipv4Addr) -> bool {
    let header_len = packet
        .first()
        .map_or(0, |byte| usize::from(byte & 0x0f) * 4);
    let source = packet.get(12..16);
    let icmp = packet.get(header_len..header_len + 6);
    source == Some(&from.octets())
        && icmp.is_some_and(|icmp| icmp[0] == ECHO_REPLY && icmp[4..6] == IDENTIFIER)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_checksum_is_right() {
        let words = echo_request();
        let sum: u32 = words
            .chunks(2)
            .map(|two| u32::from(u16::from_be_bytes([two[0], two[1]])))
            .sum();
        assert_eq!((sum & 0xffff) + (sum >> 16), 0xffff);
    }

    proptest! {
        #[test]
        fn strange_packets_are_no_replies(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = is_reply(&bytes, Ipv4Addr::LOCALHOST);
        }
    }
}
