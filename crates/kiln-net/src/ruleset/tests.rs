use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use proptest::prelude::*;

use super::base::Base;
use super::custom::CustomChain;
use super::guest::Inside;
use super::names::Grant;
use super::sandbox::{Entry, Subject};
use super::*;
use crate::policy::{
    Action, Destination, NEVER, PRIVATE, Policy, PolicySpec, PortSpec, Protocol, PublishedPort,
    RuleSpec,
};
use crate::subnet::{Cidr, InterfaceName, MacAddr};

fn policy(json: &str) -> Policy {
    serde_json::from_str::<PolicySpec>(json)
        .unwrap()
        .check()
        .unwrap()
}

fn subject() -> Subject {
    let guest = Ipv4Addr::new(198, 18, 1, 7);
    Subject {
        interface: InterfaceName::new("kln0007-abc").unwrap(),
        slot: 7,
        generation: 3,
        sources: vec![guest],
        pinned_to: None,
        open_lan: false,
        published: vec![
            (PublishedPort::new("8080:80").unwrap(), guest),
            (
                PublishedPort::new("203.0.113.1:53:5353/udp").unwrap(),
                guest,
            ),
        ],
    }
}

fn base() -> Base {
    Base {
        table: "kiln".to_owned(),
        prefix: "kln".to_owned(),
        gateway: Ipv4Addr::new(198, 18, 0, 1),
        pool: Cidr::of(Ipv4Addr::new(198, 18, 0, 0), 16),
        dns_port: 53,
        verify_port: 8443,
    }
}

/// Compare with what was reviewed. `KILN_BLESS=1` writes it anew: then review the difference.
fn golden(name: &str, text: &str) {
    let path = format!("{}/tests/golden/{name}.txt", env!("CARGO_MANIFEST_DIR"));
    if std::env::var_os("KILN_BLESS").is_some() {
        std::fs::write(&path, text).unwrap();
    }
    let reviewed = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        reviewed == text,
        "{name} differs from {path}; the ruleset is now:\n{text}"
    );
}

fn text(changes: Vec<Change>) -> String {
    let lines = changes.iter().map(|change| format!("{change}\n"));
    lines.collect()
}

#[test]
fn the_hosts_table_is_as_reviewed() {
    golden("host", &base().load("ours".to_owned()).to_string());
}

#[test]
fn the_table_inside_is_as_reviewed() {
    let inside = Inside {
        guest: Ipv4Addr::new(198, 19, 255, 2),
        guest_mac: MacAddr([2, 0, 0, 0, 0, 2]),
        tap_address: Ipv4Addr::new(198, 19, 255, 1),
        host_gateway: Ipv4Addr::new(198, 18, 0, 1),
        pool: Cidr::of(Ipv4Addr::new(198, 18, 0, 0), 16),
    };
    golden("inside", &inside.load().to_string());
}

#[test]
fn the_table_for_bridges_is_as_reviewed() {
    golden(
        "bridge",
        &bridge::load("kiln", "klnt", "ours".to_owned()).to_string(),
    );
}

#[test]
fn policies_compile_as_reviewed() {
    let custom = policy(
        r#"{"denied_cidrs":["198.51.100.11"],
            "rules":[{"action":"allow","domains":["*.example.com"],"protocol":"tcp","ports":[443,"8000-8100"]},
                     {"action":"deny","cidrs":["9.0.0.0/8","11.0.0.0/8"],"protocol":"icmp"}],
            "allowed_cidrs":["198.51.100.0/24","10.9.0.0/16"],"verify_hosts":true}"#,
    );
    let grants = [Grant {
        clause: 1,
        address: Ipv4Addr::new(203, 0, 113, 9),
        timeout_ms: 60_000,
    }];
    let mut all = String::new();
    let tunnelled = Subject {
        pinned_to: Some(InterfaceName::new("wg0").unwrap()),
        published: Vec::new(),
        ..subject()
    };
    let cases = [
        ("allow-all", subject(), policy("{}"), &[][..]),
        ("deny-all", subject(), Policy::deny_all(), &[]),
        (
            "everywhere",
            subject(),
            policy(r#"{"private_networks":true}"#),
            &[],
        ),
        ("custom", subject(), custom, &grants),
        ("tunnelled", tunnelled, policy("{}"), &[]),
    ];
    for (name, subject, policy, grants) in cases {
        let entry = Entry::compile(&subject, &policy);
        if let Some(chain) = entry.chain() {
            all += &format!("# {name}: first user\n{}", text(chain.add()));
            all += &format!("# {name}: last user\n{}", text(chain.remove()));
        }
        all += &format!("# {name}: add\n{}", text(entry.add()));
        all += &format!("# {name}: remove\n{}", text(entry.remove()));
        let open: Vec<_> = grants.iter().map(|it| (it.clause, it.address)).collect();
        all += &text(names::open(&subject.interface, grants));
        all += &text(names::close(&subject.interface, &open));
        all += "\n";
    }
    golden("policies", &all);
}

