//! The addresses that a network's allowed names led to, for a while. Pure.
//!
//! One set per clause number for all networks: an element says whose it is by its interface.

use std::net::Ipv4Addr;

use super::{Change, Element, Field, Set, SetKind, interface_key};
use crate::subnet::InterfaceName;

const PREFIX: &str = "names_";
/// Long enough to be deleted by the same transaction.
const MOMENT_MS: u64 = 1000;

/// An address that a name resolved to, for a clause.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Grant {
    pub(crate) clause: usize,
    pub(crate) address: Ipv4Addr,
    pub(crate) timeout_ms: u64,
}

/// The set of a clause's addresses.
pub(crate) fn set(clause: usize) -> Set {
    let key = [Field::InputInterface, Field::DestinationAddress];
    Set::new(format!("{PREFIX}{clause}"), &key, SetKind::Timeout)
}

/// The clause whose addresses are in a set of this name.
pub(crate) fn clause_of(set: &str) -> Option<usize> {
    set.strip_prefix(PREFIX)?.parse().ok()
}

/// The address in an element's key.
pub(crate) fn address_of(key: &[u8]) -> Option<Ipv4Addr> {
    let octets = key.get(Field::InputInterface.len()..)?;
    <[u8; 4]>::try_from(octets).ok().map(Ipv4Addr::from)
}

fn element(interface: &InterfaceName, address: Ipv4Addr, timeout_ms: u64) -> Element {
    let key = [interface_key(interface), address.octets().to_vec()].concat();
    Element {
        timeout_ms: Some(timeout_ms),
        ..Element::key(key)
    }
}

/// Open addresses, or renew their time: add, delete, add is the only order that does so on every
/// kernel.
pub(crate) fn open(interface: &InterfaceName, grants: &[Grant]) -> Vec<Change> {
    let each = |grants: &[Grant]| {
        let element = |grant: &Grant| element(interface, grant.address, grant.timeout_ms);
        let set = set(grants[0].clause).name;
        let elements: Vec<Element> = grants.iter().map(element).collect();
        let add = Change::EnsureElements {
            set: set.clone(),
            elements: elements.clone(),
        };
        let delete = Change::DeleteElements { set, elements };
        [add.clone(), delete, add]
    };
    let same_clause = |one: &Grant, next: &Grant| one.clause == next.clause;
    grants.chunk_by(same_clause).flat_map(each).collect()
}

/// Close addresses. Each is added first: one whose time is over cannot be deleted, and would stop
/// the rest.
pub(crate) fn close(interface: &InterfaceName, open: &[(usize, Ipv4Addr)]) -> Vec<Change> {
    let each = |open: &[(usize, Ipv4Addr)]| {
        let element = |(_, address): &(usize, Ipv4Addr)| element(interface, *address, MOMENT_MS);
        let elements: Vec<Element> = open.iter().map(element).collect();
        close_elements(set(open[0].0).name, elements)
    };
    let same_clause = |one: &(usize, Ipv4Addr), next: &(usize, Ipv4Addr)| one.0 == next.0;
    open.chunk_by(same_clause).flat_map(each).collect()
}

/// As [`close`], by the elements' keys.
pub(crate) fn close_keys<'a>(set: &str, keys: impl Iterator<Item = &'a Vec<u8>>) -> Vec<Change> {
    let element = |key: &Vec<u8>| Element {
        timeout_ms: Some(MOMENT_MS),
        ..Element::key(key.clone())
    };
    let elements: Vec<Element> = keys.map(element).collect();
    if elements.is_empty() {
        return Vec::new();
    }
    close_elements(set.to_owned(), elements).into()
}

fn close_elements(set: String, elements: Vec<Element>) -> [Change; 2] {
    let add = Change::EnsureElements {
        set: set.clone(),
        elements: elements.clone(),
    };
    [add, Change::DeleteElements { set, elements }]
}
