//! A named network that several VMs share: one bridge, one subnet, one policy (A6, A7).
//!
//! The bridge is in the host's namespace, each member's VMM in one of its own (`seat`). The policy is
//! enforced by the same chains as a sandbox's own, with the bridge as the interface; the bridge table
//! pins MAC and address of every port.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::NetworkError;
use super::member::Member;
use super::rules::Rules;
use crate::host::{HostNetwork, Shared};
use crate::identity::Label;
use crate::link::Steps;
use crate::netlink::NetlinkError;
use crate::policy::{Bandwidth, NEVER, Policy};
use crate::ruleset::sandbox::Subject;
use crate::subnet::{Cidr, InterfaceName, MacAddr, Subnet, SubnetError};
use crate::wireguard::Egress as WireGuardEgress;

/// What a bridge network is made from.
#[derive(Debug, Clone)]
pub struct BridgeSpec {
    /// For people who list the host's links: the network's name.
    pub label: Label,
    /// Its addresses; the first usable one is the gateway's (A6.2).
    pub subnet: Subnet,
    /// What its members may reach (A7). Ports are published per member, and a member's bandwidth is
    /// its VMM's matter: both must be empty here.
    pub policy: Policy,
    /// Whether members reach each other.
    pub members_talk: bool,
    /// The only way out, if the traffic must go through a tunnel (A8).
    pub via: Option<Arc<WireGuardEgress>>,
}

/// What must be stored to find a bridge network again after a restart.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BridgeRecord {
    /// The bridge.
    pub interface: InterfaceName,
    /// The lease, from the same numbers as those of sandboxes.
    pub slot: u32,
    /// Counts policies.
    pub generation: u8,
    /// Stands for the policy that this generation is: one that was stored but not yet applied is
    /// noticed when adopting.
    pub policy: u64,
}

/// Why a bridge network could not be created, changed or joined.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BridgeError {
    /// As for any network.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// This kernel cannot pin the ports of a bridge, so none is made.
    #[error("this kernel has no nftables for bridges (CONFIG_NF_TABLES_BRIDGE)")]
    NotInKernel,
    /// The subnet is in use, or may not be used.
    #[error("the subnet {subnet} overlaps {taken}; choose another")]
    SubnetTaken {
        /// What was asked for.
        subnet: Cidr,
        /// What is in the way.
        taken: Cidr,
    },
    /// No address is left (A6.2).
    #[error(transparent)]
    Exhausted(SubnetError),
    /// The address is not one for guests, or another member has it.
    #[error("the address {address} is not free in {subnet}")]
    AddressTaken {
        /// The address.
        address: std::net::Ipv4Addr,
        /// The network.
        subnet: Cidr,
    },
    /// Something that each member has for itself.
    #[error("`{field}` belongs to each member, not to the network")]
    PerMember {
        /// What.
        field: &'static str,
    },
}

impl From<NetlinkError> for BridgeError {
    fn from(error: NetlinkError) -> Self {
        Self::Network(error.into())
    }
}

/// A bridge network. As [`super::Network`]: blocking, taken down when dropped. Call it from a
/// thread in the network namespace that the [`HostNetwork`] was opened in.
#[derive(Debug)]
pub struct BridgeNetwork {
    pub(crate) rules: Rules,
    pub(super) subnet: Subnet,
    pub(super) label: Label,
    pub(super) members_talk: bool,
    pub(super) mtu: u32,
    /// The link's number; 0 before there is one.
    pub(super) index: u32,
    pub(super) members: BTreeMap<InterfaceName, Member>,
    via: Option<Arc<WireGuardEgress>>,
    claimed: bool,
}

impl HostNetwork {
    /// Choose the names of a bridge network, as [`HostNetwork::reserve`] does for a sandbox's.
    ///
    /// # Errors
    /// [`NetworkError::Slot`] for a number beyond the last slot.
    pub fn reserve_bridge(&self, slot: u32) -> Result<BridgeRecord, NetworkError> {
        if slot >= self.slots() {
            let pool = self.pool();
            return Err(NetworkError::Slot { slot, pool });
        }
        Ok(BridgeRecord {
            interface: self.identity().bridge(slot)?,
            slot,
            generation: 1,
            policy: 0,
        })
    }
}

