//! The table inside each sandbox's namespace: the same bytes for all. Address translation and
//! hygiene only; policy lives on the host, where a VMM that broke out cannot reach it. Pure.

use std::net::Ipv4Addr;

use super::{
    Chain, Change, Field, Hook, HookKind, Match, Rule, Statement, TableFamily, Transaction,
};
use crate::subnet::{Cidr, MacAddr};

/// The guest's side of the TAP, the same in every namespace, so that clones need no new address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Inside {
    pub(crate) guest: Ipv4Addr,
    pub(crate) guest_mac: MacAddr,
    /// The namespace's address on the TAP: the guest's gateway and resolver.
    pub(crate) tap_address: Ipv4Addr,
    pub(crate) host_gateway: Ipv4Addr,
    pub(crate) pool: Cidr,
}

const TABLE: &str = "kiln";
const TAP: &str = "tap0";
const UPLINK: &str = "eth0";
const IPV4_FRAME: [u8; 2] = [0x08, 0x00];
const ICMP: u8 = 1;

impl Inside {
    pub(crate) fn load(&self) -> Transaction {
        let mut changes = vec![Change::AddTable {
            comment: "kiln".to_owned(),
        }];
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
            table: TABLE.to_owned(),
            changes,
        }
    }

    fn rules(&self) -> Vec<(&'static str, Vec<Rule>)> {
        let dns = |protocol: u8| {
            on_tap()
                .equal(Field::DestinationAddress, &self.tap_address.octets())
                .equal(Field::Protocol, &[protocol])
                .equal(Field::DestinationPort, &53u16.to_be_bytes())
                .then(Statement::Dnat {
                    address: self.host_gateway,
                    port: None,
                })
        };
        let icmp = |kind: u8| {
            Rule::new()
                .equal(Field::Protocol, &[ICMP])
                .equal(Field::IcmpType, &[kind])
                .accept()
        };
        vec![
            (
                "raw",
                vec![
                    Rule::new().differs(Field::EtherType, &IPV4_FRAME).drop(),
                    on_tap()
                        .differs(Field::EtherSource, &self.guest_mac.0)
                        .drop(),
                    on_tap()
                        .differs(Field::SourceAddress, &self.guest.octets())
                        .drop(),
                ],
            ),
            (
                "pre",
                vec![
                    dns(6),
                    dns(17),
                    from(UPLINK).then(Statement::Dnat {
                        address: self.guest,
                        port: None,
                    }),
                ],
            ),
            ("post", vec![to(UPLINK).then(Statement::Masquerade)]),
            ("forward", self.isolation()),
            // Unreachable, time exceeded: path MTU discovery lives on these.
            ("output", vec![icmp(3), icmp(11)]),
        ]
    }

    /// Other sandboxes stay out of reach even if somebody flushes the host's whole ruleset.
    fn isolation(&self) -> Vec<Rule> {
        let (first, last) = self.pool.bounds();
        let pool = |rule: Rule, field| {
            rule.when(Match::Between {
                field,
                first: first.to_be_bytes().to_vec(),
                last: last.to_be_bytes().to_vec(),
            })
            .differs(field, &self.host_gateway.octets())
            .drop()
        };
        vec![
            pool(to(UPLINK), Field::DestinationAddress),
            pool(from(UPLINK), Field::SourceAddress),
        ]
    }
}

fn from(interface: &str) -> Rule {
    Rule::new().equal(Field::InputInterface, &padded(interface))
}

fn to(interface: &str) -> Rule {
    Rule::new().equal(Field::OutputInterface, &padded(interface))
}

fn on_tap() -> Rule {
    from(TAP)
}

fn padded(interface: &str) -> Vec<u8> {
    let mut name = interface.as_bytes().to_vec();
    name.resize(Field::InputInterface.len(), 0);
    name
}

fn chains() -> Vec<Change> {
    let chain = |name: &str, kind, number, priority, drop| {
        let hook = Some(Hook {
            kind,
            number,
            priority,
            drop,
        });
        Change::AddChain(Chain {
            name: name.to_owned(),
            hook,
        })
    };
    vec![
        chain("raw", HookKind::Filter, 0, -300, false),
        chain("pre", HookKind::Nat, 0, -100, false),
        chain("post", HookKind::Nat, 4, 100, false),
        chain("forward", HookKind::Filter, 2, 0, false),
        chain("input", HookKind::Filter, 1, 0, true),
        chain("output", HookKind::Filter, 3, 0, true),
    ]
}
