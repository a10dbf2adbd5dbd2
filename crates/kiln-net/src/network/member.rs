//! The VMs of a bridge network: who they are, how they join and leave.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

use super::bridge::{BridgeError, BridgeNetwork};
use super::{GuestFacts, NetworkError};
use crate::link::{Port, Steps};
use crate::netlink::NetlinkError;
use crate::policy::{DomainName, PublishedPort};
use crate::ruleset::{Change, bridge};
use crate::subnet::{InterfaceName, MacAddr};
use crate::tap::{self, TapOwner};

/// One network card of one VM.
#[derive(Debug, Clone)]
pub struct MemberSpec {
    /// The VM; TAP name and MAC derive from it and from `card` (A6.3).
    pub vm: String,
    /// Which of its cards.
    pub card: String,
    /// Who may open the TAP.
    pub owner: TapOwner,
    /// The address it must have; else the lowest free one.
    pub address: Option<Ipv4Addr>,
    /// Its published ports.
    pub publish: Vec<PublishedPort>,
    /// Handed to the guest as it is.
    pub hostname: Option<DomainName>,
}

/// What must be stored to find a member again after a restart.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MemberRecord {
    /// Its TAP, in the host's namespace.
    pub tap: InterfaceName,
    /// Its MAC.
    pub mac: MacAddr,
    /// Its address.
    pub address: Ipv4Addr,
    /// Its published ports.
    pub publish: Vec<PublishedPort>,
}

#[derive(Debug)]
pub(super) struct Member {
    mac: MacAddr,
    address: Ipv4Addr,
}

impl BridgeNetwork {
    /// Let a VM join: TAP, address, pins, published ports.
    ///
    /// # Errors
    /// [`BridgeError`]; what was done is undone.
    pub fn join(&mut self, spec: MemberSpec) -> Result<(GuestFacts, MemberRecord), BridgeError> {
        let address = self.free_address(spec.address)?;
        let prefix = self.rules.host.identity.prefix();
        let tap =
            InterfaceName::for_tap(prefix, &spec.vm, &spec.card).map_err(NetworkError::from)?;
        let record = MemberRecord {
            tap: tap.clone(),
            mac: MacAddr::for_guest(&spec.vm, &spec.card),
            address,
            publish: spec.publish,
        };
        tap::create(&tap, spec.owner, None).map_err(NetworkError::Tap)?;
        let (mac, address) = (record.mac, record.address);
        self.members.insert(tap.clone(), Member { mac, address });
        if let Err(error) = self.admit(&record) {
            for failure in self.expel(&tap) {
                tracing::warn!(%tap, %failure, "a member was not removed whole");
            }
            return Err(error.into());
        }
        Ok((self.facts(&record, spec.hostname), record))
    }

    /// Let a VM leave; its address is free again. One that is not a member is none afterwards
    /// either.
    ///
    /// # Errors
    /// [`super::CloseError`] with all that failed.
    pub fn leave(&mut self, tap: &InterfaceName) -> Result<(), super::CloseError> {
        let failures = self.expel(tap);
        let interface = tap.clone();
        if failures.is_empty() {
            Ok(())
        } else {
            Err(super::CloseError {
                interface,
                failures,
            })
        }
    }

    /// What a member must be told.
    pub fn facts(&self, member: &MemberRecord, hostname: Option<DomainName>) -> GuestFacts {
        GuestFacts {
            tap: member.tap.clone(),
            mac: member.mac,
            address: member.address,
            prefix: self.subnet.cidr().prefix(),
            gateway: self.subnet.gateway(),
            resolver: self.subnet.gateway(),
            mtu: self.mtu,
            hostname,
        }
    }

    /// The other members that this one reaches.
    pub(crate) fn reachable_members(&self, from: Ipv4Addr) -> Vec<Ipv4Addr> {
        let others = self.members.values().map(|member| member.address);
        others
            .filter(|address| self.members_talk && *address != from)
            .collect()
    }

