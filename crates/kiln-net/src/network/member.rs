//! The VMs of a bridge network: who they are, how they join and leave.

use std::collections::BTreeSet;
use std::io;
use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

use super::bridge::{BridgeError, BridgeNetwork};
use super::seat::{self, Occupant};
use super::{GuestFacts, NetworkError};
use crate::link::{Port, Steps};
use crate::netlink::NetlinkError;
use crate::netns::NetNamespace;
use crate::policy::{Bandwidth, DomainName, Policy, PublishedPort};
use crate::ruleset::{Change, Element, bridge};
use crate::subnet::{InterfaceName, MacAddr};
use crate::tap::TapOwner;

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
    /// Its limits.
    pub bandwidth: Bandwidth,
    /// Handed to the guest as it is.
    pub hostname: Option<DomainName>,
}

/// What must be stored to find a member again after a restart.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MemberRecord {
    /// Its TAP, in the namespace of its VMM, and the end on the host of the wire from there.
    pub tap: InterfaceName,
    /// Its MAC.
    pub mac: MacAddr,
    /// Its address.
    pub address: Ipv4Addr,
    /// Its published ports.
    pub publish: Vec<PublishedPort>,
    /// Its limits.
    #[serde(default)]
    pub bandwidth: Bandwidth,
}

/// A VM that has joined a network.
#[derive(Debug)]
pub struct Joined {
    /// What the VM must be told.
    pub facts: GuestFacts,
    /// What to store.
    pub record: MemberRecord,
    /// The namespace that the VMM must run in; it lives as long as this value or the VMM does.
    pub namespace: NetNamespace,
}

#[derive(Debug)]
pub(super) struct Member {
    mac: MacAddr,
    address: Ipv4Addr,
    bandwidth: Bandwidth,
}

impl Member {
    fn of(record: &MemberRecord) -> Self {
        Self {
            mac: record.mac,
            address: record.address,
            bandwidth: record.bandwidth,
        }
    }

    /// What the table for bridges holds of it.
    fn pins(&self, tap: &InterfaceName) -> Vec<Pin> {
        let mut pins = bridge::port(tap, self.mac, self.address);
        pins.extend(self.bandwidth.upload.map(|rate| bridge::rate(tap, rate)));
        pins
    }
}

