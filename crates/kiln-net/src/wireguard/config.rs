//! wg-quick text. Pure; the text is untrusted.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::str::FromStr;

use super::key::Key;
use crate::subnet::Cidr;

const MAX_LEN: usize = 64 << 10;
const MAX_PEERS: usize = 64;
const MAX_NETWORKS: usize = 1024;
const MTU: std::ops::RangeInclusive<u32> = 576..=9000;

/// Why a text was refused. Nothing of a key is ever repeated here.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// Longer than any sensible configuration.
    #[error("the text is longer than 64 KiB")]
    TooLong,
    /// A line that means nothing.
    #[error("line {line}: expected `[Interface]`, `[Peer]` or `Key = value`")]
    Syntax {
        /// From 1.
        line: usize,
    },
    /// A key that would run commands or change the file.
    #[error("line {line}: `{key}` is not allowed: commands are never run")]
    Forbidden {
        /// From 1.
        line: usize,
        /// The key.
        key: &'static str,
    },
    /// A key that WireGuard does not have in that section.
    #[error("line {line}: unknown key")]
    Unknown {
        /// From 1.
        line: usize,
    },
    /// A key given twice where one is meant.
    #[error("line {line}: given twice")]
    Repeated {
        /// From 1.
        line: usize,
    },
    /// A value that cannot be.
    #[error("line {line}: `{key}` has a value that cannot be")]
    Value {
        /// From 1.
        line: usize,
        /// The key.
        key: &'static str,
    },
    /// Something that must be there is not.
    #[error("`{key}` is missing")]
    Missing {
        /// What.
        key: &'static str,
    },
    /// More peers or networks than are sensible.
    #[error("line {line}: too many peers or networks")]
    TooMany {
        /// From 1.
        line: usize,
    },
}

/// Where a peer is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Endpoint {
    /// An address.
    Address(SocketAddr),
    /// A name, resolved when the tunnel comes up, and a port.
    Name(String, u16),
}

/// The other end of a tunnel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// Its public key.
    pub public_key: Key,
    /// The additional shared key.
    pub preshared_key: Option<Key>,
    /// Where it is.
    pub endpoint: Option<Endpoint>,
    /// The networks behind it (IPv6 ones are left out: guests have no IPv6).
    pub allowed: Vec<Cidr>,
    /// Seconds between keep-alives; 0 for none.
    pub keepalive: u16,
}

/// A tunnel as wg-quick describes it. `DNS` and `Table` are read over; IPv6 addresses are left out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Our private key.
    pub private_key: Key,
    /// Our addresses in the tunnel, and the prefix length of each.
    pub addresses: Vec<(Ipv4Addr, u8)>,
    /// The UDP port; any if not given.
    pub listen_port: Option<u16>,
    /// The MTU; 1420 if not given.
    pub mtu: Option<u32>,
    /// The mark of outer packets.
    pub fwmark: Option<u32>,
    /// The other ends.
    pub peers: Vec<Peer>,
}

#[derive(Default)]
struct Interface {
    private_key: Option<Key>,
    addresses: Vec<(Ipv4Addr, u8)>,
    listen_port: Option<u16>,
    mtu: Option<u32>,
    fwmark: Option<u32>,
}

#[derive(Default)]
struct PartialPeer {
    public_key: Option<Key>,
    preshared_key: Option<Key>,
    endpoint: Option<Endpoint>,
    allowed: Vec<Cidr>,
    keepalive: Option<u16>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Section {
    None,
    Interface,
    Peer,
}

struct Reader {
    section: Section,
    interface: Interface,
    peers: Vec<PartialPeer>,
    line: usize,
}

impl FromStr for Config {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, ConfigError> {
        if text.len() > MAX_LEN {
            return Err(ConfigError::TooLong);
        }
        let mut reader = Reader {
            section: Section::None,
            interface: Interface::default(),
            peers: Vec::new(),
            line: 0,
        };
        for line in text.lines() {
            reader.line += 1;
            reader.read(line.split('#').next().unwrap_or_default().trim())?;
        }
        reader.finish()
    }
}

impl Reader {
    fn read(&mut self, line: &str) -> Result<(), ConfigError> {
        if line.is_empty() {
            return Ok(());
        }
        if line.starts_with('[') {
            return self.begin(line);
        }
        let (key, value) = line
            .split_once('=')
            .ok_or(ConfigError::Syntax { line: self.line })?;
        let (key, value) = (key.trim().to_ascii_lowercase(), value.trim());
        match self.section {
            Section::None => Err(ConfigError::Syntax { line: self.line }),
            Section::Interface => self.interface(&key, value),
            Section::Peer => self.peer(&key, value),
        }
    }

    fn begin(&mut self, header: &str) -> Result<(), ConfigError> {
        self.section = match header.to_ascii_lowercase().as_str() {
            "[interface]" => Section::Interface,
            "[peer]" if self.peers.len() == MAX_PEERS => {
                return Err(ConfigError::TooMany { line: self.line });
            }
            "[peer]" => {
                self.peers.push(PartialPeer::default());
                Section::Peer
            }
            _ => return Err(ConfigError::Syntax { line: self.line }),
        };
        Ok(())
    }

