//! One packet there and back, by TCP, UDP or ICMP, in the calling thread's namespace.

use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, ipproto, sockopt};

/// Long enough for one lost packet (TCP asks again after a second), short enough for dozens of
/// refusals.
pub const PATIENCE: Duration = Duration::from_millis(1400);
/// What nobody repeats is asked twice.
const ATTEMPTS: u32 = 2;

/// Whether a TCP server answers; its banner is the address it sees.
pub fn tcp(to: SocketAddr) -> Option<Ipv4Addr> {
    let stream = TcpStream::connect_timeout(&to, PATIENCE).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).ok()?;
    line.trim().parse().ok()
}

/// Whether a UDP server echoes.
pub fn udp(to: SocketAddr) -> bool {
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    socket.set_read_timeout(Some(PATIENCE / ATTEMPTS)).unwrap();
    socket.connect(to).unwrap();
    let ask = || socket.send(b"probe").is_ok() && matches!(socket.recv(&mut [0; 64]), Ok(5));
    (0..ATTEMPTS).any(|_| ask())
}

/// Whether an echo request is answered.
pub fn icmp(to: Ipv4Addr) -> bool {
    (0..ATTEMPTS).any(|_| ping(to))
}

fn ping(to: Ipv4Addr) -> bool {
    let Ok(socket) = rustix::net::socket_with(
        AddressFamily::INET,
        SocketType::RAW,
        SocketFlags::CLOEXEC,
        Some(ipproto::ICMP),
    ) else {
        return false;
    };
    sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, Some(PATIENCE / ATTEMPTS))
        .unwrap();
    // Type 8, code 0, checksum of the fixed bytes, id and sequence.
    let mut request = [8, 0, 0, 0, 0x4b, 0x4e, 0, 1];
    let sum: u32 = request
        .chunks(2)
        .map(|two| u32::from(u16::from_be_bytes([two[0], two[1]])))
        .sum();
    let sum = !u16::try_from((sum & 0xffff) + (sum >> 16)).unwrap();
    request[2..4].copy_from_slice(&sum.to_be_bytes());
    if rustix::net::sendto(
        &socket,
        &request,
        SendFlags::empty(),
        &SocketAddrV4::new(to, 0),
    )
    .is_err()
    {
        return false;
    }
    let deadline = Instant::now() + PATIENCE / ATTEMPTS;
    let mut buffer = [0; 256];
    while Instant::now() < deadline {
        let Ok((_, length)) = rustix::net::recv(&socket, &mut buffer[..], RecvFlags::empty())
        else {
            return false;
        };
        let echo_reply = length >= 28 && buffer[20] == 0 && buffer[24..26] == [0x4b, 0x4e];
        if echo_reply && buffer[12..16] == to.octets() {
            return true;
        }
    }
    false
}

/// Whether each of these answers at the port of web servers.
pub fn web<const N: usize>(servers: [Ipv4Addr; N]) -> [bool; N] {
    servers.map(|server| tcp(SocketAddr::from((server, 80))).is_some())
}

/// Send one packet and expect nothing.
pub fn throw(to: SocketAddr) {
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    // A refusal from the own routes is as good as a drop.
    let _ = socket.send_to(b"probe", to);
}