/// A set and an element of it.
type Pin = (&'static str, Element);

impl BridgeNetwork {
    /// Let a VM join: namespace, TAP, address, pins, published ports.
    ///
    /// # Errors
    /// [`BridgeError`]; what was done is undone.
    pub fn join(&mut self, spec: MemberSpec) -> Result<Joined, BridgeError> {
        let address = self.free_address(spec.address)?;
        self.check_doors(address, &spec.publish)?;
        let prefix = self.rules.host.identity.prefix();
        let tap =
            InterfaceName::for_tap(prefix, &spec.vm, &spec.card).map_err(NetworkError::from)?;
        let record = MemberRecord {
            tap: tap.clone(),
            mac: MacAddr::for_guest(&spec.vm, &spec.card),
            address,
            publish: spec.publish,
            bandwidth: spec.bandwidth,
        };
        // Whoever has the name already keeps it.
        let occupant = Occupant {
            name: &tap,
            mac: record.mac,
            owner: spec.owner,
            label: &self.label,
            mtu: self.mtu,
        };
        let namespace = seat::make(&self.rules.host, &occupant)?;
        self.members.insert(tap.clone(), Member::of(&record));
        if let Err(error) = self.admit(&record) {
            for failure in self.expel(&tap) {
                tracing::warn!(%tap, %failure, "a member was not removed whole");
            }
            return Err(error.into());
        }
        Ok(Joined {
            facts: self.facts(&record, spec.hostname),
            record,
            namespace,
        })
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

    /// Exchange what is a member's own: its published ports, in one transaction, and its limits. When
    /// something fails, the old ones are in force as before.
    ///
    /// # Errors
    /// [`BridgeError`]; [`NetworkError::Gone`] for one that is not a member.
    pub fn update_member(
        &mut self,
        tap: &InterfaceName,
        publish: &[PublishedPort],
        bandwidth: Bandwidth,
    ) -> Result<MemberRecord, BridgeError> {
        let Some(member) = self.members.get(tap) else {
            let interface = tap.clone();
            return Err(NetworkError::Gone { interface }.into());
        };
        let (mac, address, before) = (member.mac, member.address, member.bandwidth);
        self.check_doors(address, publish)?;
        let limited = self.limit(tap, before, bandwidth);
        if let Err(error) = limited.and_then(|()| self.publish(address, publish)) {
            self.limit(tap, bandwidth, before)?;
            return Err(error.into());
        }
        let record = MemberRecord {
            tap: tap.clone(),
            mac,
            address,
            publish: publish.to_vec(),
            bandwidth,
        };
        self.members.insert(tap.clone(), Member::of(&record));
        Ok(record)
    }

    /// The host's ports are one member's each.
    fn check_doors(&self, address: Ipv4Addr, ports: &[PublishedPort]) -> Result<(), NetworkError> {
        let published = &self.rules.subject.published;
        let others = || published.iter().filter(|(_, guest)| *guest != address);
        let is_taken = |port: &&PublishedPort| others().any(|(other, _)| other.collides(port));
        match ports.iter().find(is_taken) {
            Some(port) => Err(NetworkError::PortTaken {
                port: *port,
                source: io::ErrorKind::AddrInUse.into(),
            }),
            None => Ok(()),
        }
    }

    /// Publish these ports of one address, and no others.
    fn publish(&mut self, address: Ipv4Addr, ports: &[PublishedPort]) -> Result<(), NetworkError> {
        let mut published = self.rules.subject.published.clone();
        published.retain(|(_, guest)| *guest != address);
        published.extend(ports.iter().map(|port| (*port, address)));
        let policy = Policy::clone(&self.rules.policy);
        self.rules.exchange(policy, published)
    }

    /// What its port sends is the guest's download, and has a queue; what comes in by it, its upload,
    /// has none, and is dropped when it is too much.
    fn limit(
        &self,
        tap: &InterfaceName,
        from: Bandwidth,
        to: Bandwidth,
    ) -> Result<(), NetworkError> {
        let rate = |limits: Bandwidth| limits.upload.map(|rate| bridge::rate(tap, rate));
        let old: Vec<Pin> = rate(from).into_iter().collect();
        let new: Vec<Pin> = rate(to).into_iter().collect();
        let changes = unpin(old).chain(ensure(new));
        self.rules.host.apply_bridge(changes.collect())?;
        let mut links = self.rules.host.links();
        let link = links.link(tap.as_str())?;
        let index = link
            .ok_or_else(|| NetworkError::Gone {
                interface: tap.clone(),
            })?
            .index;
        let mut steps = Steps::new();
        match (from.download, to.download) {
            (_, Some(rate)) => steps.shape(index, rate),
            (Some(_), None) => steps.unshape(index),
            (None, None) => return Ok(()),
        }
        Ok(links.run(steps)?)
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
        let pins = ensure(Member::of(record).pins(&record.tap));
        self.rules.host.apply_bridge(pins.collect())?;
        let mut links = self.rules.host.links();
        let link = links.link(record.tap.as_str())?;
        let index = link
            .ok_or_else(|| NetworkError::Gone {
                interface: record.tap.clone(),
            })?
            .index;
        let mut steps = Steps::new();
        steps.no_ipv6(index);
        steps.attach(
            index,
            Port {
                bridge: self.index,
                isolated: !self.members_talk,
            },
        );
        steps.add_station(index, record.mac);
        steps.add_neighbour(self.index, record.address, record.mac);
        if let Some(rate) = record.bandwidth.download {
            steps.shape(index, rate);
        }
        steps.up(index);
        Ok(links.run(steps)?)
    }

    /// No traffic first, then no port. Does not stop at the first failure.
    pub(super) fn expel(&mut self, tap: &InterfaceName) -> Vec<NetlinkError> {
        let Some(member) = self.members.remove(tap) else {
            return Vec::new();
        };
        let mut failures = self.rules.remove_source(member.address);
        let unpin = unpin(member.pins(tap));
        failures.extend(self.rules.host.apply_bridge(unpin.collect()).err());
        failures.extend(self.rules.host.links().delete(tap.as_str()).err());
        failures
    }

    /// A member that another process admitted.
    pub(super) fn know(&mut self, record: MemberRecord) {
        let published = record.publish.iter().map(|port| (*port, record.address));
        self.rules.subject.published.extend(published);
        self.rules.subject.sources.push(record.address);
        let member = Member::of(&record);
        self.members.insert(record.tap, member);
    }

    /// Restore the pins of known members that are missing.
    pub(super) fn pin_known(&self) -> Result<(), NetlinkError> {
        let pins = self
            .members
            .iter()
            .flat_map(|(tap, member)| ensure(member.pins(tap)));
        self.rules.host.apply_bridge(pins.collect())
    }
}

/// Each is added once more first: what is not there cannot be deleted, and would stop the rest.
fn unpin(pins: Vec<Pin>) -> impl Iterator<Item = Change> {
    let delete = |(set, element): Pin| Change::DeleteElements {
        set: set.to_owned(),
        elements: vec![Element::key(element.key)],
    };
    ensure(pins.clone()).chain(pins.into_iter().map(delete))
}

fn ensure(pins: Vec<Pin>) -> impl Iterator<Item = Change> {
    let ensure = |(set, element): Pin| Change::EnsureElements {
        set: set.to_owned(),
        elements: vec![element],
    };
    pins.into_iter().map(ensure)
}
