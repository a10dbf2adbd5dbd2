//! WireGuard egress (placeholder until routing exists).
use crate::link::Links;
use crate::netlink::NetlinkError;
use crate::subnet::{Cidr, InterfaceName};
use std::net::Ipv4Addr;
/// A way out through a tunnel.
#[derive(Debug)]
pub struct Egress {
    interface: InterfaceName,
    address: Ipv4Addr,
    mtu: u32,
}
impl Egress {
    pub(crate) fn interface(&self) -> &InterfaceName {
        &self.interface
    }
    pub(crate) fn address(&self) -> Ipv4Addr {
        self.address
    }
    pub(crate) fn mtu(&self) -> u32 {
        self.mtu
    }
    pub(crate) fn claim(&self, _links: &mut Links, _from: Cidr) -> Result<(), NetlinkError> {
        Ok(())
    }
    pub(crate) fn release(&self, _links: &mut Links, _from: Cidr) -> Result<(), NetlinkError> {
        Ok(())
    }
}