    /// How many VMs are members.
    pub fn members(&self) -> usize {
        self.members.len()
    }

    fn free_address(&self, wanted: Option<Ipv4Addr>) -> Result<Ipv4Addr, BridgeError> {
        let taken: BTreeSet<Ipv4Addr> =
            self.members.values().map(|member| member.address).collect();
        let Some(address) = wanted else {
            return self
                .subnet
                .next_free(&taken)
                .map_err(BridgeError::Exhausted);
        };
        if self.subnet.has_guest(address) && !taken.contains(&address) {
            Ok(address)
        } else {
            let subnet = self.subnet.cidr();
            Err(BridgeError::AddressTaken { address, subnet })
        }
    }

    /// Rules and pins first, then the port: it is never attached and unguarded.
    fn admit(&mut self, record: &MemberRecord) -> Result<(), NetworkError> {
        let published = record.publish.iter().map(|port| (*port, record.address));
        self.rules.add_source(record.address, published.collect())?;
        self.rules.host.apply_bridge(pins(record))?;
        let mut links = self.rules.host.links();
        let mut steps = Steps::new();
        steps.set_alias(&record.tap, &self.rules.host.identity.alias(&self.label));
        links.run(steps)?;
        let link = links.link(record.tap.as_str())?;
        let index = link
            .ok_or_else(|| NetworkError::Gone {
                interface: record.tap.clone(),
            })?
            .index;
        let mut steps = Steps::new();
        steps.no_ipv6(index);
        steps.set_mtu(index, self.mtu);
        steps.attach(
            index,
            Port {
                bridge: self.index,
                isolated: !self.members_talk,
            },
        );
        steps.add_station(index, record.mac);
        steps.add_neighbour(self.index, record.address, record.mac);
        steps.up(index);
        Ok(links.run(steps)?)
    }

    /// No traffic first, then no port. Does not stop at the first failure.
    pub(super) fn expel(&mut self, tap: &InterfaceName) -> Vec<NetlinkError> {
        let Some(member) = self.members.remove(tap) else {
            return Vec::new();
        };
        let mut failures = self.rules.remove_source(member.address);
        let pins = bridge::port(tap, member.mac, member.address);
        // Added once more first: what is not there cannot be deleted, and would stop the rest.
        let unpin = ensure(pins.clone()).chain(remove(pins));
        failures.extend(self.rules.host.apply_bridge(unpin.collect()).err());
        failures.extend(self.rules.host.links().delete(tap.as_str()).err());
        failures
    }

    /// A member that another process admitted.
    pub(super) fn know(&mut self, record: MemberRecord) {
        let published = record.publish.iter().map(|port| (*port, record.address));
        self.rules.subject.published.extend(published);
        self.rules.subject.sources.push(record.address);
        let (mac, address) = (record.mac, record.address);
        self.members.insert(record.tap, Member { mac, address });
    }

    /// Restore the pins of known members that are missing.
    pub(super) fn pin_known(&self) -> Result<(), NetlinkError> {
        let pins = self
            .members
            .iter()
            .flat_map(|(tap, member)| ensure(bridge::port(tap, member.mac, member.address)));
        self.rules.host.apply_bridge(pins.collect())
    }
}

fn remove(elements: Vec<(&'static str, crate::ruleset::Element)>) -> impl Iterator<Item = Change> {
    elements
        .into_iter()
        .map(|(set, element)| Change::DeleteElements {
            set: set.to_owned(),
            elements: vec![element],
        })
}

fn pins(record: &MemberRecord) -> Vec<Change> {
    ensure(bridge::port(&record.tap, record.mac, record.address)).collect()
}

fn ensure(elements: Vec<(&'static str, crate::ruleset::Element)>) -> impl Iterator<Item = Change> {
    elements
        .into_iter()
        .map(|(set, element)| Change::EnsureElements {
            set: set.to_owned(),
            elements: vec![element],
        })
}
