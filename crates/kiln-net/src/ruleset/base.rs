//! The host's table: loaded once, then only set and map elements change. Pure.
//!
//! Everything that comes from or goes to an interface with our prefix is judged here, on the
//! host's side, so that even a VMM that broke out into its namespace is bound by it. What no set
//! names is dropped: a half-built sandbox has no network.

use std::net::Ipv4Addr;

use super::{
    Chain, Change, Element, Field, Hook, HookKind, Match, Rule, Set, SetKind, Statement,
    TableFamily, Transaction,
};
use crate::policy::{NEVER, PRIVATE};
use crate::subnet::{Cidr, Ranges};

pub(crate) const SOURCES: &str = "vm_src";
pub(crate) const EVERYWHERE: &str = "pol_all";
pub(crate) const INTERNET: &str = "pol_inet";
pub(crate) const CUSTOM: &str = "pol_custom";
pub(crate) const MARKS: &str = "vm_mark";
/// The chain that lets a flow pass and marks it as its sandbox's.
pub(crate) const ALLOW: &str = "vm_allow";
/// Sandboxes with rules of their own, and the mark of flows that those have approved.
pub(crate) const APPROVED: &str = "vm_approved";
pub(crate) const VERIFIED: &str = "vm_verify";
pub(crate) const PUBLISHED: &str = "pub";
pub(crate) const PUBLISHED_AT: &str = "pub_at";
/// Interfaces whose traffic may leave by one interface only, and which.
pub(crate) const PINNED: &str = "pinned";
pub(crate) const PINNED_OUT: &str = "pinned_out";
/// Bridges whose members may talk to each other.
pub(crate) const SHARED: &str = "shared";

pub(crate) const DROPPED_SPOOFED: &str = "c_spoof";
pub(crate) const DROPPED_NEVER: &str = "c_never";
pub(crate) const DROPPED_NOT_IPV4: &str = "c_not_ipv4";

const TCP: u8 = 6;
const UDP: u8 = 17;
const DNS: u16 = 53;
const IPV4_FRAME: [u8; 2] = [0x08, 0x00];

/// Public resolvers that answer DNS over HTTPS: a guest must not go round the policy through them.
const DOH: [[u8; 4]; 22] = [
    [1, 0, 0, 1],
    [1, 0, 0, 2],
    [1, 0, 0, 3],
    [1, 1, 1, 1],
    [1, 1, 1, 2],
    [1, 1, 1, 3],
    [8, 8, 4, 4],
    [8, 8, 8, 8],
    [9, 9, 9, 9],
    [9, 9, 9, 10],
    [9, 9, 9, 11],
    [149, 112, 112, 9],
    [149, 112, 112, 10],
    [149, 112, 112, 112],
    [45, 90, 28, 0],
    [45, 90, 30, 0],
    [76, 76, 2, 0],
    [76, 76, 10, 0],
    [94, 140, 14, 14],
    [94, 140, 15, 15],
    [208, 67, 220, 220],
    [208, 67, 222, 222],
];

/// What the host's table depends on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Base {
    pub(crate) table: String,
    pub(crate) prefix: String,
    /// The one address that all sandboxes see of this host.
    pub(crate) gateway: Ipv4Addr,
    /// The sandboxes' own addresses.
    pub(crate) pool: Cidr,
    /// Where our resolver listens, at the gateway's address.
    pub(crate) dns_port: u16,
    /// Where our server-name check listens, at the gateway's address.
    pub(crate) verify_port: u16,
}

impl Base {
    /// The transaction that replaces the whole table.
    pub(crate) fn load(&self, comment: String) -> Transaction {
        let mut changes = vec![
            Change::AddTable {
                comment: comment.clone(),
            },
            Change::DeleteTable,
            Change::AddTable { comment },
        ];
        changes.extend([DROPPED_SPOOFED, DROPPED_NEVER, DROPPED_NOT_IPV4].map(Change::AddCounter));
        changes.extend(self.sets());
        changes.extend(chains());
        for (chain, rules) in self.rules() {
            let add = |rule| Change::AddRule {
                chain: chain.to_owned(),
                rule,
            };
            changes.extend(rules.into_iter().map(add));
        }
        Transaction {
            family: TableFamily::Inet,
            table: self.table.clone(),
            changes,
        }
    }

