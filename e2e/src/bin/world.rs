//! The other side of the scenarios' networks: small servers, and a client.
//!
//! `world serve PORT TEXT`, `world dns ADDRESS NAME=IP…`, `world fetch ADDRESS:PORT`.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::panic,
    clippy::expect_used,
    reason = "a test's stage hand fails by panicking"
)]

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(3);

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words[..] {
        ["serve", port, text] => serve(port.parse().unwrap(), text),
        ["dns", address, ref names @ ..] => dns(address.parse().unwrap(), names),
        ["fetch", from] => fetch(from.parse().unwrap()),
        _ => panic!("world serve PORT TEXT | dns ADDRESS NAME=IP… | fetch ADDRESS:PORT"),
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
