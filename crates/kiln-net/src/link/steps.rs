//! What can be asked of rtnetlink, as messages in a batch. Pure.

use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::io::Errno;

use super::{LINK_GROUP, PROTOCOL};
use crate::netlink::{ACK, Attributes, Batch, CREATE, EXCL, REPLACE};
use crate::subnet::{Cidr, InterfaceName, MacAddr};

const NEW_LINK: u16 = 16;
const DELETE_LINK: u16 = 17;
const NEW_ADDRESS: u16 = 20;
const DELETE_ADDRESS: u16 = 21;
const NEW_ROUTE: u16 = 24;
const DELETE_ROUTE: u16 = 25;
const NEW_NEIGHBOUR: u16 = 28;
const NEW_RULE: u16 = 32;
const DELETE_RULE: u16 = 33;

const INET: u8 = 2;
const BRIDGE: u8 = 7;
const INET_SPEC: u16 = 2;
const INET6_SPEC: u16 = 10;
const UP: u32 = 1;
const PERMANENT: u16 = 0x80;
const FORWARDING: u16 = 1;
const REVERSE_PATH: u16 = 8;
const ROUTE_LOCALNET: u16 = 26;
const MAIN_TABLE: u8 = 254;
const LINK_SCOPE: u8 = 253;

/// A pair of virtual Ethernet devices, the far end born in another namespace.
#[derive(Debug)]
pub(crate) struct Veth<'a> {
    pub(crate) name: &'a InterfaceName,
    pub(crate) mac: MacAddr,
    pub(crate) alias: &'a str,
    pub(crate) mtu: u32,
    pub(crate) peer_name: &'a str,
    pub(crate) peer_index: u32,
    pub(crate) peer_mac: MacAddr,
    pub(crate) namespace: BorrowedFd<'a>,
}

/// What a route does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RouteKind {
    /// Reachable on the link itself, or through the gateway.
    Unicast,
    /// Refused with "unreachable".
    Unreachable,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Route {
    pub(crate) destination: Cidr,
    pub(crate) kind: RouteKind,
    pub(crate) gateway: Option<Ipv4Addr>,
    pub(crate) source: Option<Ipv4Addr>,
    pub(crate) link: Option<u32>,
    /// `None` is the main table.
    pub(crate) table: Option<u32>,
    pub(crate) metric: Option<u32>,
}

impl Route {
    pub(crate) fn to(destination: Cidr, link: u32) -> Self {
        Self {
            destination,
            kind: RouteKind::Unicast,
            gateway: None,
            source: None,
            link: Some(link),
            table: None,
            metric: None,
        }
    }
}

/// What matches only when nothing else does.
const LAST_METRIC: u32 = u32::MAX;

impl Route {
    /// Refuse everything that no other route of the table takes.
    pub(crate) fn refusal(table: u32) -> Self {
        Self {
            destination: Cidr::ALL,
            kind: RouteKind::Unreachable,
            gateway: None,
            source: None,
            link: None,
            table: Some(table),
            metric: Some(LAST_METRIC),
        }
    }
}

/// Which table routes packets from a network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RuleSpec {
    pub(crate) from: Cidr,
    pub(crate) table: u32,
    pub(crate) priority: u32,
}

/// How a port of a bridge behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Port {
    pub(crate) bridge: u32,
    /// Frames to other isolated ports are dropped.
    pub(crate) isolated: bool,
}

/// Messages that are sent together.
#[derive(Debug, Default)]
pub(crate) struct Steps {
    pub(super) batch: Batch,
}

impl Steps {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    pub(crate) fn into_batch(self) -> Batch {
        self.batch
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.batch.is_empty()
    }

    /// The peer must not be created up: it is opened before the pair is joined.
    pub(crate) fn add_veth(&mut self, veth: &Veth<'_>) {
        self.batch.message(
            "create a veth pair",
            NEW_LINK,
            ACK | CREATE | EXCL,
            &link(0, 0, 0),
            |a| {
                a.text(3, veth.name.as_str())
                    .bytes(1, &veth.mac.0)
                    .u32(4, veth.mtu);
                a.u32(27, LINK_GROUP);
                one_queue(a);
                a.nest(18, |info| {
                    info.text(1, "veth").nest(2, |data| {
                        data.nest(1, |peer| {
                            peer.header(&link(veth.peer_index, 0, 0))
                                .text(3, veth.peer_name);
                            peer.bytes(1, &veth.peer_mac.0).u32(4, veth.mtu);
                            peer.u32(28, veth.namespace.as_raw_fd().cast_unsigned());
                            one_queue(peer);
                        });
                    });
                });
            },
        );
        self.set_alias(veth.name, veth.alias);
    }

    /// A link of a kind that needs no further data: `bridge`, `wireguard`.
    pub(crate) fn add_link(
        &mut self,
        name: &InterfaceName,
        kind: &'static str,
        mac: Option<MacAddr>,
        mtu: u32,
        alias: &str,
    ) {
        self.batch.message(
            "create a link",
            NEW_LINK,
            ACK | CREATE | EXCL,
            &link(0, 0, 0),
            |a| {
                a.text(3, name.as_str()).u32(4, mtu).u32(27, LINK_GROUP);
                if let Some(mac) = mac {
                    a.bytes(1, &mac.0);
                }
                a.nest(18, |info| {
                    info.text(1, kind);
                });
            },
        );
        self.set_alias(name, alias);
    }

