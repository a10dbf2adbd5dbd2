//! The steps that bring a sandbox's network up.

use std::net::Ipv4Addr;
use std::os::fd::AsFd;
use std::sync::Arc;

use super::guest::{GATEWAY, GATEWAY_MAC, GUEST, GUEST_MAC, GUEST_PREFIX};
use super::rules::Rules;
use super::sandbox::{Network, NetworkError, NetworkRecord, NetworkSpec, published};
use crate::host::{HostNetwork, Shared};
use crate::link::{Links, Route, Steps, Veth};
use crate::netlink::NetlinkError;
use crate::netns::NetNamespace;
use crate::nft::Nft;
use crate::policy::Bandwidth;
use crate::ruleset::guest::Inside;
use crate::ruleset::sandbox::Subject;
use crate::subnet::{Cidr, InterfaceName, MacAddr};
use crate::tap;

/// Fixed numbers in a namespace of our own need no look-ups.
const LOOPBACK: u32 = 1;
const UPLINK: u32 = 2;
const TAP: u32 = 3;
const UPLINK_NAME: &str = "eth0";

/// Conversations that were opened inside the namespace and work from any thread.
pub(super) struct InsideHandles {
    links: Links,
    nft: Nft,
}

pub(super) fn tap_name() -> InterfaceName {
    InterfaceName::new("tap0").unwrap_or_else(|_| unreachable!("a constant name"))
}

/// Names, addresses, and a namespace with a TAP in it: nothing on the host yet.
pub(super) fn prepare(
    host: Arc<Shared>,
    record: NetworkRecord,
    spec: NetworkSpec,
) -> Result<(Network, InsideHandles), NetworkError> {
    let owner = spec.owner;
    let (namespace, inside) = NetNamespace::create(|| {
        tap::create(&tap_name(), owner, Some(TAP)).map_err(NetworkError::Tap)?;
        Ok::<_, NetworkError>(InsideHandles {
            links: Links::open()?,
            nft: Nft::open()?,
        })
    })?;
    Ok((assemble(host, record, spec, namespace)?, inside?))
}

/// A network that exists already, as the record names it.
pub(super) fn found(
    host: Arc<Shared>,
    record: NetworkRecord,
    spec: NetworkSpec,
    namespace: NetNamespace,
) -> Result<Network, NetworkError> {
    let link = host.links().link(record.interface.as_str())?;
    let ours = link.is_some_and(|link| host.identity.owns(&link.name, link.alias.as_deref()));
    if !ours {
        return Err(NetworkError::Gone {
            interface: record.interface,
        });
    }
    assemble(host, record, spec, namespace)
}

fn assemble(
    host: Arc<Shared>,
    record: NetworkRecord,
    spec: NetworkSpec,
    namespace: NetNamespace,
) -> Result<Network, NetworkError> {
    let (slot, address) = (record.slot, slot_address(&host, record.slot)?);
    let mtu = match &spec.via {
        Some(via) => via.mtu(),
        None => host.uplink_mtu()?,
    };
    let subject = Subject {
        interface: record.interface,
        slot,
        generation: record.generation,
        sources: vec![address],
        pinned_to: spec.via.as_ref().and_then(|via| via.only_way()),
        open_lan: false,
        published: published(&spec.policy, address),
    };
    let mut rules = Rules::new(host, subject, spec.policy);
    rules.ask_from = spec.via.as_ref().map(|via| via.address());
    Ok(Network {
        rules,
        label: spec.label,
        hostname: spec.hostname,
        namespace,
        address,
        mtu,
        connected: false,
        via: spec.via,
        claimed: false,
    })
}

impl HostNetwork {
    /// Choose the names of a network before anything of it exists: what is stored first can be
    /// found again, whatever happens. No two live networks of one data directory share a slot.
    ///
    /// # Errors
    /// [`NetworkError::Slot`] when the pool has no address for it.
    pub fn reserve(&self, slot: u32) -> Result<NetworkRecord, NetworkError> {
        let host = self.shared();
        slot_address(host, slot)?;
        Ok(NetworkRecord {
            interface: host.identity.veth(slot, random()?)?,
            slot,
            generation: 1,
            policy: 0,
        })
    }

    /// How many slots there are, from 0 on.
    pub fn slots(&self) -> u32 {
        self.shared().slots()
    }
}

fn slot_address(host: &Shared, slot: u32) -> Result<Ipv4Addr, NetworkError> {
    let pool = host.pool;
    host.slot_address(slot)
        .ok_or(NetworkError::Slot { slot, pool })
}

fn random() -> Result<u64, NetworkError> {
    let mut bytes = [0; 8];
    rustix::rand::getrandom(&mut bytes[..], rustix::rand::GetRandomFlags::empty())
        .map_err(|errno| NetworkError::Random(errno.into()))?;
    Ok(u64::from_ne_bytes(bytes))
}

/// MACs of the veth pair: local, and a function of the slot.
fn veth_macs(slot: u32) -> (MacAddr, MacAddr) {
    let [a, b, c, d] = slot.to_be_bytes();
    (
        MacAddr([0x0a, 1, a, b, c, d]),
        MacAddr([0x0a, 2, a, b, c, d]),
    )
}

