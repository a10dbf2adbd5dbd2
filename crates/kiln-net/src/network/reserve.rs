//! Holds published ports of the host, so that no other program can start listening on one.

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::OwnedFd;

use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, socket_with};

use crate::policy::{PublishedPort, Transport};

/// A port that is bound but never read from: packets for it are redirected before they get here.
#[derive(Debug)]
pub(super) struct Reservation {
    pub(super) port: PublishedPort,
    _socket: OwnedFd,
}

impl Reservation {
    pub(super) fn take(port: PublishedPort) -> io::Result<Self> {
        let kind = match port.transport {
            Transport::Tcp => SocketType::STREAM,
            Transport::Udp => SocketType::DGRAM,
        };
        let socket = socket_with(AddressFamily::INET, kind, SocketFlags::CLOEXEC, None)?;
        let address = port.address.unwrap_or(Ipv4Addr::UNSPECIFIED);
        bind(&socket, &SocketAddrV4::new(address, port.host))?;
        Ok(Self {
            port,
            _socket: socket,
        })
    }
}