    fn sets(&self) -> Vec<Change> {
        use Field::{
            DestinationAddress, DestinationPort, FlowMark, InputInterface, OutputInterface,
            Protocol, SourceAddress,
        };
        let never = Ranges::of(NEVER.into_iter().chain([self.pool]));
        let doh = Ranges::of(DOH.map(|octets| Cidr::host(octets.into())));
        let key = |bytes: &[u8]| Element::key(bytes.to_vec());
        let constants = [
            (
                Set::new("never4", &[DestinationAddress], SetKind::Interval),
                Element::ranges(never.as_slice()),
            ),
            (
                Set::new("lan4", &[DestinationAddress], SetKind::Interval),
                Element::ranges(Ranges::of(PRIVATE).as_slice()),
            ),
            (
                Set::new("doh4", &[DestinationAddress], SetKind::Interval),
                Element::ranges(doh.as_slice()),
            ),
            (
                Set::new("transports", &[Protocol], SetKind::Plain),
                vec![key(&[TCP]), key(&[UDP])],
            ),
            (
                Set::new("dns_ports", &[DestinationPort], SetKind::Plain),
                [DNS, 853, 8853]
                    .map(|port| key(&port.to_be_bytes()))
                    .to_vec(),
            ),
            (
                Set::new("web_ports", &[DestinationPort], SetKind::Plain),
                [80u16, 443].map(|port| key(&port.to_be_bytes())).to_vec(),
            ),
        ];
        let state = [
            Set::new(SOURCES, &[InputInterface, SourceAddress], SetKind::Plain),
            Set::new(EVERYWHERE, &[InputInterface], SetKind::Plain),
            Set::new(INTERNET, &[InputInterface], SetKind::Plain),
            Set::new(CUSTOM, &[InputInterface], SetKind::VerdictMap),
            Set::new(MARKS, &[InputInterface], SetKind::MarkMap),
            Set::new(APPROVED, &[InputInterface, FlowMark], SetKind::Plain),
            Set::new(VERIFIED, &[InputInterface], SetKind::Plain),
            Set::new(PINNED, &[InputInterface], SetKind::Plain),
            Set::new(
                PINNED_OUT,
                &[InputInterface, OutputInterface],
                SetKind::Plain,
            ),
            Set::new(SHARED, &[InputInterface, OutputInterface], SetKind::Plain),
            Set::new(
                PUBLISHED,
                &[Protocol, DestinationPort],
                SetKind::AddressPortMap,
            ),
            Set::new(
                PUBLISHED_AT,
                &[DestinationAddress, Protocol, DestinationPort],
                SetKind::AddressPortMap,
            ),
        ];
        let mut changes = Vec::new();
        for (set, elements) in constants {
            let name = set.name.clone();
            changes.extend([
                Change::AddSet(set),
                Change::AddElements {
                    set: name,
                    elements,
                },
            ]);
        }
        changes.extend(state.map(Change::AddSet));
        changes
    }

    fn rules(&self) -> Vec<(&'static str, Vec<Rule>)> {
        vec![
            ("raw_pre", vec![self.coming_from_us().goto("raw_vm")]),
            ("raw_vm", self.hygiene()),
            ("nat_pre", self.redirect_in()),
            ("nat_out", publish()),
            ("nat_post", self.hide()),
            (
                "forward",
                vec![
                    self.coming_from_us().goto("vm_out"),
                    self.going_to_us().goto("vm_in"),
                ],
            ),
            ("vm_in", inbound()),
            ("vm_out", self.outbound()),
            ("vm_policy", judge()),
            (ALLOW, vec![allow()]),
            (
                "dnsport",
                vec![
                    Rule::new()
                        .when(Match::Redirected)
                        .equal(Field::DestinationPort, &DNS.to_be_bytes())
                        .accept(),
                    Rule::new().drop(),
                ],
            ),
            ("input", vec![self.coming_from_us().goto("vm_host")]),
            ("vm_host", self.host()),
        ]
    }

    fn coming_from_us(&self) -> Rule {
        Rule::new().entering_by(&self.prefix)
    }

    fn going_to_us(&self) -> Rule {
        Rule::new().leaving_by(&self.prefix)
    }

