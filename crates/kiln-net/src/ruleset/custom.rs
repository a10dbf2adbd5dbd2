//! Rules of a user's own, as a chain of the host's table. Pure.
//!
//! The chain names no sandbox: what belongs to one (the addresses that its names led to, the mark
//! of its flows) is looked up by its interface. So all networks whose policies look alike to the
//! kernel share one chain, and what a network costs does not grow with how many there are. Domain
//! names are not among what the kernel sees: policies that differ in names only look alike.

use sha2::{Digest, Sha256};

use super::base::ALLOW;
use super::names;
use super::{Change, Element, Field, Match, Rule, Set, SetKind};
use crate::policy::{Action, Clause, Destination, PortRange, Protocol};

/// 128 bits of a hash in hexadecimal follow: nobody finds two policies with one name.
const PREFIX: char = 'p';
const NAME_DIGITS: usize = 32;

/// A chain, and the sets that only its rules ask.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CustomChain {
    name: String,
    /// Lists of address ranges.
    ranges: Vec<(Set, Vec<Element>)>,
    /// Shared by all chains.
    names: Vec<Set>,
    rules: Vec<Rule>,
}

impl CustomChain {
    /// Compile ordered clauses.
    pub(crate) fn compile(clauses: &[Clause]) -> Self {
        let mut nameless = Self::build(String::new(), clauses);
        let text: String = nameless.add().iter().map(Change::to_string).collect();
        let digest = Sha256::digest(text.as_bytes());
        let digits = digest.iter().flat_map(|byte| {
            let digit = |number: u8| char::from_digit(number.into(), 16).unwrap_or('0');
            [digit(byte >> 4), digit(byte & 15)]
        });
        nameless.name = std::iter::once(PREFIX)
            .chain(digits.take(NAME_DIGITS))
            .collect();
        Self::build(nameless.name, clauses)
    }

    fn build(name: String, clauses: &[Clause]) -> Self {
        let mut chain = Self {
            name,
            ranges: Vec::new(),
            names: Vec::new(),
            rules: Vec::new(),
        };
        for (index, clause) in clauses.iter().enumerate() {
            chain.clause(index, clause);
        }
        chain
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    fn clause(&mut self, index: usize, clause: &Clause) {
        let Some(head) = self.destination(index, &clause.destination) else {
            return;
        };
        let head = match clause.protocol.number() {
            Some(number) => head.equal(Field::Protocol, &[number]),
            None => head,
        };
        let by_port: Vec<Rule> = match clause.protocol {
            Protocol::Tcp | Protocol::Udp if !clause.ports.is_empty() => {
                let rule = |range: &PortRange| head.clone().when(to_ports(*range));
                clause.ports.iter().map(rule).collect()
            }
            _ => vec![head],
        };
        let end = |rule: Rule| match clause.action {
            Action::Allow => rule.goto(ALLOW),
            Action::Deny => rule.drop(),
        };
        self.rules.extend(by_port.into_iter().map(end));
    }

    /// A rule that matches the destination; `None` when no address is meant.
    fn destination(&mut self, index: usize, destination: &Destination) -> Option<Rule> {
        let field = Field::DestinationAddress;
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
                    let name = format!("{}_{index}", self.name);
                    let set = Set::new(name.clone(), &[field], SetKind::Interval);
                    self.ranges.push((set, Element::ranges(many)));
                    Some(Rule::new().in_set(&[field], &name))
                }
            },
            Destination::Domains(_) => {
                let set = names::set(index);
                let rule = Rule::new().in_set(&set.key, &set.name);
                self.names.push(set);
                Some(rule)
            }
        }
    }

    /// The changes that bring the chain into the table, whatever an earlier process left of it.
    pub(crate) fn add(&self) -> Vec<Change> {
        let mut changes: Vec<Change> = self.names.iter().cloned().map(Change::EnsureSet).collect();
        for (set, elements) in &self.ranges {
            let (name, elements) = (set.name.clone(), elements.clone());
            changes.push(Change::EnsureSet(set.clone()));
            changes.push(Change::EnsureElements {
                set: name,
                elements,
            });
        }
        changes.push(Change::EnsureEmptyChain(self.name.clone()));
        let add = |rule: &Rule| Change::AddRule {
            chain: self.name.clone(),
            rule: rule.clone(),
        };
        changes.extend(self.rules.iter().map(add));
        changes
    }

    /// The changes that take it out again, when no network uses it any more.
    pub(crate) fn remove(&self) -> Vec<Change> {
        let mut changes = vec![Change::DeleteChain(self.name.clone())];
        let sets = self.ranges.iter().map(|(set, _)| set.name.clone());
        changes.extend(sets.map(Change::DeleteSet));
        changes
    }
}

/// The chain that a chain or set of this name belongs to, if it is one of custom rules.
pub(crate) fn owner(name: &str) -> Option<&str> {
    let (chain, clause) = match name.split_once('_') {
        Some((chain, clause)) => (chain, Some(clause)),
        None => (name, None),
    };
    let digits = chain.strip_prefix(PREFIX)?;
    let is_hash = digits.len() == NAME_DIGITS && digits.bytes().all(|b| b.is_ascii_hexdigit());
    let is_clause = clause.is_none_or(|text| text.parse::<usize>().is_ok());
    (is_hash && is_clause).then_some(chain)
}

fn to_ports(range: PortRange) -> Match {
    let field = Field::DestinationPort;
    let (first, last) = (range.first.to_be_bytes(), range.last.to_be_bytes());
    if first == last {
        Match::Equal {
            field,
            value: first.to_vec(),
            negate: false,
        }
    } else {
        Match::Between {
            field,
            first: first.to_vec(),
            last: last.to_vec(),
        }
    }
}