impl Network {
    /// The pair of veths, and the host's way to the sandbox.
    pub(super) fn connect(&mut self) -> Result<(), NetworkError> {
        let mut links = self.rules.host.links();
        let name = &self.rules.subject.interface;
        let (mac, peer_mac) = veth_macs(self.rules.subject.slot);
        let mut steps = Steps::new();
        steps.add_veth(&Veth {
            name,
            mac,
            alias: &self.rules.host.identity.alias(&self.label),
            mtu: self.mtu,
            peer_name: UPLINK_NAME,
            peer_index: UPLINK,
            peer_mac,
            namespace: self.namespace.as_fd(),
        });
        self.connected = true;
        links.run(steps)?;
        let link = links.link(name.as_str())?;
        let index = link
            .ok_or_else(|| NetworkError::Gone {
                interface: name.clone(),
            })?
            .index;
        let mut steps = Steps::new();
        steps.no_ipv6(index);
        steps.forward(index);
        // Packets from 127.0.0.1 to a published port leave by this link; those that come in for
        // 127.0.0.0/8 are dropped before routing.
        steps.route_localnet(index, true);
        steps.up(index);
        steps.add_neighbour(index, self.address, peer_mac);
        steps.add_route(&route(&self.rules.host, self.address, index));
        Ok(links.run(steps)?)
    }

    /// Addresses, routes, limits and the table inside.
    pub(super) fn furnish(&self, mut inside: InsideHandles) -> Result<(), NetworkError> {
        let gateway = self.rules.host.base.gateway;
        let (host_mac, _) = veth_macs(self.rules.subject.slot);
        let table = Inside {
            guest: GUEST,
            guest_mac: GUEST_MAC,
            tap_address: GATEWAY,
            host_gateway: gateway,
            pool: self.rules.host.pool,
        };
        inside.nft.apply(&table.load())?;
        let mut steps = Steps::new();
        steps.set_hardware(TAP, GATEWAY_MAC, self.mtu);
        for index in [UPLINK, TAP] {
            steps.no_ipv6(index);
            steps.forward(index);
            steps.up(index);
        }
        steps.up(LOOPBACK);
        steps.add_address(UPLINK, self.address, 32);
        steps.add_address(TAP, GATEWAY, GUEST_PREFIX);
        steps.add_neighbour(UPLINK, gateway, host_mac);
        steps.add_neighbour(TAP, GUEST, GUEST_MAC);
        steps.add_route(&Route::to(Cidr::host(gateway), UPLINK));
        steps.add_route(&Route {
            gateway: Some(gateway),
            ..Route::to(Cidr::ALL, UPLINK)
        });
        limit(
            &mut steps,
            self.rules.policy.bandwidth,
            Bandwidth::default(),
        );
        Ok(inside.links.run(steps)?)
    }
}

/// Set the limits, whatever they were.
pub(super) fn set_limits(steps: &mut Steps, wanted: Bandwidth) {
    for (index, rate) in [(TAP, wanted.download), (UPLINK, wanted.upload)] {
        match rate {
            Some(rate) => steps.shape(index, rate),
            None => steps.unshape(index),
        }
    }
}

/// What the TAP sends is the guest's download; what the uplink sends, its upload.
pub(super) fn limit(steps: &mut Steps, wanted: Bandwidth, before: Bandwidth) {
    let directions = [
        (TAP, wanted.download, before.download),
        (UPLINK, wanted.upload, before.upload),
    ];
    for (index, wanted, before) in directions {
        match (wanted, before) {
            (Some(rate), _) if wanted != before => steps.shape(index, rate),
            (None, Some(_)) => steps.unshape(index),
            _ => {}
        }
    }
}

/// The host's way to a sandbox.
fn route(host: &Shared, address: Ipv4Addr, link: u32) -> Route {
    Route {
        source: Some(host.base.gateway),
        ..Route::to(Cidr::host(address), link)
    }
}

/// A flush of the gateway's address takes the routes with it that use it.
pub(super) fn ensure_route(
    host: &Shared,
    interface: &InterfaceName,
    address: Ipv4Addr,
) -> Result<(), NetworkError> {
    let mut links = host.links();
    let Some(link) = links.link(interface.as_str())? else {
        let interface = interface.clone();
        return Err(NetworkError::Gone { interface });
    };
    let mut steps = Steps::new();
    steps.ensure_route(&route(host, address, link.index));
    Ok(links.run(steps)?)
}

/// Free the sandbox's address at once. The veth itself goes with its namespace: deleting it here
/// would wait 20-30 ms for the kernel.
pub(super) fn disconnect(
    host: &Shared,
    interface: &InterfaceName,
    address: Ipv4Addr,
) -> Result<(), NetlinkError> {
    let mut links = host.links();
    let Some(link) = links.link(interface.as_str())? else {
        return Ok(());
    };
    let mut steps = Steps::new();
    steps.delete_route(&Route::to(Cidr::host(address), link.index));
    links.run(steps)
}
