//! What a policy says of a packet or a name. Pure: the reference that the ruleset must agree with.

use std::net::Ipv4Addr;

use super::{Action, Clause, Destination, DomainName, Egress, PRIVATE, Policy, Protocol};
use crate::subnet::{Cidr, Ranges};

/// What the resolver does with a question for a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NameVerdict {
    /// The name does not exist for this sandbox.
    Refuse,
    /// Resolve it; the addresses belong to these clauses.
    Resolve {
        /// Positions in [`Policy::clauses`].
        clauses: Vec<usize>,
    },
}

impl Policy {
    /// What happens to a packet. `resolved(clause, address)` says whether the address was handed
    /// out for that clause's domains.
    pub fn judge(
        &self,
        address: Ipv4Addr,
        protocol: u8,
        port: Option<u16>,
        resolved: impl Fn(usize, Ipv4Addr) -> bool,
    ) -> Action {
        let private = || PRIVATE.iter().any(|cidr| cidr.contains(address));
        match &self.egress {
            Egress::Nothing => Action::Deny,
            Egress::Everywhere => Action::Allow,
            Egress::Internet if private() => Action::Deny,
            Egress::Internet => Action::Allow,
            Egress::Clauses(clauses) => clauses
                .iter()
                .enumerate()
                .find(|(index, clause)| {
                    let to = match &clause.destination {
                        Destination::Addresses(ranges) => ranges.contains(address),
                        Destination::Domains(_) => resolved(*index, address),
                    };
                    to && clause.covers(protocol, port)
                })
                .map_or(Action::Deny, |(_, clause)| clause.action),
        }
    }

    /// What happens to a question for a name.
    pub fn judge_name(&self, name: &DomainName) -> NameVerdict {
        match &self.egress {
            Egress::Nothing => NameVerdict::Refuse,
            Egress::Internet | Egress::Everywhere => NameVerdict::Resolve {
                clauses: Vec::new(),
            },
            Egress::Clauses(clauses) => judge_name(clauses, name),
        }
    }
}

fn judge_name(clauses: &[Clause], name: &DomainName) -> NameVerdict {
    let mut matched = Vec::new();
    let mut allowed = false;
    for (index, clause) in clauses.iter().enumerate() {
        match &clause.destination {
            Destination::Addresses(ranges) => allowed |= clause.opens_internet(ranges),
            Destination::Domains(patterns) if patterns.iter().any(|p| p.matches(name)) => {
                // A denial of some ports only needs the addresses too; one of everything, before
                // anything is allowed, hides the name.
                if clause.action == Action::Deny && clause.is_unconditional() {
                    break;
                }
                allowed |= clause.action == Action::Allow;
                matched.push(index);
            }
            Destination::Domains(_) => {}
        }
    }
    if allowed {
        NameVerdict::Resolve { clauses: matched }
    } else {
        NameVerdict::Refuse
    }
}

impl Clause {
    /// Whether protocol and port fit.
    pub fn covers(&self, protocol: u8, port: Option<u16>) -> bool {
        let protocol_fits = self
            .protocol
            .number()
            .is_none_or(|number| number == protocol);
        let port_fits = self.ports.is_empty()
            || port.is_some_and(|port| self.ports.iter().any(|range| range.contains(port)));
        protocol_fits && port_fits
    }

    fn is_unconditional(&self) -> bool {
        self.protocol == Protocol::All && self.ports.is_empty()
    }

    /// Whether names are of use in general: the whole public internet is allowed.
    fn opens_internet(&self, ranges: &Ranges) -> bool {
        let closed = Ranges::of(PRIVATE);
        self.action == Action::Allow
            && Ranges::of([Cidr::ALL])
                .without(&closed)
                .without(ranges)
                .is_empty()
    }
}
