//! One sandbox's (or one bridge network's) part of the host's table. Pure.

use std::net::Ipv4Addr;

use super::base::{
    APPROVED, CUSTOM, EVERYWHERE, INTERNET, MARKS, PINNED, PINNED_OUT, PUBLISHED, PUBLISHED_AT,
    SHARED, SOURCES, VERIFIED,
};
use super::{
    Chain, Change, Data, Element, Field, Match, Rule, Set, SetKind, Statement, Verdict,
    interface_key, padded_port, padded_protocol,
};
use crate::policy::{
    Action, Clause, Destination, Egress, Policy, PortRange, Protocol, PublishedPort,
};
use crate::subnet::{InterfaceName, base36};

/// The most addresses that names of one rule may hold open at a time.
const DOMAIN_SET_LEN: u32 = 4096;

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

    fn chain(&self) -> String {
        chain_name(self.slot, self.generation)
    }

    /// The set of a clause's addresses.
    pub(crate) fn clause_set(&self, clause: usize) -> String {
        format!("{}_{clause}", self.chain())
    }
}

/// The chain of a custom policy.
pub(crate) fn chain_name(slot: u32, generation: u8) -> String {
    format!("c{}_{generation}", base36(slot.into(), 4))
}

/// An address that a name resolved to, for a clause.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Grant {
    pub(crate) clause: usize,
    pub(crate) address: Ipv4Addr,
    pub(crate) timeout_ms: u64,
}

/// What the kernel holds for a subject: enough to add it and to take it away.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    sets: Vec<(Set, Vec<Element>)>,
    chain: Option<(String, Vec<Rule>)>,
    elements: Vec<(&'static str, Element)>,
}

impl Entry {
    /// Compile a policy.
    pub(crate) fn compile(subject: &Subject, policy: &Policy, grants: &[Grant]) -> Self {
        let mut entry = Self {
            sets: Vec::new(),
            chain: None,
            elements: Vec::new(),
        };
        entry.identify(subject);
        entry.pin(subject);
        entry.publish(&subject.published);
        entry.judge(subject, policy, grants);
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
            sets: Vec::new(),
            chain: None,
            elements: Vec::new(),
        };
        entry.source(subject, source);
        entry.publish(published);
        entry
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

    fn judge(&mut self, subject: &Subject, policy: &Policy, grants: &[Grant]) {
        let key = interface_key(&subject.interface);
        match &policy.egress {
            Egress::Nothing => {}
            Egress::Internet => self.elements.push((INTERNET, Element::key(key))),
            Egress::Everywhere => self.elements.push((EVERYWHERE, Element::key(key))),
            Egress::Clauses(clauses) => {
                let name = subject.chain();
                let approved = [key.clone(), subject.mark().to_ne_bytes().to_vec()].concat();
                self.elements.push((APPROVED, Element::key(approved)));
                let mut rules = Vec::new();
                for (index, clause) in clauses.iter().enumerate() {
                    rules.extend(self.clause(subject, index, clause, grants));
                }
                // A jump, never a goto: what no rule allows falls back to the `drop` after the map,
                // not off the end of the base chain, which accepts. So does a packet that is under
                // way while the policy is exchanged, for which the new chain is still empty.
                let jump = Data::Verdict(Verdict::Jump(name.clone()));
                self.chain = Some((name, rules));
                self.elements.push((CUSTOM, Element::map(key, jump)));
            }
        }
    }

    fn clause(
        &mut self,
        subject: &Subject,
        index: usize,
        clause: &Clause,
        grants: &[Grant],
    ) -> Vec<Rule> {
        let Some(head) = self.destination(subject, index, &clause.destination, grants) else {
            return Vec::new();
        };
        let head = match clause.protocol.number() {
            Some(number) => head.equal(Field::Protocol, &[number]),
            None => head,
        };
        let by_port: Vec<Rule> = match clause.protocol {
            Protocol::Tcp | Protocol::Udp if !clause.ports.is_empty() => clause
                .ports
                .iter()
                .map(|range| head.clone().when(to_ports(*range)))
                .collect(),
            _ => vec![head],
        };
        let end = |rule: Rule| match clause.action {
            Action::Allow => rule.then(Statement::MarkFlow(subject.mark())).accept(),
            Action::Deny => rule.drop(),
        };
        by_port.into_iter().map(end).collect()
    }