impl HostNetwork {
    /// The first of these subnets that a bridge could have now.
    ///
    /// # Errors
    /// [`NetlinkError`] when the host's routes cannot be read.
    pub fn first_free(
        &self,
        subnets: impl IntoIterator<Item = Subnet>,
    ) -> Result<Option<Subnet>, NetlinkError> {
        let taken = taken(self.shared())?;
        let is_free = |subnet: &Subnet| !taken.iter().any(|cidr| cidr.overlaps(subnet.cidr()));
        Ok(subnets.into_iter().find(is_free))
    }
}

impl BridgeNetwork {
    /// Create the bridge that `record` ([`HostNetwork::reserve_bridge`]) names. When a step fails,
    /// those before it are undone and the first error is returned.
    ///
    /// # Errors
    /// [`BridgeError`].
    pub fn create(
        host: &HostNetwork,
        record: BridgeRecord,
        spec: BridgeSpec,
    ) -> Result<Self, BridgeError> {
        check(host.shared(), &spec.policy)?;
        subnet_is_free(host.shared(), spec.subnet.cidr())?;
        let mut network = Self::assemble(host.shared(), record, spec)?;
        // The rules come first: there is no moment in which the bridge is up and unguarded.
        network.rules.admit()?;
        network.make()?;
        network.claim_tunnel()?;
        Ok(network)
    }

    /// Take over a bridge and its members that another process left, by their names. Rules that
    /// are still in force stay untouched.
    ///
    /// # Errors
    /// [`BridgeError`]; the network is left as it was.
    pub fn adopt(
        host: &HostNetwork,
        record: BridgeRecord,
        spec: BridgeSpec,
        members: Vec<super::MemberRecord>,
    ) -> Result<Self, BridgeError> {
        check(host.shared(), &spec.policy)?;
        let policy = record.policy;
        let mut network = Self::assemble(host.shared(), record, spec)?;
        let adopted = network.find(policy, members);
        if let Err(error) = adopted {
            network.forget_ownership();
            return Err(error);
        }
        Ok(network)
    }

    /// Exchange the policy in one transaction, as [`super::Network::update`].
    ///
    /// # Errors
    /// [`BridgeError`]; the old policy is in force as before.
    pub fn update(&mut self, policy: Policy) -> Result<(), BridgeError> {
        check(&self.rules.host, &policy)?;
        let published = self.rules.subject.published.clone();
        Ok(self.rules.exchange(policy, published)?)
    }

    /// As [`super::Network::ensure`], with the pins of all members.
    ///
    /// # Errors
    /// [`BridgeError`].
    pub fn ensure(&mut self) -> Result<bool, BridgeError> {
        self.pin_known()?;
        Ok(self.rules.ensure()?)
    }

    /// Take everything down, members too. Does not stop at the first failure.
    ///
    /// # Errors
    /// [`super::CloseError`] with all that failed.
    pub fn close(mut self) -> Result<(), super::CloseError> {
        let failures = self.take_down();
        let interface = self.rules.subject.interface.clone();
        if failures.is_empty() {
            Ok(())
        } else {
            Err(super::CloseError {
                interface,
                failures,
            })
        }
    }

    /// Leave everything running for the next process.
    pub fn detach(mut self) -> BridgeRecord {
        let record = self.record();
        self.forget_ownership();
        record
    }

    /// What to store.
    pub fn record(&self) -> BridgeRecord {
        BridgeRecord {
            interface: self.rules.subject.interface.clone(),
            slot: self.rules.subject.slot,
            generation: self.rules.subject.generation,
            policy: self.rules.policy.fingerprint(),
        }
    }

    /// The addresses.
    pub fn subnet(&self) -> Subnet {
        self.subnet
    }

    /// The policy in force.
    pub fn policy(&self) -> &Policy {
        &self.rules.policy
    }

    fn assemble(
        host: &Arc<Shared>,
        record: BridgeRecord,
        spec: BridgeSpec,
    ) -> Result<Self, NetworkError> {
        let mtu = match &spec.via {
            Some(via) => via.mtu(),
            None => host.uplink_mtu()?,
        };
        let subject = Subject {
            interface: record.interface,
            slot: record.slot,
            generation: record.generation,
            sources: Vec::new(),
            pinned_to: spec.via.as_ref().and_then(|via| via.only_way()),
            open_lan: spec.members_talk,
            published: Vec::new(),
        };
        let mut rules = Rules::new(Arc::clone(host), subject, spec.policy);
        rules.ask_from = spec.via.as_ref().map(|via| via.address());
        Ok(Self {
            rules,
            subnet: spec.subnet,
            label: spec.label,
            members_talk: spec.members_talk,
            mtu,
            index: 0,
            members: BTreeMap::new(),
            via: spec.via,
            claimed: false,
        })
    }