    /// The alias says whose a link is; it is found by it after a crash.
    pub(crate) fn set_alias(&mut self, name: &InterfaceName, alias: &str) {
        self.batch
            .message("name a link's owner", NEW_LINK, ACK, &link(0, 0, 0), |a| {
                a.text(3, name.as_str()).bytes(20, alias.as_bytes());
            });
    }

    pub(crate) fn delete_link(&mut self, name: &str) {
        self.batch
            .message("delete a link", DELETE_LINK, ACK, &link(0, 0, 0), |a| {
                a.text(3, name);
            });
    }

    pub(crate) fn set_hardware(&mut self, index: u32, mac: MacAddr, mtu: u32) {
        self.batch.message(
            "set a link's address and MTU",
            NEW_LINK,
            ACK,
            &link(index, 0, 0),
            |a| {
                a.bytes(1, &mac.0).u32(4, mtu);
            },
        );
    }

    pub(crate) fn set_mtu(&mut self, index: u32, mtu: u32) {
        self.batch
            .message("set a link's MTU", NEW_LINK, ACK, &link(index, 0, 0), |a| {
                a.u32(4, mtu);
            });
    }

    pub(crate) fn up(&mut self, index: u32) {
        self.batch.message(
            "bring a link up",
            NEW_LINK,
            ACK,
            &link(index, UP, UP),
            |_| {},
        );
    }

    /// Let the kernel forward what comes in here; no sysctl is touched, and no other link.
    pub(crate) fn forward(&mut self, index: u32) {
        self.ipv4_setting("let a link forward", index, FORWARDING, 1);
    }

    /// Let the host's loopback address be translated on its way to this link.
    pub(crate) fn route_localnet(&mut self, index: u32, on: bool) {
        self.ipv4_setting(
            "let loopback be published",
            index,
            ROUTE_LOCALNET,
            on.into(),
        );
    }

    /// Accept packets whose answer would leave by another link.
    pub(crate) fn loose_reverse_path(&mut self, index: u32) {
        self.ipv4_setting("loosen a link's reverse path check", index, REVERSE_PATH, 2);
    }

    fn ipv4_setting(&mut self, step: &'static str, index: u32, setting: u16, value: u32) {
        self.batch
            .message(step, NEW_LINK, ACK, &link(index, 0, 0), |a| {
                a.nest(26, |spec| {
                    spec.nest(INET_SPEC, |inet| {
                        inet.nest(1, |settings| {
                            settings.u32(setting, value);
                        });
                    });
                });
            });
    }

    /// No IPv6 link-local address. Must be a message of its own, before the link comes up.
    pub(crate) fn no_ipv6(&mut self, index: u32) {
        self.batch.message(
            "keep IPv6 off a link",
            NEW_LINK,
            ACK,
            &link(index, 0, 0),
            |a| {
                a.nest(26, |spec| {
                    spec.nest(INET6_SPEC, |inet6| {
                        inet6.u8(8, 1);
                    });
                });
            },
        );
        // A kernel without IPv6 needs no telling.
        self.batch.tolerate(Errno::AFNOSUPPORT);
    }

    pub(crate) fn add_address(&mut self, index: u32, address: Ipv4Addr, prefix: u8) {
        let flags = ACK | CREATE | REPLACE;
        self.batch.message(
            "add an address",
            NEW_ADDRESS,
            flags,
            &ifaddr(index, prefix),
            |a| {
                a.bytes(2, &address.octets()).bytes(1, &address.octets());
            },
        );
    }

    pub(crate) fn delete_address(&mut self, index: u32, address: Ipv4Addr, prefix: u8) {
        self.batch.message(
            "delete an address",
            DELETE_ADDRESS,
            ACK,
            &ifaddr(index, prefix),
            |a| {
                a.bytes(2, &address.octets());
            },
        );
        self.batch.tolerate(Errno::ADDRNOTAVAIL);
    }

    /// Add a route; one that exists is a refusal.
    pub(crate) fn add_route(&mut self, route: &Route) {
        self.route("add a route", NEW_ROUTE, ACK | CREATE | EXCL, route);
    }

    /// Add a route unless it is there.
    pub(crate) fn ensure_route(&mut self, route: &Route) {
        self.add_route(route);
        self.batch.tolerate(Errno::EXIST);
    }

    pub(crate) fn delete_route(&mut self, route: &Route) {
        self.route("delete a route", DELETE_ROUTE, ACK, route);
        self.batch.tolerate(Errno::SRCH);
    }

    fn route(&mut self, step: &'static str, message: u16, flags: u16, route: &Route) {
        let header = rtmsg(route);
        self.batch.message(step, message, flags, &header, |a| {
            if route.destination.prefix() > 0 {
                a.bytes(1, &route.destination.network().octets());
            }
            if let Some(gateway) = route.gateway {
                a.bytes(5, &gateway.octets());
            }
            if let Some(source) = route.source {
                a.bytes(7, &source.octets());
            }
            if let Some(link) = route.link {
                a.u32(4, link);
            }
            if let Some(metric) = route.metric {
                a.u32(6, metric);
            }
            if let Some(table) = route.table {
                a.u32(15, table);
            }
        });
    }

