//! The other side of the scenarios' networks: small servers, and a client.
//!
//! `world serve PORT TEXT`, `world dns ADDRESS NAME=IP…`, `world fetch ADDRESS:PORT` speak TCP or
//! DNS; `world echo PORT` and `world tell ADDRESS:PORT TEXT` speak UDP; `world stream PORT` and
//! `world rate ADDRESS:PORT down|up SECONDS` measure.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::panic,
    clippy::expect_used,
    reason = "a test's stage hand fails by panicking"
)]

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

const PATIENCE: Duration = Duration::from_secs(3);

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words[..] {
        ["serve", port, text] => serve(port.parse().unwrap(), text),
        ["dns", address, ref names @ ..] => dns(address.parse().unwrap(), names),
        ["fetch", from] => fetch(from.parse().unwrap()),
        ["echo", port] => echo(port.parse().unwrap()),
        ["tell", to, text] => tell(to.parse().unwrap(), text),
        ["stream", port] => stream(port.parse().unwrap()),
        ["rate", of, "down", seconds] => println!("{}", down(of.parse().unwrap(), seconds)),
        ["rate", of, "up", seconds] => println!("{}", up(of.parse().unwrap(), seconds)),
        _ => panic!("what? {words:?}"),
    }
}

fn serve(port: u16, text: &str) {
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).unwrap();
    for stream in listener.incoming() {
        // Who left already misses nothing.
        let _ = stream.and_then(|mut stream| stream.write_all(text.as_bytes()));
    }
}

fn fetch(from: SocketAddr) {
    let mut text = String::new();
    let mut stream = TcpStream::connect_timeout(&from, PATIENCE).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.read_to_string(&mut text).unwrap();
    print!("{text}");
}

fn echo(port: u16) {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)).unwrap();
    let mut datagram = [0; 2048];
    loop {
        let (length, from) = socket.recv_from(&mut datagram).unwrap();
        let _ = socket.send_to(&datagram[..length], from);
    }
}

/// Prints what comes back.
fn tell(to: SocketAddr, text: &str) {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    // Only an answer from exactly there counts.
    socket.connect(to).unwrap();
    socket.send(text.as_bytes()).unwrap();
    let mut answer = [0; 2048];
    let length = socket.recv(&mut answer).unwrap();
    print!("{}", String::from_utf8_lossy(&answer[..length]));
}

const DOWN: u8 = b'd';
const CHUNK: usize = 64 << 10;

/// Sends without end, or counts what comes until the end and tells.
fn stream(port: u16) {
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).unwrap();
    for stream in listener.incoming() {
        let Ok(mut stream) = stream else { continue };
        std::thread::spawn(move || {
            let mut which = [0];
            stream.read_exact(&mut which)?;
            if which == [DOWN] {
                while stream.write_all(&[0; CHUNK]).is_ok() {}
                return Ok(());
            }
            let bytes = std::io::copy(&mut stream, &mut std::io::sink())?;
            stream.write_all(&bytes.to_le_bytes())
        });
    }
}

/// Kilobits per second that come.
fn down(from: SocketAddr, seconds: &str) -> u64 {
    let mut stream = TcpStream::connect_timeout(&from, PATIENCE).unwrap();
    stream.write_all(&[DOWN]).unwrap();
    let (span, begin, mut bytes) = (span(seconds), Instant::now(), 0);
    let mut chunk = vec![0; CHUNK];
    while begin.elapsed() < span {
        bytes += stream.read(&mut chunk).unwrap() as u64;
    }
    rate(bytes, begin)
}

/// Kilobits per second that arrive there: buffers on the way do not count.
fn up(to: SocketAddr, seconds: &str) -> u64 {
    let mut stream = TcpStream::connect_timeout(&to, PATIENCE).unwrap();
    stream.write_all(b"u").unwrap();
    let (span, begin) = (span(seconds), Instant::now());
    while begin.elapsed() < span {
        stream.write_all(&[0; CHUNK]).unwrap();
    }
    stream.shutdown(Shutdown::Write).unwrap();
    let mut bytes = [0; 8];
    stream.read_exact(&mut bytes).unwrap();
    rate(u64::from_le_bytes(bytes), begin)
}

fn span(seconds: &str) -> Duration {
    Duration::from_secs(seconds.parse().unwrap())
}

fn rate(bytes: u64, since: Instant) -> u64 {
    (bytes as f64 * 8.0 / since.elapsed().as_secs_f64() / 1000.0) as u64
}

/// Answers for type A, and with nothing for all else.
fn dns(at: Ipv4Addr, names: &[&str]) {
    let socket = UdpSocket::bind((at, 53)).unwrap();
    let mut query = [0; 512];
    loop {
        let (length, from) = socket.recv_from(&mut query).unwrap();
        let Some((name, end)) = question(&query[..length]) else {
            continue;
        };
        let is_a = query[end - 4..end - 2] == [0, 1];
        let known = names
            .iter()
            .find_map(|pair| pair.strip_prefix(&format!("{name}=")));
        let address = known
            .filter(|_| is_a)
            .map(|ip| ip.parse::<Ipv4Addr>().unwrap());
        let mut reply = vec![query[0], query[1], 0x81, 0x80, 0, 1, 0];
        reply.extend([u8::from(address.is_some()), 0, 0, 0, 0]);
        reply.extend(&query[12..end]);
        if let Some(address) = address {
            reply.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
            reply.extend(address.octets());
        }
        let _ = socket.send_to(&reply, from);
    }
}

/// The name of the only question, and where it ends.
fn question(query: &[u8]) -> Option<(String, usize)> {
    let (mut at, mut labels) = (12, Vec::new());
    loop {
        let length = usize::from(*query.get(at)?);
        at += 1;
        if length == 0 {
            break;
        }
        labels.push(String::from_utf8_lossy(query.get(at..at + length)?).to_lowercase());
        at += length;
    }
    query.get(at..at + 4)?;
    Some((labels.join("."), at + 4))
}
