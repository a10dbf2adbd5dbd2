//! Published ports as users write them. Pure.

use std::fmt;
use std::net::Ipv4Addr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Which transport a port belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl Transport {
    /// The number in the IP header.
    pub fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
        }
    }
}

/// A port of the host that leads to a port of the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PublishedPort {
    /// Only at this address of the host; `None` means at all of them.
    pub address: Option<Ipv4Addr>,
    /// The host's port.
    pub host: u16,
    /// The guest's port.
    pub guest: u16,
    /// TCP or UDP.
    pub transport: Transport,
}

impl PublishedPort {
    /// Read `[address:]host:guest[/tcp|/udp]` or `port[/tcp|/udp]`.
    pub fn new(text: &str) -> Option<Self> {
        let (ports, transport) = match text.split_once('/') {
            Some((ports, "tcp")) => (ports, Transport::Tcp),
            Some((ports, "udp")) => (ports, Transport::Udp),
            Some(_) => return None,
            None => (text, Transport::Tcp),
        };
        let parts: Vec<&str> = ports.split(':').collect();
        let (address, host, guest) = match parts[..] {
            [port] => (None, port, port),
            [host, guest] => (None, host, guest),
            [address, host, guest] => (Some(address.parse::<Ipv4Addr>().ok()?), host, guest),
            _ => return None,
        };
        let address = address.filter(|address| !address.is_unspecified());
        Some(Self {
            address,
            host: port(host)?,
            guest: port(guest)?,
            transport,
        })
    }

    /// Whether both are the same port of the host, wherever they lead.
    pub fn same_door(&self, other: &Self) -> bool {
        (self.address, self.host, self.transport) == (other.address, other.host, other.transport)
    }

    /// Whether both claim the same port of the host.
    pub fn collides(&self, other: &Self) -> bool {
        let same_address =
            self.address.is_none() || other.address.is_none() || self.address == other.address;
        same_address && self.host == other.host && self.transport == other.transport
    }
}

/// A port number in plain decimals, not zero.
pub(super) fn port(text: &str) -> Option<u16> {
    let plain = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse::<u16>().ok().filter(|port| plain && *port != 0)
}

impl fmt::Display for PublishedPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(address) = self.address {
            write!(f, "{address}:")?;
        }
        write!(f, "{}:{}", self.host, self.guest)?;
        match self.transport {
            Transport::Tcp => Ok(()),
            Transport::Udp => f.write_str("/udp"),
        }
    }
}

impl Serialize for PublishedPort {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for PublishedPort {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let malformed = || serde::de::Error::custom("not `[address:]port:guest[/udp]`");
        Self::new(&text).ok_or_else(malformed)
    }
}