    fn interface(&mut self, key: &str, value: &str) -> Result<(), ConfigError> {
        let line = self.line;
        let bad = |key| ConfigError::Value { line, key };
        let forbidden = |key| Err(ConfigError::Forbidden { line, key });
        let interface = &mut self.interface;
        match key {
            "privatekey" => once(
                &mut interface.private_key,
                Key::new(value),
                line,
                "PrivateKey",
            ),
            "address" => {
                for item in value.split(',') {
                    let (address, prefix) = address(item.trim()).ok_or(bad("Address"))?;
                    if let IpAddr::V4(address) = address {
                        interface.addresses.push((address, prefix));
                    }
                }
                within(interface.addresses.len(), line)
            }
            "listenport" => once(
                &mut interface.listen_port,
                number(value),
                line,
                "ListenPort",
            ),
            "mtu" => {
                let mtu = number::<u32>(value).filter(|mtu| MTU.contains(mtu));
                once(&mut interface.mtu, mtu, line, "MTU")
            }
            "fwmark" => once(&mut interface.fwmark, mark(value), line, "FwMark"),
            "dns" | "table" => Ok(()),
            "preup" => forbidden("PreUp"),
            "postup" => forbidden("PostUp"),
            "predown" => forbidden("PreDown"),
            "postdown" => forbidden("PostDown"),
            "saveconfig" => forbidden("SaveConfig"),
            _ => Err(ConfigError::Unknown { line }),
        }
    }

    fn peer(&mut self, key: &str, value: &str) -> Result<(), ConfigError> {
        let line = self.line;
        let Some(peer) = self.peers.last_mut() else {
            return Err(ConfigError::Syntax { line });
        };
        match key {
            "publickey" => once(&mut peer.public_key, Key::new(value), line, "PublicKey"),
            "presharedkey" => once(
                &mut peer.preshared_key,
                Key::new(value),
                line,
                "PresharedKey",
            ),
            "endpoint" => once(&mut peer.endpoint, endpoint(value), line, "Endpoint"),
            "allowedips" => {
                for item in value
                    .split(',')
                    .map(str::trim)
                    .filter(|item| !item.is_empty())
                {
                    let bad = ConfigError::Value {
                        line,
                        key: "AllowedIPs",
                    };
                    let (address, prefix) = address(item).ok_or(bad)?;
                    if let IpAddr::V4(address) = address {
                        peer.allowed.push(Cidr::of(address, prefix));
                    }
                }
                within(peer.allowed.len(), line)
            }
            "persistentkeepalive" => {
                let seconds = if value.eq_ignore_ascii_case("off") {
                    Some(0)
                } else {
                    number(value)
                };
                once(&mut peer.keepalive, seconds, line, "PersistentKeepalive")
            }
            _ => Err(ConfigError::Unknown { line }),
        }
    }

    fn finish(self) -> Result<Config, ConfigError> {
        let missing = |key| ConfigError::Missing { key };
        let Interface {
            private_key,
            addresses,
            listen_port,
            mtu,
            fwmark,
        } = self.interface;
        let private_key = private_key.ok_or(missing("PrivateKey"))?;
        if addresses.is_empty() {
            return Err(missing("Address"));
        }
        if self.peers.is_empty() {
            return Err(missing("[Peer]"));
        }
        let peers = self.peers.into_iter().map(|peer| {
            Ok(Peer {
                public_key: peer.public_key.ok_or(missing("PublicKey"))?,
                preshared_key: peer.preshared_key,
                endpoint: peer.endpoint,
                allowed: peer.allowed,
                keepalive: peer.keepalive.unwrap_or(0),
            })
        });
        let peers = peers.collect::<Result<_, _>>()?;
        Ok(Config {
            private_key,
            addresses,
            listen_port,
            mtu,
            fwmark,
            peers,
        })
    }
}

fn once<T>(
    slot: &mut Option<T>,
    value: Option<T>,
    line: usize,
    key: &'static str,
) -> Result<(), ConfigError> {
    if slot.is_some() {
        return Err(ConfigError::Repeated { line });
    }
    *slot = Some(value.ok_or(ConfigError::Value { line, key })?);
    Ok(())
}

fn within(count: usize, line: usize) -> Result<(), ConfigError> {
    if count > MAX_NETWORKS {
        Err(ConfigError::TooMany { line })
    } else {
        Ok(())
    }
}

fn number<T: FromStr>(text: &str) -> Option<T> {
    let plain = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if plain { text.parse().ok() } else { None }
}

fn mark(text: &str) -> Option<u32> {
    if text.eq_ignore_ascii_case("off") {
        return Some(0);
    }
    match text.strip_prefix("0x") {
        Some(digits) if digits.bytes().all(|byte| byte.is_ascii_hexdigit()) => {
            u32::from_str_radix(digits, 16).ok()
        }
        Some(_) => None,
        None => number(text),
    }
}

fn address(text: &str) -> Option<(IpAddr, u8)> {
    let (address, prefix) = match text.split_once('/') {
        Some((address, prefix)) => (address.parse().ok()?, Some(number::<u8>(prefix)?)),
        None => (text.parse::<IpAddr>().ok()?, None),
    };
    let longest = if address.is_ipv4() { 32 } else { 128 };
    let prefix = prefix.unwrap_or(longest);
    (prefix <= longest).then_some((address, prefix))
}

fn endpoint(text: &str) -> Option<Endpoint> {
    if let Ok(address) = text.parse::<SocketAddr>() {
        return (address.port() != 0).then_some(Endpoint::Address(address));
    }
    let (name, port) = text.rsplit_once(':')?;
    let port = number::<u16>(port).filter(|port| *port != 0)?;
    let name = crate::policy::DomainName::new(name)?;
    Some(Endpoint::Name(name.to_string(), port))
}

#[cfg(test)]
#[path = "config_tests.rs"]
mod tests;