#[test]
fn policies_that_look_alike_to_the_kernel_share_a_chain() {
    let name = |json: &str| {
        let chain = CustomChain::compile(policy(json).clauses());
        chain.name().to_owned()
    };
    let one = name(r#"{"allowed_domains":["a.example"],"allowed_cidrs":["198.51.100.0/24"]}"#);
    let alike = [
        r#"{"allowed_domains":["b.example","*.c.example"],"allowed_cidrs":["198.51.100.0/24"]}"#,
        r#"{"allowed_domains":["a.example"],"allowed_cidrs":["198.51.100.0/25","198.51.100.128/25"],"publish":["80"]}"#,
    ];
    for json in alike {
        assert_eq!(name(json), one, "{json}");
    }
    let unlike = [
        r#"{"allowed_domains":["a.example"],"allowed_cidrs":["198.51.101.0/24"]}"#,
        r#"{"allowed_domains":["a.example"],"allowed_cidrs":["198.51.100.0/24","203.0.113.0/24"]}"#,
        r#"{"allowed_cidrs":["198.51.100.0/24"]}"#,
        r#"{"denied_cidrs":["198.51.100.0/24"],"allowed_domains":["a.example"]}"#,
        r#"{"allowed_domains":["a.example"],"rules":[{"action":"allow","cidrs":["198.51.100.0/24"]}]}"#,
        r#"{"allowed_domains":["a.example"],"allowed_cidrs":["198.51.100.0/24"],"default_action":"allow"}"#,
    ];
    let names: BTreeSet<String> = unlike.into_iter().map(name).collect();
    assert_eq!(names.len(), unlike.len());
    assert!(!names.contains(&one));
}

/// A packet as a policy sees it.
#[derive(Debug, Clone, Copy)]
struct Packet {
    to: Ipv4Addr,
    protocol: u8,
    port: Option<u16>,
}

/// The kernel's part: walks the compiled rules of a sandbox for a new flow.
struct Machine {
    sets: BTreeMap<String, Vec<(u32, u32)>>,
    /// Set, interface and address.
    names: BTreeSet<(String, Vec<u8>)>,
    chains: BTreeMap<String, Vec<Rule>>,
    custom: Option<String>,
    everywhere: bool,
    internet: bool,
}

impl Machine {
    fn load(subject: &Subject, entry: &Entry, grants: &[Grant]) -> Self {
        let mut machine = Self {
            sets: BTreeMap::new(),
            names: BTreeSet::new(),
            chains: BTreeMap::new(),
            custom: None,
            everywhere: false,
            internet: false,
        };
        let chain = entry.chain().map(CustomChain::add);
        let opened = names::open(&subject.interface, grants);
        let changes = chain.into_iter().flatten().chain(entry.add()).chain(opened);
        changes.for_each(|change| machine.take(change));
        machine
    }

    fn take(&mut self, change: Change) {
        match change {
            Change::EnsureSet(set) => drop(self.sets.insert(set.name, Vec::new())),
            Change::EnsureElements { set, elements } if set.starts_with("names_") => {
                let keys = elements
                    .into_iter()
                    .map(|element| (set.clone(), element.key));
                self.names.extend(keys);
            }
            Change::DeleteElements { set, elements } => {
                for element in elements {
                    assert!(self.names.remove(&(set.clone(), element.key)));
                }
            }
            Change::EnsureElements { set, elements } => {
                self.sets.get_mut(&set).unwrap().extend(ranges(&elements));
            }
            Change::EnsureEmptyChain(chain) => drop(self.chains.insert(chain, Vec::new())),
            Change::AddRule { chain, rule } => self.chains.get_mut(&chain).unwrap().push(rule),
            Change::AddElements { set, elements } => match (set.as_str(), &elements[0].data) {
                (base::EVERYWHERE, _) => self.everywhere = true,
                (base::INTERNET, _) => self.internet = true,
                (base::CUSTOM, Some(Data::Verdict(Verdict::Jump(chain)))) => {
                    self.custom = Some(chain.clone());
                }
                _ => {}
            },
            other => panic!("{other} is no part of adding"),
        }
    }

    /// As the chain `vm_policy` does.
    fn judge(&self, packet: Packet) -> Action {
        let private = PRIVATE.iter().any(|cidr| cidr.contains(packet.to));
        if self.everywhere || (self.internet && !private) {
            return Action::Allow;
        }
        let chain = self.custom.as_ref().map(|name| &self.chains[name]);
        for rule in chain.into_iter().flatten() {
            if rule
                .matches
                .iter()
                .all(|condition| self.holds(condition, packet))
            {
                return match rule.statements.last() {
                    Some(Statement::Verdict(Verdict::Goto(chain))) if chain == base::ALLOW => {
                        Action::Allow
                    }
                    Some(Statement::Verdict(Verdict::Drop)) => Action::Deny,
                    other => panic!("{other:?} ends no rule of a policy"),
                };
            }
        }
        Action::Deny
    }

    fn holds(&self, condition: &Match, packet: Packet) -> bool {
        let field = |field| match field {
            Field::DestinationAddress => Some(packet.to.octets().to_vec()),
            Field::Protocol => Some(vec![packet.protocol]),
            Field::DestinationPort => packet.port.map(|port| port.to_be_bytes().to_vec()),
            other => panic!("{other} in a policy"),
        };
        match condition {
            Match::Equal {
                field: f,
                value,
                negate,
            } => field(*f).is_some_and(|found| (found == *value) != *negate),
            Match::Between {
                field: f,
                first,
                last,
            } => field(*f).is_some_and(|found| (first..=last).contains(&&found)),
            Match::InSet {
                key,
                set,
                negate: false,
            } if key[..] == [Field::InputInterface, Field::DestinationAddress] => {
                let from = interface_key(&subject().interface);
                let key = [from, packet.to.octets().to_vec()].concat();
                assert!(self.sets.contains_key(set), "{set} is made with the chain");
                self.names.contains(&(set.clone(), key))
            }
            Match::InSet {
                key,
                set,
                negate: false,
            } => {
                assert_eq!(key[..], [Field::DestinationAddress]);
                let to = packet.to.to_bits();
                self.sets[set]
                    .iter()
                    .any(|(first, last)| (*first..=*last).contains(&to))
            }
            other => panic!("{other} in a policy"),
        }
    }
}

fn ranges(elements: &[Element]) -> Vec<(u32, u32)> {
    let number = |element: &Element| u32::from_be_bytes(element.key[..].try_into().unwrap());
    let mut ranges = Vec::new();
    for element in elements {
        if element.interval_end {
            let (_, last): &mut (u32, u32) = ranges.last_mut().unwrap();
            *last = number(element) - 1;
        } else {
            ranges.push((number(element), u32::MAX));
        }
    }
    ranges
}

/// Addresses that policies and packets share often enough to meet.
fn address() -> impl Strategy<Value = Ipv4Addr> {
    let near = (0u8..4, 0u8..4).prop_map(|(c, d)| Ipv4Addr::new(198, 51, c, d));
    let private = (0u8..4).prop_map(|d| Ipv4Addr::new(10, 9, 0, d));
    prop_oneof![3 => near, 1 => private, 1 => any::<u32>().prop_map(Ipv4Addr::from_bits)]
}

fn cidr() -> impl Strategy<Value = String> {
    let open = |(address, prefix): &(Ipv4Addr, u8)| {
        let cidr = Cidr::of(*address, *prefix);
        !NEVER.iter().any(|never| never.covers(cidr))
    };
    (address(), prop_oneof![Just(0u8), 8u8..=32])
        .prop_filter("reachable at all", open)
        .prop_map(|(address, prefix)| Cidr::of(address, prefix).to_string())
}

fn rule() -> impl Strategy<Value = RuleSpec> {
    let action = prop_oneof![Just(Action::Allow), Just(Action::Deny)];
    let protocol = prop_oneof![
        Just(Protocol::All),
        Just(Protocol::Tcp),
        Just(Protocol::Udp),
        Just(Protocol::Icmp)
    ];
    let ports = proptest::collection::vec((1u16..6, 0u16..3), 0..3);
    let cidrs = proptest::collection::vec(cidr(), 0..4);
    (action, protocol, ports, cidrs, any::<bool>()).prop_map(
        |(action, protocol, ports, cidrs, named)| {
            let ported = matches!(protocol, Protocol::Tcp | Protocol::Udp);
            let text =
                |(first, more): (u16, u16)| PortSpec::Text(format!("{first}-{}", first + more));
            RuleSpec {
                action,
                domains: if named {
                    vec!["*.example.com".to_owned()]
                } else {
                    Vec::new()
                },
                cidrs,
                protocol,
                ports: ports.into_iter().filter(|_| ported).map(text).collect(),
                comment: None,
            }
        },
    )
}

fn spec() -> impl Strategy<Value = PolicySpec> {
    let default = prop_oneof![Just(Some(Action::Allow)), Just(Some(Action::Deny))];
    let denied = proptest::collection::vec(cidr(), 0..2);
    let rules = proptest::collection::vec(rule(), 0..5);
    (default, denied, rules, any::<bool>()).prop_map(
        |(default_action, denied_cidrs, rules, private_networks)| PolicySpec {
            default_action,
            denied_cidrs,
            rules,
            private_networks,
            ..PolicySpec::default()
        },
    )
}

proptest! {
    /// The reference and the compiled rules say the same of every packet.
    #[test]
    fn the_ruleset_says_what_the_policy_says(
        spec in spec(),
        resolved in proptest::collection::btree_set(address(), 0..3),
        packets in proptest::collection::vec((address(), prop_oneof![Just(1u8), Just(6), Just(17)], 1u16..8), 1..12),
    ) {
        let policy = spec.check().unwrap();
        let named = policy.clauses().iter().enumerate()
            .filter(|(_, clause)| matches!(clause.destination, Destination::Domains(_)));
        let grants: Vec<Grant> = named
            .flat_map(|(clause, _)| resolved.iter().map(move |address| Grant { clause, address: *address, timeout_ms: 1000 }))
            .collect();
        let machine = Machine::load(&subject(), &Entry::compile(&subject(), &policy), &grants);
        for (to, protocol, port) in packets {
            let port = (protocol != 1).then_some(port);
            let packet = Packet { to, protocol, port };
            let said = policy.judge(to, protocol, port, |clause, address| {
                grants.iter().any(|grant| grant.clause == clause && grant.address == address)
            });
            prop_assert_eq!(machine.judge(packet), said, "{:?} under {:?}", packet, policy);
        }
    }

    /// What is added is what is removed, so that nothing stays in the table.
    #[test]
    fn removing_takes_out_exactly_what_adding_put_in(spec in spec()) {
        let policy = spec.check().unwrap();
        let entry = Entry::compile(&subject(), &policy);
        let chain = |changes: fn(&CustomChain) -> Vec<Change>| entry.chain().map_or_else(Vec::new, changes);
        let (mut added, mut removed) = (Vec::new(), Vec::new());
        for change in chain(CustomChain::add).into_iter().chain(entry.add()) {
            match change {
                // Everybody's.
                Change::EnsureSet(set) if names::clause_of(&set.name).is_some() => {}
                Change::EnsureSet(set) => added.push(format!("set {}", set.name)),
                Change::EnsureEmptyChain(name) => added.push(format!("chain {name}")),
                Change::AddElements { set, elements } => added.push(format!("{set} {:?}", elements[0].key)),
                _ => {}
            }
        }
        for change in entry.remove().into_iter().chain(chain(CustomChain::remove)) {
            match change {
                Change::DeleteSet(name) => removed.push(format!("set {name}")),
                Change::DeleteChain(name) => removed.push(format!("chain {name}")),
                Change::DeleteElements { set, elements } => removed.push(format!("{set} {:?}", elements[0].key)),
                other => panic!("{other} is no part of removing"),
            }
        }
        let ours = |name: &str| custom::owner(name) == entry.chain().map(CustomChain::name);
        let named = added.iter().filter_map(|it| it.strip_prefix("set ").or_else(|| it.strip_prefix("chain ")));
        prop_assert!(named.into_iter().all(ours), "found again by name");
        added.sort();
        removed.sort();
        prop_assert_eq!(added, removed);
    }
}
