//! What rtnetlink tells: links, addresses, routes, rules.

use std::net::Ipv4Addr;

use rustix::io::Errno;

use super::steps::link;
use super::{Links, PROTOCOL, RuleSpec};
use crate::netlink::{ACK, Batch, DUMP, NetlinkError, attributes, text};
use crate::subnet::Cidr;

const GET_LINK: u16 = 18;
const GET_ADDRESS: u16 = 22;
const GET_ROUTE: u16 = 26;
const GET_RULE: u16 = 34;
const INET: u8 = 2;

/// A network interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LinkInfo {
    pub(crate) index: u32,
    pub(crate) name: String,
    pub(crate) alias: Option<String>,
    pub(crate) mtu: u32,
    pub(crate) kind: Option<String>,
    pub(crate) up: bool,
}

/// An IPv4 address of an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct AddressInfo {
    pub(crate) index: u32,
    pub(crate) address: Ipv4Addr,
    pub(crate) prefix: u8,
}

/// A route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RouteInfo {
    pub(crate) destination: Cidr,
    pub(crate) table: u32,
    pub(crate) link: Option<u32>,
    pub(crate) gateway: Option<Ipv4Addr>,
    pub(crate) ours: bool,
    /// The kernel's own entries: local addresses and broadcasts.
    pub(crate) local: bool,
    /// It refuses what it matches.
    pub(crate) unreachable: bool,
}

impl Links {
    /// One link, if there is one of that name.
    pub(crate) fn link(&mut self, name: &str) -> Result<Option<LinkInfo>, NetlinkError> {
        let mut batch = Batch::new();
        batch.message("look up a link", GET_LINK, ACK, &link(0, 0, 0), |a| {
            a.text(3, name);
        });
        batch.tolerate(Errno::NODEV);
        let mut found = None;
        self.socket
            .query(batch, |reply| found = link_info(reply.payload))?;
        Ok(found)
    }

    /// One link by its number.
    pub(crate) fn link_by_index(&mut self, index: u32) -> Result<Option<LinkInfo>, NetlinkError> {
        let mut batch = Batch::new();
        batch.message("look up a link", GET_LINK, ACK, &link(index, 0, 0), |_| {});
        batch.tolerate(Errno::NODEV);
        let mut found = None;
        self.socket
            .query(batch, |reply| found = link_info(reply.payload))?;
        Ok(found)
    }

    /// All links.
    pub(crate) fn links(&mut self) -> Result<Vec<LinkInfo>, NetlinkError> {
        self.dump("list links", GET_LINK, &link(0, 0, 0), link_info)
    }

    /// All IPv4 addresses.
    pub(crate) fn addresses(&mut self) -> Result<Vec<AddressInfo>, NetlinkError> {
        self.dump(
            "list addresses",
            GET_ADDRESS,
            &[INET, 0, 0, 0, 0, 0, 0, 0],
            address_info,
        )
    }

    /// All IPv4 routes of all tables.
    pub(crate) fn routes(&mut self) -> Result<Vec<RouteInfo>, NetlinkError> {
        let mut header = [0; 12];
        header[0] = INET;
        self.dump("list routes", GET_ROUTE, &header, route_info)
    }

    /// All IPv4 routing rules that we made.
    pub(crate) fn our_rules(&mut self) -> Result<Vec<RuleSpec>, NetlinkError> {
        let mut header = [0; 12];
        header[0] = INET;
        self.dump("list routing rules", GET_RULE, &header, our_rule)
    }

    /// The interface a packet to `address` would leave by, if any.
    pub(crate) fn way_to(&mut self, address: Ipv4Addr) -> Result<Option<u32>, NetlinkError> {
        let mut header = [0; 12];
        header[0] = INET;
        header[1] = 32;
        let mut batch = Batch::new();
        batch.message("look up a route", GET_ROUTE, ACK, &header, |a| {
            a.bytes(1, &address.octets());
        });
        batch.tolerate(Errno::NETUNREACH);
        let mut found = None;
        let answer = self.socket.query(batch, |reply| {
            found = route_info(reply.payload).and_then(|route| route.link);
        });
        match answer {
            // A route that refuses (unreachable, prohibit, blackhole) is no way either.
            Err(NetlinkError::Refused { .. }) => Ok(None),
            Err(error) => Err(error),
            Ok(()) => Ok(found),
        }
    }