    /// The bridge, its address, and the names' resolver.
    fn make(&mut self) -> Result<(), NetworkError> {
        let host = Arc::clone(&self.rules.host);
        let name = self.rules.subject.interface.clone();
        let mut links = host.links();
        let mut steps = Steps::new();
        let alias = host.identity.alias(&self.label);
        steps.add_link(
            &name,
            "bridge",
            Some(mac(self.rules.subject.slot)),
            self.mtu,
            &alias,
        );
        links.run(steps)?;
        let made = links.link(name.as_str())?;
        self.index = made.ok_or(NetworkError::Gone { interface: name })?.index;
        let mut steps = Steps::new();
        steps.no_ipv6(self.index);
        steps.forward(self.index);
        steps.route_localnet(self.index, true);
        steps.up(self.index);
        steps.add_address(
            self.index,
            self.subnet.gateway(),
            self.subnet.cidr().prefix(),
        );
        links.run(steps)?;
        drop(links);
        self.rules.subscribe();
        Ok(())
    }

    fn find(&mut self, policy: u64, members: Vec<super::MemberRecord>) -> Result<(), BridgeError> {
        let host = Arc::clone(&self.rules.host);
        let interface = self.rules.subject.interface.clone();
        let link = host.links().link(interface.as_str())?;
        let ours = link.filter(|link| host.identity.owns(&link.name, link.alias.as_deref()));
        self.index = ours.ok_or(NetworkError::Gone { interface })?.index;
        for member in members {
            self.know(member);
        }
        self.rules.adopt(policy)?;
        self.pin_known()?;
        self.claim_tunnel()?;
        self.rules.subscribe();
        Ok(())
    }

    fn claim_tunnel(&mut self) -> Result<(), NetworkError> {
        if let Some(via) = &self.via {
            let mut links = self.rules.host.links();
            via.claim_bridge(&mut links, self.subnet.cidr(), self.index)?;
            self.claimed = true;
        }
        Ok(())
    }

    fn take_down(&mut self) -> Vec<NetlinkError> {
        let taps: Vec<InterfaceName> = self.members.keys().cloned().collect();
        let mut failures: Vec<_> = taps.iter().flat_map(|tap| self.expel(tap)).collect();
        failures.extend(self.rules.take_down());
        let mut links = self.rules.host.links();
        if let Some(via) = self.via.take().filter(|_| self.claimed) {
            failures.extend(via.release(&mut links, self.subnet.cidr()).err());
        }
        if std::mem::take(&mut self.index) != 0 {
            failures.extend(links.delete(self.rules.subject.interface.as_str()).err());
        }
        failures
    }

    fn forget_ownership(&mut self) {
        self.rules.forget_ownership();
        self.members.clear();
        self.claimed = false;
        self.index = 0;
    }
}

impl Drop for BridgeNetwork {
    fn drop(&mut self) {
        for error in self.take_down() {
            let interface = &self.rules.subject.interface;
            tracing::warn!(%interface, %error, "a bridge network was not taken down whole");
        }
    }
}

fn check(host: &Shared, policy: &Policy) -> Result<(), BridgeError> {
    if !host.bridges {
        return Err(BridgeError::NotInKernel);
    }
    if !policy.publish.is_empty() {
        return Err(BridgeError::PerMember { field: "publish" });
    }
    if policy.bandwidth != Bandwidth::default() {
        return Err(BridgeError::PerMember { field: "bandwidth" });
    }
    Ok(())
}

/// What no bridge may have a part of.
fn taken(host: &Shared) -> Result<Vec<Cidr>, NetlinkError> {
    let mut taken = host.networks_in_use()?;
    taken.extend(NEVER);
    taken.push(host.pool);
    Ok(taken)
}

fn subnet_is_free(host: &Shared, subnet: Cidr) -> Result<(), BridgeError> {
    match taken(host)?.into_iter().find(|cidr| cidr.overlaps(subnet)) {
        Some(taken) => Err(BridgeError::SubnetTaken { subnet, taken }),
        None => Ok(()),
    }
}

/// Local, and a function of the slot: guests remember their gateway's MAC.
fn mac(slot: u32) -> MacAddr {
    let [a, b, c, d] = slot.to_be_bytes();
    MacAddr([0x0a, 3, a, b, c, d])
}
