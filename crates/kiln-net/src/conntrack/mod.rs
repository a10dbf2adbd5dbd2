//! Finds and forgets the flows that the kernel tracks for one sandbox.
//!
//! Flows are found by mark, then checked by address: marks are shared with other programs on the
//! host, addresses of our pool are not. So nobody else's flow is ever touched.

mod text;

use std::net::Ipv4Addr;

use rustix::io::Errno;
use text::Listing;

use crate::netlink::{ACK, Batch, DUMP, Family, NetlinkError, Socket, attributes};

const UPDATE: u16 = 1 << 8;
const GET: u16 = (1 << 8) | 1;
const DELETE: u16 = (1 << 8) | 2;
const IPV4_HEADER: [u8; 4] = [2, 0, 0, 0];
const NESTED: u16 = 0x8000;

/// A tracked flow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Flow {
    /// The kernel's own description, to give back.
    original: Vec<u8>,
    /// Of this very flow; without, whichever has the description by then.
    id: Option<Vec<u8>>,
    pub(crate) mark: u32,
    /// Who began it.
    pub(crate) from: Ipv4Addr,
    /// Whom it was sent to, before any redirection.
    pub(crate) to: Ipv4Addr,
    /// Who really answers.
    pub(crate) answered_by: Ipv4Addr,
    pub(crate) answered_port: Option<u16>,
    pub(crate) protocol: u8,
    pub(crate) port: Option<u16>,
}

/// A conversation with conntrack.
#[derive(Debug)]
pub(crate) struct Conntrack {
    socket: Socket,
    /// Whether the kernel finds flows to forget by address (not before Linux 6.2 or so).
    finds: bool,
    /// The quick way to list flows, where there is one.
    listing: Option<Listing>,
}

impl Conntrack {
    pub(crate) fn open() -> Result<Self, NetlinkError> {
        Ok(Self {
            socket: Socket::open(Family::Netfilter)?,
            finds: true,
            listing: Listing::open(),
        })
    }

    /// Forget all flows that one of `addresses` takes part in. Where the kernel cannot find them
    /// by address, those with the mark only.
    pub(crate) fn forget_all(
        &mut self,
        mark: u32,
        mask: u32,
        addresses: &[Ipv4Addr],
    ) -> Result<(), NetlinkError> {
        if self.finds {
            match self.socket.execute(by_address(addresses)) {
                Err(error) if error.errno() == Some(Errno::INVAL) => self.finds = false,
                done => return done,
            }
        }
        let flows = self.flows(mark, mask, addresses)?;
        self.forget(&flows)
    }

    /// The flows whose mark, under `mask`, is `mark` and that one of `addresses` takes part in.
    pub(crate) fn flows(
        &mut self,
        mark: u32,
        mask: u32,
        addresses: &[Ipv4Addr],
    ) -> Result<Vec<Flow>, NetlinkError> {
        let wanted = |ends: &[Ipv4Addr; 2], found: u32| {
            ends.iter().any(|end| addresses.contains(end)) && found & mask == mark
        };
        let listed = self.listing.as_ref().and_then(|it| it.flows(wanted));
        match listed {
            Some(flows) => Ok(flows),
            None => self.flows_by_netlink(mark, mask, wanted),
        }
    }

    fn flows_by_netlink(
        &mut self,
        mark: u32,
        mask: u32,
        wanted: impl Fn(&[Ipv4Addr; 2], u32) -> bool,
    ) -> Result<Vec<Flow>, NetlinkError> {
        let mut batch = Batch::new();
        batch.message("list tracked flows", GET, DUMP, &IPV4_HEADER, |a| {
            a.be32(8, mark).be32(21, mask);
        });
        let mut flows = Vec::new();
        self.socket
            .query(batch, |reply| flows.extend(flow(reply.payload)))?;
        flows.retain(|flow: &Flow| wanted(&[flow.from, flow.answered_by], flow.mark));
        Ok(flows)
    }