    fn at_gateway(&self) -> Rule {
        Rule::new().equal(Field::DestinationAddress, &self.gateway.octets())
    }

    /// Before conntrack: IPv4 only, from its own address only, never to what nobody may reach.
    fn hygiene(&self) -> Vec<Rule> {
        let count = |name| Statement::Count(name);
        vec![
            Rule::new()
                .differs(Field::EtherType, &IPV4_FRAME)
                .then(count(DROPPED_NOT_IPV4))
                .drop(),
            Rule::new()
                .not_in_set(&[Field::InputInterface, Field::SourceAddress], SOURCES)
                .then(count(DROPPED_SPOOFED))
                .drop(),
            self.at_gateway().accept(),
            Rule::new()
                .in_set(&[Field::DestinationAddress], "never4")
                .then(count(DROPPED_NEVER))
                .drop(),
        ]
    }

    /// Any resolver a guest asks becomes ours; published ports lead to their guest.
    fn redirect_in(&self) -> Vec<Rule> {
        let dnat = |port| Statement::Dnat {
            address: self.gateway,
            port: Some(port),
        };
        // A rule each: `nft` does not read back a port for "one of these protocols".
        let resolve = |protocol| {
            self.coming_from_us()
                .equal(Field::Protocol, &[protocol])
                .equal(Field::DestinationPort, &DNS.to_be_bytes())
                .then(dnat(self.dns_port))
        };
        let mut rules = vec![resolve(UDP), resolve(TCP)];
        rules.extend(publish());
        // The check connects from the host, so it must never be led to the host itself.
        rules.push(
            Rule::new()
                .in_set(&[Field::InputInterface], VERIFIED)
                .when(Match::LocalDestination)
                .accept(),
        );
        rules.push(
            Rule::new()
                .in_set(&[Field::InputInterface], VERIFIED)
                .equal(Field::Protocol, &[TCP])
                .in_set(&[Field::DestinationPort], "web_ports")
                .then(dnat(self.verify_port)),
        );
        rules
    }

    /// Sandboxes hide behind the host; the host's loopback hides behind the gateway.
    fn hide(&self) -> Vec<Rule> {
        let loopback = Cidr::of(Ipv4Addr::new(127, 0, 0, 0), 8).bounds();
        vec![
            // With br_netfilter, frames between two ports of a bridge come through here, too.
            Rule::new()
                .in_set(&[Field::InputInterface, Field::OutputInterface], SHARED)
                .accept(),
            self.coming_from_us()
                .leaving_by(&self.prefix)
                .then(Statement::Snat(self.gateway)),
            self.coming_from_us().then(Statement::Masquerade),
            self.going_to_us()
                .when(Match::Between {
                    field: Field::SourceAddress,
                    first: loopback.0.to_be_bytes().to_vec(),
                    last: loopback.1.to_be_bytes().to_vec(),
                })
                .then(Statement::Snat(self.gateway)),
        ]
    }

    fn outbound(&self) -> Vec<Rule> {
        let pair = [Field::InputInterface, Field::OutputInterface];
        let elsewhere = Match::InterfacePrefix {
            field: Field::OutputInterface,
            prefix: self.prefix.clone(),
            negate: true,
        };
        vec![
            // Before replies are accepted: nothing at all goes round the tunnel.
            Rule::new()
                .in_set(&[Field::InputInterface], PINNED)
                .when(elsewhere.clone())
                .not_in_set(&pair, PINNED_OUT)
                .drop(),
            Rule::new().when(Match::Reply).accept(),
            Rule::new().when(Match::Invalid).drop(),
            Rule::new().in_set(&pair, SHARED).accept(),
            // A QUIC connection shows no server name in the clear.
            Rule::new()
                .in_set(&[Field::InputInterface], VERIFIED)
                .equal(Field::Protocol, &[UDP])
                .equal(Field::DestinationPort, &443u16.to_be_bytes())
                .drop(),
            // Another sandbox is reached by its published ports only.
            self.going_to_us().when(Match::NotRedirected).drop(),
            Rule::new()
                .when(elsewhere.clone())
                .in_set(&[Field::Protocol], "transports")
                .in_set(&[Field::DestinationPort], "dns_ports")
                .goto("dnsport"),
            Rule::new()
                .when(elsewhere)
                .in_set(&[Field::Protocol], "transports")
                .equal(Field::DestinationPort, &443u16.to_be_bytes())
                .in_set(&[Field::DestinationAddress], "doh4")
                .drop(),
            Rule::new().goto("vm_policy"),
        ]
    }