    pub(crate) fn add_rule(&mut self, rule: &RuleSpec) {
        self.rule("add a routing rule", NEW_RULE, ACK | CREATE | EXCL, rule);
    }

    /// Add a rule unless it is there.
    pub(crate) fn ensure_rule(&mut self, rule: &RuleSpec) {
        self.add_rule(rule);
        self.batch.tolerate(Errno::EXIST);
    }

    pub(crate) fn delete_rule(&mut self, rule: &RuleSpec) {
        self.rule("delete a routing rule", DELETE_RULE, ACK, rule);
        self.batch.tolerate(Errno::NOENT);
    }

    fn rule(&mut self, step: &'static str, message: u16, flags: u16, rule: &RuleSpec) {
        const TO_TABLE: u8 = 1;
        let header = [
            INET,
            0,
            rule.from.prefix(),
            0,
            0,
            0,
            0,
            TO_TABLE,
            0,
            0,
            0,
            0,
        ];
        self.batch.message(step, message, flags, &header, |a| {
            a.bytes(2, &rule.from.network().octets());
            a.u32(6, rule.priority).u32(15, rule.table).u8(21, PROTOCOL);
        });
    }

    /// A neighbour that is never asked for: no ARP, and none to poison.
    pub(crate) fn add_neighbour(&mut self, index: u32, address: Ipv4Addr, mac: MacAddr) {
        let header = neighbour(INET, index, 0);
        self.batch.message(
            "add a neighbour",
            NEW_NEIGHBOUR,
            ACK | CREATE | REPLACE,
            &header,
            |a| {
                a.bytes(1, &address.octets()).bytes(2, &mac.0);
            },
        );
    }

    /// Put a link under a bridge: nothing learned, nothing flooded to it.
    pub(crate) fn attach(&mut self, index: u32, port: Port) {
        self.put_under(index, port.bridge);
        self.batch.message(
            "set up a bridge port",
            NEW_LINK,
            ACK,
            &link(index, 0, 0),
            |a| {
                a.nest(18, |info| {
                    info.text(4, "bridge").nest(5, |settings| {
                        settings.u8(8, 0).u8(9, 0).u8(33, port.isolated.into());
                    });
                });
            },
        );
    }

    /// Put a link under a bridge, as a port of the usual kind.
    pub(crate) fn put_under(&mut self, index: u32, bridge: u32) {
        self.batch.message(
            "attach a port to a bridge",
            NEW_LINK,
            ACK,
            &link(index, 0, 0),
            |a| {
                a.u32(10, bridge);
            },
        );
    }

    /// Say which MAC lives behind a bridge port.
    pub(crate) fn add_station(&mut self, index: u32, mac: MacAddr) {
        const OF_THE_BRIDGE: u8 = 0x04;
        const NO_ARP: u16 = 0x40;
        let mut header = neighbour(BRIDGE, index, OF_THE_BRIDGE);
        header[8..10].copy_from_slice(&NO_ARP.to_ne_bytes());
        self.batch.message(
            "pin a MAC to a port",
            NEW_NEIGHBOUR,
            ACK | CREATE | REPLACE,
            &header,
            |a| {
                a.bytes(2, &mac.0);
            },
        );
    }
}

/// By default a veth gets a queue per processor each way, with files for each, and uses one.
fn one_queue(link: &mut Attributes<'_>) {
    link.u32(31, 1).u32(32, 1);
}

/// `struct ifinfomsg`.
pub(super) fn link(index: u32, flags: u32, change: u32) -> [u8; 16] {
    let mut header = [0; 16];
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    header[8..12].copy_from_slice(&flags.to_ne_bytes());
    header[12..16].copy_from_slice(&change.to_ne_bytes());
    header
}

fn ifaddr(index: u32, prefix: u8) -> [u8; 8] {
    let mut header = [INET, prefix, 0, 0, 0, 0, 0, 0];
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    header
}

fn rtmsg(route: &Route) -> [u8; 12] {
    let scope = match (route.kind, route.gateway) {
        (RouteKind::Unicast, None) => LINK_SCOPE,
        _ => 0,
    };
    let kind = match route.kind {
        RouteKind::Unicast => 1,
        RouteKind::Unreachable => 7,
    };
    // A number above 255 travels in the attribute only.
    let table = route
        .table
        .map_or(MAIN_TABLE, |table| u8::try_from(table).unwrap_or(0));
    [
        INET,
        route.destination.prefix(),
        0,
        0,
        table,
        PROTOCOL,
        scope,
        kind,
        0,
        0,
        0,
        0,
    ]
}

fn neighbour(family: u8, index: u32, flags: u8) -> [u8; 12] {
    let mut header = [0; 12];
    header[0] = family;
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    header[8..10].copy_from_slice(&PERMANENT.to_ne_bytes());
    header[10] = flags;
    header
}