    /// A rule that matches the destination; `None` when no address is meant.
    fn destination(
        &mut self,
        subject: &Subject,
        index: usize,
        destination: &Destination,
        grants: &[Grant],
    ) -> Option<Rule> {
        let field = Field::DestinationAddress;
        let name = subject.clause_set(index);
        match destination {
            Destination::Addresses(ranges) => match ranges.as_slice() {
                [] => None,
                [(0, u32::MAX)] => Some(Rule::new()),
                [(first, last)] => Some(Rule::new().when(Match::Between {
                    field,
                    first: first.to_be_bytes().to_vec(),
                    last: last.to_be_bytes().to_vec(),
                })),
                many => {
                    let set = Set::new(name.clone(), &[field], SetKind::Interval);
                    self.sets.push((set, Element::ranges(many)));
                    Some(Rule::new().in_set(&[field], &name))
                }
            },
            Destination::Domains(_) => {
                let set = Set::new(name.clone(), &[field], SetKind::Timeout);
                let granted = grants.iter().filter(|grant| grant.clause == index);
                let elements = granted.map(|grant| grant_element(grant.address, grant.timeout_ms));
                let limited = Set {
                    size: DOMAIN_SET_LEN,
                    ..set
                };
                self.sets.push((limited, elements.collect()));
                Some(Rule::new().in_set(&[field], &name))
            }
        }
    }

    /// The changes that bring the entry into the table.
    pub(crate) fn add(&self) -> Vec<Change> {
        let mut changes = Vec::new();
        for (set, elements) in &self.sets {
            changes.push(Change::AddSet(set.clone()));
            if !elements.is_empty() {
                let (set, elements) = (set.name.clone(), elements.clone());
                changes.push(Change::EnsureElements { set, elements });
            }
        }
        if let Some((name, rules)) = &self.chain {
            changes.push(Change::AddChain(Chain {
                name: name.clone(),
                hook: None,
            }));
            let add = |rule: &Rule| Change::AddRule {
                chain: name.clone(),
                rule: rule.clone(),
            };
            changes.extend(rules.iter().map(add));
        }
        changes.extend(
            self.elements
                .iter()
                .map(|(set, element)| Change::AddElements {
                    set: (*set).to_owned(),
                    elements: vec![element.clone()],
                }),
        );
        changes
    }

    /// The changes that take it out again.
    pub(crate) fn remove(&self) -> Vec<Change> {
        let mut changes: Vec<Change> = self
            .elements
            .iter()
            .map(|(set, element)| Change::DeleteElements {
                set: (*set).to_owned(),
                elements: vec![Element::key(element.key.clone())],
            })
            .collect();
        changes.extend(
            self.chain
                .iter()
                .map(|(name, _)| Change::DeleteChain(name.clone())),
        );
        changes.extend(
            self.sets
                .iter()
                .map(|(set, _)| Change::DeleteSet(set.name.clone())),
        );
        changes
    }

    /// The changes to elements alone, where chain and sets stay as they are.
    pub(crate) fn exchange_elements(&self, next: &Self) -> Vec<Change> {
        let of = |from: &Self, other: &Self| Self {
            sets: Vec::new(),
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

    /// The changes that put `next` in this one's place.
    pub(crate) fn replace_with(&self, next: &Self) -> Vec<Change> {
        let mut changes = self.remove();
        changes.extend(next.add());
        changes
    }
}

/// An address in a clause's set, for a while.
pub(crate) fn grant_element(address: Ipv4Addr, timeout_ms: u64) -> Element {
    Element {
        timeout_ms: Some(timeout_ms),
        ..Element::key(address.octets().to_vec())
    }
}

fn to_ports(range: PortRange) -> Match {
    let field = Field::DestinationPort;
    if range.first == range.last {
        Match::Equal {
            field,
            value: range.first.to_be_bytes().to_vec(),
            negate: false,
        }
    } else {
        let (first, last) = (
            range.first.to_be_bytes().to_vec(),
            range.last.to_be_bytes().to_vec(),
        );
        Match::Between { field, first, last }
    }
}