    fn dump<T>(
        &mut self,
        step: &'static str,
        message: u16,
        header: &[u8],
        parse: impl Fn(&[u8]) -> Option<T>,
    ) -> Result<Vec<T>, NetlinkError> {
        let mut batch = Batch::new();
        batch.message(step, message, DUMP, header, |_| {});
        let mut all = Vec::new();
        self.socket
            .query(batch, |reply| all.extend(parse(reply.payload)))?;
        Ok(all)
    }
}

fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    bytes
        .get(offset..offset + 4)?
        .try_into()
        .ok()
        .map(u32::from_ne_bytes)
}

fn ipv4(bytes: &[u8]) -> Option<Ipv4Addr> {
    <[u8; 4]>::try_from(bytes).ok().map(Ipv4Addr::from)
}

fn link_info(payload: &[u8]) -> Option<LinkInfo> {
    let mut info = LinkInfo {
        index: u32_at(payload, 4)?,
        name: String::new(),
        alias: None,
        mtu: 0,
        kind: None,
        up: u32_at(payload, 8)? & 1 != 0,
    };
    for (kind, value) in attributes(payload.get(16..)?) {
        match kind {
            3 => info.name = text(value),
            4 => info.mtu = u32_at(value, 0)?,
            18 => {
                info.kind = attributes(value)
                    .find(|(k, _)| *k == 1)
                    .map(|(_, v)| text(v))
            }
            20 => info.alias = Some(text(value)),
            _ => {}
        }
    }
    Some(info)
}

fn address_info(payload: &[u8]) -> Option<AddressInfo> {
    let find = |wanted| attributes(payload.get(8..)?).find(|(kind, _)| *kind == wanted);
    let (_, local) = find(2).or_else(|| find(1))?;
    Some(AddressInfo {
        index: u32_at(payload, 4)?,
        address: ipv4(local)?,
        prefix: *payload.get(1)?,
    })
}

fn route_info(payload: &[u8]) -> Option<RouteInfo> {
    const UNICAST: u8 = 1;
    const UNREACHABLE: u8 = 7;
    let header = payload.get(..12)?;
    let mut network = Ipv4Addr::UNSPECIFIED;
    let mut route = RouteInfo {
        destination: Cidr::ALL,
        table: header[4].into(),
        link: None,
        gateway: None,
        ours: header[5] == PROTOCOL,
        local: header[7] != UNICAST,
        unreachable: header[7] == UNREACHABLE,
    };
    for (kind, value) in attributes(&payload[12..]) {
        match kind {
            1 => network = ipv4(value)?,
            4 => route.link = u32_at(value, 0),
            5 => route.gateway = ipv4(value),
            15 => route.table = u32_at(value, 0)?,
            _ => {}
        }
    }
    route.destination = Cidr::new(network, header[1]).ok()?;
    Some(route)
}

fn our_rule(payload: &[u8]) -> Option<RuleSpec> {
    let header = payload.get(..12)?;
    let mut from = Ipv4Addr::UNSPECIFIED;
    let (mut table, mut priority, mut ours) = (u32::from(header[4]), 0, false);
    for (kind, value) in attributes(&payload[12..]) {
        match kind {
            2 => from = ipv4(value)?,
            6 => priority = u32_at(value, 0)?,
            15 => table = u32_at(value, 0)?,
            21 => ours = value == [PROTOCOL],
            _ => {}
        }
    }
    ours.then_some(RuleSpec {
        from: Cidr::new(from, header[2]).ok()?,
        table,
        priority,
    })
}

/// For fuzzing.
pub(crate) fn hostile(payload: &[u8]) {
    let _ = (link_info(payload), address_info(payload));
    let _ = (route_info(payload), our_rule(payload));
}
