//! One sandbox's (or one bridge network's) part of the host's table. Pure.

use std::net::Ipv4Addr;

use super::base::{
    APPROVED, CUSTOM, EVERYWHERE, INTERNET, MARKS, PINNED, PINNED_OUT, PUBLISHED, PUBLISHED_AT,
    SHARED, SOURCES, VERIFIED,
};
use super::custom::CustomChain;
use super::{Change, Data, Element, Verdict, interface_key, padded_port, padded_protocol};
use crate::policy::{Egress, Policy, PublishedPort};
use crate::subnet::InterfaceName;

/// The part of the flow mark that counts policies.
pub(crate) const GENERATION_BITS: u32 = 8;

/// Who the rules are for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Subject {
    /// The interface, on the host, that all its traffic comes from.
    pub(crate) interface: InterfaceName,
    pub(crate) slot: u32,
    /// Counts policies, so that flows approved under an older one are judged again.
    pub(crate) generation: u8,
    /// The addresses it may send from.
    pub(crate) sources: Vec<Ipv4Addr>,
    /// The only interface its traffic may leave by, if it must.
    pub(crate) pinned_to: Option<InterfaceName>,
    /// Whether its members, if it is a bridge, may talk to each other.
    pub(crate) open_lan: bool,
    /// Published ports and the address behind each.
    pub(crate) published: Vec<(PublishedPort, Ipv4Addr)>,
}

impl Subject {
    /// The mark of flows approved under the current policy.
    pub(crate) fn mark(&self) -> u32 {
        (self.slot << GENERATION_BITS) | u32::from(self.generation)
    }
}

/// What the kernel holds for a subject: enough to add it and to take it away.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    /// The chain that judges it, if its rules are its user's own: others may use it, too.
    chain: Option<CustomChain>,
    elements: Vec<(&'static str, Element)>,
}

impl Entry {
    /// Compile a policy.
    pub(crate) fn compile(subject: &Subject, policy: &Policy) -> Self {
        let mut entry = Self {
            chain: None,
            elements: Vec::new(),
        };
        entry.identify(subject);
        entry.pin(subject);
        entry.publish(&subject.published);
        entry.judge(subject, policy);
        if policy.verify_hosts {
            entry
                .elements
                .push((VERIFIED, Element::key(interface_key(&subject.interface))));
        }
        entry
    }

    /// The part that belongs to one address and the ports that lead to it.
    pub(crate) fn of_source(
        subject: &Subject,
        source: Ipv4Addr,
        published: &[(PublishedPort, Ipv4Addr)],
    ) -> Self {
        let mut entry = Self {
            chain: None,
            elements: Vec::new(),
        };
        entry.source(subject, source);
        entry.publish(published);
        entry
    }

    /// The chain of custom rules that it needs.
    pub(crate) fn chain(&self) -> Option<&CustomChain> {
        self.chain.as_ref()
    }

    /// The elements of the table's sets and maps.
    pub(crate) fn elements(&self) -> &[(&'static str, Element)] {
        &self.elements
    }

    /// Add a part that is in force.
    pub(crate) fn join(&mut self, part: &Self) {
        self.elements.extend(part.elements.iter().cloned());
    }

    /// Forget a part that is no longer in force.
    pub(crate) fn part(&mut self, part: &Self) {
        self.elements
            .retain(|element| !part.elements.contains(element));
    }

    fn source(&mut self, subject: &Subject, source: Ipv4Addr) {
        let key = [interface_key(&subject.interface), source.octets().to_vec()].concat();
        self.elements.push((SOURCES, Element::key(key)));
    }

    fn identify(&mut self, subject: &Subject) {
        for source in &subject.sources {
            self.source(subject, *source);
        }
        if subject.open_lan {
            let interface = interface_key(&subject.interface);
            let pair = [interface.clone(), interface].concat();
            self.elements.push((SHARED, Element::key(pair)));
        }
        let mark = Data::Bytes(subject.mark().to_ne_bytes().to_vec());
        self.elements
            .push((MARKS, Element::map(interface_key(&subject.interface), mark)));
    }

    fn pin(&mut self, subject: &Subject) {
        let Some(out) = &subject.pinned_to else {
            return;
        };
        let interface = interface_key(&subject.interface);
        let pair = [interface.clone(), interface_key(out)].concat();
        self.elements.extend([
            (PINNED, Element::key(interface)),
            (PINNED_OUT, Element::key(pair)),
        ]);
    }

    fn publish(&mut self, published: &[(PublishedPort, Ipv4Addr)]) {
        for (port, guest) in published {
            let data = [guest.octets(), padded_port(port.guest)].concat();
            let protocol = padded_protocol(port.transport.number());
            let key = [protocol, padded_port(port.host)].concat();
            let (map, key) = match port.address {
                Some(address) => (PUBLISHED_AT, [address.octets().to_vec(), key].concat()),
                None => (PUBLISHED, key),
            };
            self.elements
                .push((map, Element::map(key, Data::Bytes(data))));
        }
    }

    fn judge(&mut self, subject: &Subject, policy: &Policy) {
        let key = interface_key(&subject.interface);
        match &policy.egress {
            Egress::Nothing => {}
            Egress::Internet => self.elements.push((INTERNET, Element::key(key))),
            Egress::Everywhere => self.elements.push((EVERYWHERE, Element::key(key))),
            Egress::Clauses(clauses) => {
                let chain = CustomChain::compile(clauses);
                let approved = [key.clone(), subject.mark().to_ne_bytes().to_vec()].concat();
                self.elements.push((APPROVED, Element::key(approved)));
                // A jump, never a goto: what no rule allows falls back to the `drop` after the map,
                // not off the end of the base chain, which accepts.
                let jump = Data::Verdict(Verdict::Jump(chain.name().to_owned()));
                self.elements.push((CUSTOM, Element::map(key, jump)));
                self.chain = Some(chain);
            }
        }
    }

    /// The changes that bring its elements into the table; the chain must be there.
    pub(crate) fn add(&self) -> Vec<Change> {
        let add = |(set, element): &(&'static str, Element)| Change::AddElements {
            set: (*set).to_owned(),
            elements: vec![element.clone()],
        };
        self.elements.iter().map(add).collect()
    }

    /// The changes that take them out again.
    pub(crate) fn remove(&self) -> Vec<Change> {
        let delete = |(set, element): &(&'static str, Element)| Change::DeleteElements {
            set: (*set).to_owned(),
            elements: vec![Element::key(element.key.clone())],
        };
        self.elements.iter().map(delete).collect()
    }

    /// The changes that put the elements of `next` in the place of these.
    pub(crate) fn replace_with(&self, next: &Self) -> Vec<Change> {
        let of = |from: &Self, other: &Self| Self {
            chain: None,
            elements: from
                .elements
                .iter()
                .filter(|element| !other.elements.contains(element))
                .cloned()
                .collect(),
        };
        let mut changes = of(self, next).remove();
        changes.extend(of(next, self).add());
        changes
    }
}
