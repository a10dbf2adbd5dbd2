//! Links, addresses, routes, rules, neighbours and queues by rtnetlink.
//!
//! Knows the messages, not what they are for. Several steps travel in one `send`.

mod read;
mod shape;
mod steps;

use rustix::io::Errno;

pub(crate) use read::{AddressInfo, LinkInfo, RouteInfo, hostile};
pub(crate) use steps::{Port, Route, RuleSpec, Steps, Veth};

use crate::netlink::{Family, NetlinkError, Socket};

/// Marks routes and rules as ours (`proto 83` in `ip route`).
pub(crate) const PROTOCOL: u8 = 0x53;
/// Marks links as ours.
pub(crate) const LINK_GROUP: u32 = 4242;

/// A conversation with rtnetlink in one network namespace.
#[derive(Debug)]
pub(crate) struct Links {
    socket: Socket,
}

impl Links {
    /// Open in the calling thread's network namespace.
    pub(crate) fn open() -> Result<Self, NetlinkError> {
        Ok(Self {
            socket: Socket::open(Family::Route)?,
        })
    }

    /// Do all steps; the first refusal is returned, later steps may have been done.
    pub(crate) fn run(&mut self, steps: Steps) -> Result<(), NetlinkError> {
        self.socket.execute(steps.into_batch())
    }

    /// Delete a link if it is there.
    pub(crate) fn delete(&mut self, name: &str) -> Result<(), NetlinkError> {
        let mut steps = Steps::new();
        steps.delete_link(name);
        match self.run(steps) {
            Err(error) if error.errno() == Some(Errno::NODEV) => Ok(()),
            done => done,
        }
    }
}
