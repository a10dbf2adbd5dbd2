//! A member's seat: the namespace that its VMM runs in, and the wire from there to the host.
//!
//! The TAP and the wire's far end are ports of a bridge of their own; nothing in the namespace has an
//! address. A VMM that its guest took over finds no host there, and what it sends is judged where
//! the wire comes out.

use std::os::fd::AsFd;

use super::sandbox::NetworkError;
use crate::host::Shared;
use crate::identity::Label;
use crate::link::{Links, Steps, Veth};
use crate::netns::NetNamespace;
use crate::subnet::{InterfaceName, MacAddr};
use crate::tap::{self, TapOwner};

/// Fixed numbers in a namespace of our own need no look-ups.
const WIRE: u32 = 2;
const TAP: u32 = 3;
const WIRE_NAME: &str = "eth0";
const BRIDGE_NAME: &str = "br0";

/// Whose seat it is.
pub(super) struct Occupant<'o> {
    /// Of the TAP inside, and of the wire's end on the host.
    pub(super) name: &'o InterfaceName,
    /// The guest's.
    pub(super) mac: MacAddr,
    pub(super) owner: TapOwner,
    pub(super) label: &'o Label,
    pub(super) mtu: u32,
}

/// Make the namespace, and the wire, whose end on the host is down and leads nowhere yet.
pub(super) fn make(host: &Shared, occupant: &Occupant<'_>) -> Result<NetNamespace, NetworkError> {
    let (namespace, links) = NetNamespace::create(|| {
        tap::create(occupant.name, occupant.owner, Some(TAP)).map_err(NetworkError::Tap)?;
        Ok::<_, NetworkError>(Links::open()?)
    })?;
    let mut inside = links?;
    wire(host, occupant, &namespace)?;
    if let Err(error) = furnish(&mut inside, occupant) {
        host.links().delete(occupant.name.as_str())?;
        return Err(error);
    }
    Ok(namespace)
}

fn wire(
    host: &Shared,
    occupant: &Occupant<'_>,
    namespace: &NetNamespace,
) -> Result<(), NetworkError> {
    let (mac, peer_mac) = wire_macs(occupant.mac);
    let mut steps = Steps::new();
    steps.add_veth(&Veth {
        name: occupant.name,
        mac,
        alias: &host.identity.alias(occupant.label),
        mtu: occupant.mtu,
        peer_name: WIRE_NAME,
        peer_index: WIRE,
        peer_mac,
        namespace: namespace.as_fd(),
    });
    Ok(host.links().run(steps)?)
}

fn furnish(inside: &mut Links, occupant: &Occupant<'_>) -> Result<(), NetworkError> {
    let name = InterfaceName::new(BRIDGE_NAME)?;
    let mut steps = Steps::new();
    steps.add_link(&name, "bridge", None, occupant.mtu, "");
    inside.run(steps)?;
    let made = inside.link(BRIDGE_NAME)?;
    let bridge = made.ok_or(NetworkError::Gone { interface: name })?.index;
    let mut steps = Steps::new();
    steps.set_mtu(TAP, occupant.mtu);
    for port in [WIRE, TAP] {
        steps.put_under(port, bridge);
    }
    for link in [bridge, WIRE, TAP] {
        steps.no_ipv6(link);
        steps.up(link);
    }
    Ok(inside.run(steps)?)
}

/// MACs of the wire's ends: local, a function of the guest's, and not the guest's.
fn wire_macs(guest: MacAddr) -> (MacAddr, MacAddr) {
    let [_, _, a, b, c, d] = guest.0;
    (
        MacAddr([0x0a, 4, a, b, c, d]),
        MacAddr([0x0a, 5, a, b, c, d]),
    )
}