    /// Give flows another mark.
    pub(crate) fn mark(&mut self, flows: &[Flow], mark: u32) -> Result<(), NetlinkError> {
        let mut batch = Batch::new();
        for flow in flows {
            batch.message("mark a tracked flow", UPDATE, ACK, &IPV4_HEADER, |a| {
                a.bytes(1 | NESTED, &flow.original).be32(8, mark);
            });
            batch.tolerate(Errno::NOENT);
        }
        self.socket.execute(batch)
    }

    /// Forget flows: their next packet is judged as a new one.
    pub(crate) fn forget(&mut self, flows: &[Flow]) -> Result<(), NetlinkError> {
        let mut batch = Batch::new();
        for flow in flows {
            batch.message("forget a tracked flow", DELETE, ACK, &IPV4_HEADER, |a| {
                a.bytes(1 | NESTED, &flow.original);
                if let Some(id) = &flow.id {
                    a.bytes(12, id);
                }
            });
            batch.tolerate(Errno::NOENT);
        }
        self.socket.execute(batch)
    }
}

/// Deletes what was begun by an address, and what is answered by it. The kernel walks its table
/// about ten times faster than it lists it.
fn by_address(addresses: &[Ipv4Addr]) -> Batch {
    const BY_SOURCE: u32 = 1;
    let mut batch = Batch::new();
    for address in addresses {
        for direction in [1_u16, 2] {
            let flags = |of| if of == direction { BY_SOURCE } else { 0 };
            batch.message("forget tracked flows", DELETE, ACK, &IPV4_HEADER, |a| {
                a.nest(direction, |tuple| {
                    tuple.nest(1, |ip| {
                        ip.bytes(1, &address.octets());
                    });
                });
                a.nest(25, |filter| {
                    filter.u32(1, flags(1)).u32(2, flags(2));
                });
            });
            batch.tolerate(Errno::NOENT);
        }
    }
    batch
}

fn flow(payload: &[u8]) -> Option<Flow> {
    let find = |wanted| {
        let found = attributes(payload.get(4..)?).find(|(kind, _)| *kind == wanted);
        found.map(|(_, value)| value)
    };
    let original = find(1)?;
    let (from, to) = addresses(original)?;
    let (protocol, port) = protocol(original)?;
    let reply = find(2)?;
    let (answered_by, _) = addresses(reply)?;
    let mark = find(8).and_then(|value| Some(u32::from_be_bytes(value.get(..4)?.try_into().ok()?)));
    Some(Flow {
        original: original.to_vec(),
        id: Some(find(12)?.to_vec()),
        mark: mark.unwrap_or(0),
        from,
        to,
        answered_by,
        answered_port: source_port(reply),
        protocol,
        port,
    })
}

fn inner(tuple: &[u8], part: u16, wanted: u16) -> Option<&[u8]> {
    let (_, part) = attributes(tuple).find(|(kind, _)| *kind == part)?;
    attributes(part)
        .find(|(kind, _)| *kind == wanted)
        .map(|(_, value)| value)
}

fn addresses(tuple: &[u8]) -> Option<(Ipv4Addr, Ipv4Addr)> {
    let read = |wanted| {
        let octets: [u8; 4] = inner(tuple, 1, wanted)?.try_into().ok()?;
        Some(Ipv4Addr::from(octets))
    };
    Some((read(1)?, read(2)?))
}

fn port(tuple: &[u8], wanted: u16) -> Option<u16> {
    inner(tuple, 2, wanted)?
        .try_into()
        .ok()
        .map(u16::from_be_bytes)
}

fn source_port(tuple: &[u8]) -> Option<u16> {
    port(tuple, 2)
}

fn protocol(tuple: &[u8]) -> Option<(u8, Option<u16>)> {
    Some((*inner(tuple, 2, 1)?.first()?, port(tuple, 3)))
}

/// For fuzzing.
pub(crate) fn hostile(payload: &[u8]) {
    let _ = flow(payload);
    text::hostile(payload);
}
