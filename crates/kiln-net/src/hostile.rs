//! Doors for the fuzz targets in `fuzz/`: every parser of bytes that others make up. Not an API.

use crate::policy::{DomainPattern, PublishedPort, Rate};
use crate::subnet::{Cidr, InterfaceName, Subnet};
use crate::{conntrack, dns, hosts, link, netlink, nft, wireguard};

/// A DNS message, read as a guest's question and as an upstream's answer.
pub fn dns(bytes: &[u8]) {
    dns::hostile(bytes);
}

/// One `recv` from the kernel.
pub fn netlink(bytes: &[u8]) {
    for (_, _, payload) in netlink::messages(bytes) {
        conntrack::hostile(payload);
        link::hostile(payload);
        nft::hostile(payload);
    }
}

/// Texts that users paste.
pub fn text(text: &str) {
    let _ = text.parse::<wireguard::Config>();
    let _ = text.parse::<Cidr>();
    let _ = text.parse::<Subnet>();
    let _ = InterfaceName::new(text);
    // What is read prints as what reads the same again.
    if let Some(port) = PublishedPort::new(text) {
        assert_eq!(PublishedPort::new(&port.to_string()), Some(port));
    }
    let _ = DomainPattern::new(text);
    let _ = Rate::new(text);
}

/// The first bytes of a web connection.
pub fn web(bytes: &[u8]) {
    hosts::hostile(bytes);
}
