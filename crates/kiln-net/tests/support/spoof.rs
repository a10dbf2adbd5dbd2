//! A guest that pretends to be another.

use std::net::Ipv4Addr;

use super::server::Sink;
use super::{Guest, at, probe, sh};

/// An address that is nobody's in the guest's network, and the MAC that packets to its gateway
/// need, where the guest has to be told: so that they are really sent and not only asked for.
pub struct Pretence<'t> {
    pub address: &'t str,
    pub gateway_mac: Option<&'t str>,
}

/// With another address or another card nothing of the guest arrives at `to`; with its own it does.
#[track_caller]
pub fn assert_pinned(guest: &Guest, sink: &Sink, to: Ipv4Addr, pretence: &Pretence<'_>) {
    let passes = |script: &str| {
        guest.run(|| {
            sh(script);
            probe::throw(at(to, 7777));
        });
        sink.arrived()
    };
    let facts = &guest.facts;
    let route = format!("ip route replace default via {} src", facts.gateway);
    let Pretence {
        address,
        gateway_mac,
    } = pretence;
    assert!(passes("true"), "as it is");
    let bare = address.split_once('/').map_or(*address, |parts| parts.0);
    assert!(
        !passes(&format!(
            "ip address add {address} dev eth0; {route} {bare}"
        )),
        "another address"
    );
    assert!(
        passes(&format!("{route} {}", facts.address)),
        "its own again"
    );
    let known = gateway_mac.map_or_else(String::new, |mac| {
        format!("; ip neigh replace {} lladdr {mac} dev eth0", facts.gateway)
    });
    let up = format!("ip link set eth0 up; {route} {}{known}", facts.address);
    let card = "ip link set eth0 down; ip link set eth0 address";
    assert!(
        !passes(&format!("{card} 02:00:00:00:00:99; {up}")),
        "another card"
    );
    assert!(
        passes(&format!("{card} {}; {up}", facts.mac)),
        "its own again"
    );
}