    /// Of the host's own services a sandbox reaches the resolver only.
    fn host(&self) -> Vec<Rule> {
        vec![
            Rule::new().when(Match::Reply).accept(),
            self.at_gateway()
                .in_set(&[Field::Protocol], "transports")
                .equal(Field::DestinationPort, &self.dns_port.to_be_bytes())
                .accept(),
            self.at_gateway()
                .in_set(&[Field::InputInterface], VERIFIED)
                .equal(Field::Protocol, &[TCP])
                .equal(Field::DestinationPort, &self.verify_port.to_be_bytes())
                .when(Match::Redirected)
                .accept(),
            Rule::new().drop(),
        ]
    }
}

fn publish() -> Vec<Rule> {
    let port = [Field::Protocol, Field::DestinationPort];
    let at = [
        Field::DestinationAddress,
        Field::Protocol,
        Field::DestinationPort,
    ];
    vec![
        Rule::new()
            .in_set(&[Field::Protocol], "transports")
            .then(Statement::DnatFrom {
                key: at.to_vec(),
                map: PUBLISHED_AT,
            }),
        Rule::new()
            .when(Match::LocalDestination)
            .in_set(&[Field::Protocol], "transports")
            .then(Statement::DnatFrom {
                key: port.to_vec(),
                map: PUBLISHED,
            }),
    ]
}

fn allow() -> Rule {
    let mark = Statement::MarkFlowFrom {
        key: Field::InputInterface,
        map: MARKS,
    };
    Rule::new().then(mark).accept()
}

fn inbound() -> Vec<Rule> {
    let mark = Statement::MarkFlowFrom {
        key: Field::OutputInterface,
        map: MARKS,
    };
    vec![
        Rule::new().when(Match::Reply).accept(),
        Rule::new().when(Match::Redirected).then(mark).accept(),
        Rule::new().drop(),
    ]
}

/// Plain policies are sets and not entries of the verdict map: adding to a verdict map, or a rule
/// to a chain, makes the kernel walk every rule that can be reached from a base chain, by every
/// way to it. So one way leads here, and what is the same for all policies is not in their chains.
fn judge() -> Vec<Rule> {
    vec![
        Rule::new()
            .in_set(&[Field::InputInterface], EVERYWHERE)
            .goto(ALLOW),
        Rule::new()
            .in_set(&[Field::InputInterface], INTERNET)
            .not_in_set(&[Field::DestinationAddress], "lan4")
            .goto(ALLOW),
        Rule::new()
            .in_set(&[Field::InputInterface, Field::FlowMark], APPROVED)
            .accept(),
        Rule::new().then(Statement::VerdictFrom {
            key: Field::InputInterface,
            map: CUSTOM,
        }),
        Rule::new().drop(),
    ]
}

/// From sandbox to sandbox: through a published port only, and only if the policy says so.
const RAW: i32 = -300;
const DNAT: i32 = -100;
const SNAT: i32 = 100;
/// Just before everyone else's filters, so that what we drop costs them nothing.
const FILTER: i32 = -5;

fn chains() -> Vec<Change> {
    let base = |name: &str, kind, number, priority| {
        let hook = Some(Hook {
            kind,
            number,
            priority,
            drop: false,
        });
        Change::AddChain(Chain {
            name: name.to_owned(),
            hook,
        })
    };
    let mut chains = vec![
        base("raw_pre", HookKind::Filter, 0, RAW),
        base("nat_pre", HookKind::Nat, 0, DNAT),
        base("nat_out", HookKind::Nat, 3, DNAT),
        base("nat_post", HookKind::Nat, 4, SNAT),
        base("forward", HookKind::Filter, 2, FILTER),
        base("input", HookKind::Filter, 1, FILTER),
    ];
    let plain = [
        "raw_vm",
        "vm_in",
        "vm_out",
        "vm_policy",
        ALLOW,
        "dnsport",
        "vm_host",
    ];
    chains.extend(plain.map(|name| {
        Change::AddChain(Chain {
            name: name.to_owned(),
            hook: None,
        })
    }));
    chains
}
