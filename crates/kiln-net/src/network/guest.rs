//! What the guest must be told of its network. Pure.

use std::net::Ipv4Addr;

use serde::Serialize;

use crate::policy::DomainName;
use crate::subnet::{Cidr, InterfaceName, MacAddr, kernel_ip_argument};

/// The guest's address: the same in every namespace, so that a clone needs no new one.
pub(crate) const GUEST: Ipv4Addr = Ipv4Addr::new(198, 19, 255, 2);
/// The guest's gateway and resolver.
pub(crate) const GATEWAY: Ipv4Addr = Ipv4Addr::new(198, 19, 255, 1);
pub(crate) const GUEST_PREFIX: u8 = 30;
/// Constant too: a restored guest remembers its gateway's MAC.
pub(crate) const GUEST_MAC: MacAddr = MacAddr([0x02, 0x6b, 0x6c, 0x6e, 0x00, 0x02]);
pub(crate) const GATEWAY_MAC: MacAddr = MacAddr([0x02, 0x6b, 0x6c, 0x6e, 0x00, 0x01]);

/// Address, routes and resolver for the guest's only network card.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct GuestFacts {
    /// The TAP, in the namespace that the VMM runs in.
    pub tap: InterfaceName,
    /// The card's hardware address.
    pub mac: MacAddr,
    /// The guest's address.
    pub address: Ipv4Addr,
    /// The network's prefix length.
    pub prefix: u8,
    /// The default gateway.
    pub gateway: Ipv4Addr,
    /// The only resolver that answers.
    pub resolver: Ipv4Addr,
    /// The largest packet that passes whole.
    pub mtu: u32,
    /// What the guest calls itself, if it was said.
    pub hostname: Option<DomainName>,
}

impl GuestFacts {
    /// The same as a kernel argument, for guests without an agent (A6.5).
    pub fn kernel_argument(&self, interface: &InterfaceName) -> String {
        let netmask = Cidr::of(self.address, self.prefix).netmask();
        kernel_ip_argument(self.address, self.gateway, netmask, interface)
    }
}
