//! Servers of the test internet: TCP says who asks, UDP echoes.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use kiln_net::NetNamespace;

use super::{METADATA, OTHER, PRIVATE, PUBLIC_DNS, SERVER, THIRD};

pub struct Server {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

const TICK: Duration = Duration::from_millis(20);

/// TCP and UDP at every address and port that some probe asks for.
pub fn start_all(internet: &NetNamespace) -> Vec<Server> {
    let mut servers = Vec::new();
    for address in [SERVER, OTHER, THIRD, PRIVATE, METADATA, PUBLIC_DNS] {
        for port in [25, 53, 80, 443, 853, 8853] {
            servers.push(tcp(internet, address, port));
            servers.push(udp(internet, address, port));
        }
    }
    servers
}

fn server(work: impl FnOnce(&AtomicBool) + Send + 'static) -> Server {
    let stop = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&stop);
    Server {
        stop,
        thread: Some(thread::spawn(move || work(&seen))),
    }
}

/// Sends the peer's address, then echoes until the end.
pub fn tcp(namespace: &NetNamespace, address: Ipv4Addr, port: u16) -> Server {
    let listener = namespace
        .run(|| TcpListener::bind((address, port)))
        .unwrap()
        .unwrap();
    listener.set_nonblocking(true).unwrap();
    server(move |stop| {
        while !stop.load(Ordering::Relaxed) {
            match listener.accept() {
                Ok((stream, peer)) => drop(thread::spawn(move || converse(stream, peer))),
                Err(_) => thread::sleep(TICK),
            }
        }
    })
}

fn converse(mut stream: TcpStream, peer: SocketAddr) {
    let _ = stream.set_nonblocking(false);
    let _ = stream.set_read_timeout(Some(Duration::from_secs(20)));
    if writeln!(stream, "{}", peer.ip()).is_err() {
        return;
    }
    let mut buffer = [0; 65536];
    while let Ok(length @ 1..) = stream.read(&mut buffer) {
        if stream.write_all(&buffer[..length]).is_err() {
            return;
        }
    }
}

pub fn udp(namespace: &NetNamespace, address: Ipv4Addr, port: u16) -> Server {
    let socket = namespace
        .run(|| UdpSocket::bind((address, port)))
        .unwrap()
        .unwrap();
    socket.set_read_timeout(Some(TICK)).unwrap();
    server(move |stop| {
        let mut buffer = [0; 2048];
        while !stop.load(Ordering::Relaxed) {
            if let Ok((length, peer)) = socket.recv_from(&mut buffer) {
                let _ = socket.send_to(&buffer[..length], peer);
            }
        }
    })
}

/// Where packets go that nobody should see: one way is enough to count, no answer is needed.
pub struct Sink(UdpSocket);

impl Sink {
    pub fn new(namespace: &NetNamespace, address: Ipv4Addr, port: u16) -> Self {
        let socket = namespace
            .run(|| UdpSocket::bind((address, port)).unwrap())
            .unwrap();
        socket
            .set_read_timeout(Some(Duration::from_millis(500)))
            .unwrap();
        Self(socket)
    }

    /// Whether a packet came since the last one.
    pub fn arrived(&self) -> bool {
        self.0.recv(&mut [0; 16]).is_ok()
    }
}
