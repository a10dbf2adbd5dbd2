//! The table that pins MAC and address of every port of our bridges, and limits what it sends. Pure.

use std::net::Ipv4Addr;

use super::{
    Chain, Change, Element, Field, Hook, HookKind, Rule, Set, SetKind, TableFamily, Transaction,
    interface_key,
};
use crate::policy::Rate;
use crate::subnet::{InterfaceName, MacAddr};

const PORT_MAC: &str = "port_mac";
const PORT_ID: &str = "port_id";
const PORT_RATE: &str = "port_rate";
/// The sets whose keys begin with a TAP.
pub(crate) const PINS: [&str; 3] = [PORT_MAC, PORT_ID, PORT_RATE];
const ARP_FRAME: [u8; 2] = [0x08, 0x06];
const IPV4_FRAME: [u8; 2] = [0x08, 0x00];

/// The transaction that replaces the whole table.
pub(crate) fn load(table: &str, tap_prefix: &str, comment: String) -> Transaction {
    use Field::{
        ArpSenderAddress, ArpSenderMac, EtherSource, EtherType, InputInterface, SourceAddress,
    };
    let hook = Hook {
        kind: HookKind::Filter,
        number: 0,
        priority: -300,
        drop: false,
    };
    let add = |chain: &str, rule| Change::AddRule {
        chain: chain.to_owned(),
        rule,
    };
    let changes = vec![
        Change::AddTable {
            comment: comment.clone(),
        },
        Change::DeleteTable,
        Change::AddTable { comment },
        Change::AddSet(Set::new(
            PORT_MAC,
            &[InputInterface, EtherSource],
            SetKind::Plain,
        )),
        Change::AddSet(Set::new(
            PORT_ID,
            &[InputInterface, EtherSource, SourceAddress],
            SetKind::Plain,
        )),
        Change::AddSet(Set::new(PORT_RATE, &[InputInterface], SetKind::Rate)),
        Change::AddChain(Chain {
            name: "pre".to_owned(),
            hook: Some(hook),
        }),
        Change::AddChain(Chain {
            name: "port".to_owned(),
            hook: None,
        }),
        add("pre", Rule::new().entering_by(tap_prefix).goto("port")),
        add(
            "port",
            Rule::new()
                .not_in_set(&[InputInterface, EtherSource], PORT_MAC)
                .drop(),
        ),
        add(
            "port",
            Rule::new().in_set(&[InputInterface], PORT_RATE).drop(),
        ),
        add(
            "port",
            Rule::new()
                .equal(EtherType, &ARP_FRAME)
                .in_set(&[InputInterface, ArpSenderMac, ArpSenderAddress], PORT_ID)
                .accept(),
        ),
        add(
            "port",
            Rule::new()
                .equal(EtherType, &IPV4_FRAME)
                .in_set(&[InputInterface, EtherSource, SourceAddress], PORT_ID)
                .accept(),
        ),
        add("port", Rule::new().drop()),
    ];
    Transaction {
        family: TableFamily::Bridge,
        table: table.to_owned(),
        changes,
    }
}

/// The elements that let one port send.
pub(crate) fn port(
    tap: &InterfaceName,
    mac: MacAddr,
    address: Ipv4Addr,
) -> Vec<(&'static str, Element)> {
    let mut key = interface_key(tap);
    key.extend_from_slice(&mac.0);
    key.extend_from_slice(&[0, 0]);
    let identity = [key.clone(), address.octets().to_vec()].concat();
    vec![
        (PORT_MAC, Element::key(key)),
        (PORT_ID, Element::key(identity)),
    ]
}

/// The element that limits what a port sends.
pub(crate) fn rate(tap: &InterfaceName, rate: Rate) -> (&'static str, Element) {
    let element = Element {
        rate: Some(rate.bytes_per_second()),
        ..Element::key(interface_key(tap))
    };
    (PORT_RATE, element)
}
