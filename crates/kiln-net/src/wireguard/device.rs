//! Configures a WireGuard device by generic netlink.

use std::net::SocketAddr;

use super::config::{Config, Peer};
use crate::netlink::{ACK, Attributes, Batch, Family, NetlinkError, Socket, attributes};
use crate::subnet::InterfaceName;

const CONTROLLER: u16 = 0x10;
const GET_FAMILY: u8 = 3;
const SET_DEVICE: u8 = 1;
const REPLACE_PEERS: u32 = 1;
const REPLACE_ALLOWED: u32 = 2;
const INET: u16 = 2;
const INET6: u16 = 10;

/// Give the device its keys and peers, in place of those it has. `endpoints` are the resolved ones,
/// in the order of the peers.
pub(super) fn configure(
    interface: &InterfaceName,
    config: &Config,
    endpoints: &[Option<SocketAddr>],
) -> Result<(), NetlinkError> {
    let mut socket = Socket::open(Family::Generic)?;
    let family = family(&mut socket)?;
    socket.execute(request(family, interface, config, endpoints))
}

/// The number that the kernel gave to WireGuard.
fn family(socket: &mut Socket) -> Result<u16, NetlinkError> {
    const STEP: &str = "find WireGuard in the kernel";
    let mut batch = Batch::new();
    batch.message(STEP, CONTROLLER, ACK, &header(GET_FAMILY), |a| {
        a.text(2, "wireguard");
    });
    let mut found = None;
    socket.query(batch, |reply| {
        let id =
            attributes(reply.payload.get(4..).unwrap_or_default()).find(|(kind, _)| *kind == 1);
        found =
            id.and_then(|(_, value)| Some(u16::from_ne_bytes(value.get(..2)?.try_into().ok()?)));
    })?;
    found.ok_or(NetlinkError::Malformed { step: STEP })
}

fn header(command: u8) -> [u8; 4] {
    const VERSION: u8 = 1;
    [command, VERSION, 0, 0]
}

fn request(
    family: u16,
    interface: &InterfaceName,
    config: &Config,
    endpoints: &[Option<SocketAddr>],
) -> Batch {
    let mut batch = Batch::new();
    batch.message(
        "configure a WireGuard tunnel",
        family,
        ACK,
        &header(SET_DEVICE),
        |a| {
            a.text(2, interface.as_str());
            a.bytes(3, config.private_key.bytes()).u32(5, REPLACE_PEERS);
            if let Some(port) = config.listen_port {
                a.u16(6, port);
            }
            if let Some(mark) = config.fwmark {
                a.u32(7, mark);
            }
            a.nest(8, |list| {
                let endpoints = endpoints.iter().copied().chain(std::iter::repeat(None));
                for (one, endpoint) in config.peers.iter().zip(endpoints) {
                    list.nest(0, |a| peer(a, one, endpoint));
                }
            });
        },
    );
    batch
}

fn peer(a: &mut Attributes<'_>, peer: &Peer, endpoint: Option<SocketAddr>) {
    a.bytes(1, peer.public_key.bytes()).u32(3, REPLACE_ALLOWED);
    if let Some(key) = &peer.preshared_key {
        a.bytes(2, key.bytes());
    }
    if let Some(address) = endpoint {
        a.bytes(4, &socket_address(address));
    }
    a.u16(5, peer.keepalive);
    a.nest(9, |list| {
        for network in &peer.allowed {
            list.nest(0, |one| {
                one.u16(1, INET)
                    .bytes(2, &network.network().octets())
                    .u8(3, network.prefix());
            });
        }
    });
}

/// `struct sockaddr_in` or `sockaddr_in6`.
fn socket_address(address: SocketAddr) -> Vec<u8> {
    let family = if address.is_ipv4() { INET } else { INET6 };
    let mut bytes = [family.to_ne_bytes(), address.port().to_be_bytes()].concat();
    match address {
        SocketAddr::V4(v4) => {
            bytes.extend_from_slice(&v4.ip().octets());
            bytes.resize(16, 0);
        }
        SocketAddr::V6(v6) => {
            bytes.extend_from_slice(&v6.flowinfo().to_be_bytes());
            bytes.extend_from_slice(&v6.ip().octets());
            bytes.extend_from_slice(&v6.scope_id().to_ne_bytes());
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_request_carries_what_the_text_said() {
        let config: Config = "[Interface]
            PrivateKey = yAnz5TF+lXXJte14tji3zlMNq+hd2rYUIgJBgB3fBmk=
            Address = 10.77.0.2/32
            ListenPort = 51820
            [Peer]
            PublicKey = xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=
            Endpoint = 203.0.113.5:51820
            AllowedIPs = 0.0.0.0/0, 10.0.0.0/8
            PersistentKeepalive = 25"
            .parse()
            .unwrap();
        let name = InterfaceName::new("wg0").unwrap();
        let endpoint = Some("203.0.113.5:51820".parse().unwrap());
        let mut batch = request(33, &name, &config, &[endpoint]);
        let bytes = batch.numbered(1).to_vec();
        assert_eq!(bytes[4..6], 33_u16.to_ne_bytes());
        let device: Vec<_> = attributes(&bytes[20..]).collect();
        let of = |kind| device.iter().find(|(k, _)| *k == kind).unwrap().1;
        assert_eq!(of(2), b"wg0\0");
        assert_eq!(of(3).len(), 32);
        assert_eq!(of(6), 51820_u16.to_ne_bytes());
        let peers: Vec<_> = attributes(of(8)).collect();
        assert_eq!(peers.len(), 1);
        let peer: Vec<_> = attributes(peers[0].1).collect();
        let of = |kind| peer.iter().find(|(k, _)| *k == kind).unwrap().1;
        assert_eq!(of(1).len(), 32);
        assert_eq!(of(4)[2..8], [0xca, 0x6c, 203, 0, 113, 5]);
        assert_eq!(of(4).len(), 16);
        assert_eq!(of(5), 25_u16.to_ne_bytes());
        let allowed: Vec<_> = attributes(of(9)).collect();
        assert_eq!(allowed.len(), 2);
        let second: Vec<_> = attributes(allowed[1].1).collect();
        assert_eq!(
            second,
            [
                (1, &2_u16.to_ne_bytes()[..]),
                (2, &[10, 0, 0, 0][..]),
                (3, &[8][..])
            ]
        );
    }
}
