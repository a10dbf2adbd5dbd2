//! Which questions a policy calls for. Pure.

use std::net::{Ipv4Addr, SocketAddrV4};

use super::{Expected, Probe, Question, Side};
use crate::policy::{
    Action, Destination, DomainName, DomainPattern, Egress, NEVER, NameVerdict, Policy, Protocol,
    Transport,
};

/// Host addresses, neighbours, clauses that are asked about.
pub(super) const MOST_OF_A_KIND: usize = 8;
const METADATA: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);
/// Answers TCP 53, 80, 443 and 853 and echo requests nearly everywhere.
const PUBLIC: Ipv4Addr = Ipv4Addr::new(1, 1, 1, 1);
/// Names that always exist.
const NAMES: [&str; 4] = ["example.com", "example.net", "example.org", "iana.org"];
const ICMP: u8 = 1;
const TCP: u8 = 6;

/// What is around a sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Surroundings {
    /// The resolver that the guest is told of.
    pub resolver: Ipv4Addr,
    /// Where the host listens, so that there is something to be found.
    pub listeners: Vec<SocketAddrV4>,
    /// Other sandboxes' addresses.
    pub neighbours: Vec<Ipv4Addr>,
    /// Those of sandboxes in the same network, where they may talk.
    pub peers: Vec<Ipv4Addr>,
}

/// The questions, the most important ones first.
pub(super) fn plan(policy: &Policy, surroundings: &Surroundings) -> Vec<Probe> {
    let mut probes = Vec::new();
    let mut guest = |about: &str, question, expected| {
        probes.push(Probe {
            about: about.to_owned(),
            from: Side::Guest,
            question,
            expected,
        });
    };
    for listener in &surroundings.listeners {
        guest(
            "a service of the host",
            Question::Tcp(*listener),
            Expected::Closed,
        );
    }
    for neighbour in &surroundings.neighbours {
        guest(
            "another sandbox",
            Question::Ping(*neighbour),
            Expected::Closed,
        );
    }
    for peer in &surroundings.peers {
        guest(
            "a member of the network",
            Question::Ping(*peer),
            Expected::Open,
        );
    }
    guest("cloud metadata", tcp(METADATA, 80), Expected::Closed);
    guest("DNS over TLS", tcp(PUBLIC, 853), Expected::Closed);
    guest("DNS over HTTPS", tcp(PUBLIC, 443), Expected::Closed);
    guest(
        "the internet",
        tcp(PUBLIC, 80),
        expected(policy, PUBLIC, TCP, Some(80)),
    );
    guest(
        "the internet",
        Question::Ping(PUBLIC),
        expected(policy, PUBLIC, ICMP, None),
    );
    for (about, question, expected) in clauses(policy) {
        guest(about, question, expected);
    }
    for (about, question, expected) in names(policy, surroundings.resolver) {
        guest(about, question, expected);
    }
    probes.extend(published(policy));
    probes
}

fn tcp(to: Ipv4Addr, port: u16) -> Question {
    Question::Tcp(SocketAddrV4::new(to, port))
}

fn expected(policy: &Policy, to: Ipv4Addr, protocol: u8, port: Option<u16>) -> Expected {
    let never = NEVER.iter().any(|cidr| cidr.contains(to));
    match policy.judge(to, protocol, port, |_, _| false) {
        Action::Allow if !never => Expected::Open,
        _ => Expected::Closed,
    }
}

/// One address of each rule about networks, where TCP or an echo can show it.
fn clauses(policy: &Policy) -> Vec<(&'static str, Question, Expected)> {
    let mut questions = Vec::new();
    for clause in policy.clauses() {
        let Destination::Addresses(ranges) = &clause.destination else {
            continue;
        };
        let Some((first, last)) = ranges.as_slice().first().copied() else {
            continue;
        };
        // The first address of a network is rarely anybody's.
        let to = Ipv4Addr::from_bits(first.saturating_add(1).min(last));
        let port = clause.ports.first().map_or(80, |range| range.first);
        let question = match clause.protocol {
            Protocol::All | Protocol::Tcp => (tcp(to, port), TCP, Some(port)),
            Protocol::Icmp => (Question::Ping(to), ICMP, None),
            Protocol::Udp => continue,
        };
        let (question, protocol, port) = question;
        // What encrypted names would use is closed whatever the rules say.
        if matches!(port, Some(53 | 853 | 8853)) {
            continue;
        }
        questions.push(("a rule", question, expected(policy, to, protocol, port)));
    }
    questions.truncate(MOST_OF_A_KIND);
    questions
}

fn names(policy: &Policy, resolver: Ipv4Addr) -> Vec<(&'static str, Question, Expected)> {
    let allowed = |name: &DomainName| policy.judge_name(name) != NameVerdict::Refuse;
    let samples: Vec<DomainName> = NAMES
        .iter()
        .filter_map(|name| DomainName::new(name))
        .collect();
    let mut questions = Vec::new();
    let ask = |resolver, name: &DomainName| Question::Name {
        resolver,
        name: name.to_string(),
    };
    if let Some(name) = samples.iter().find(|name| !allowed(name)) {
        questions.push((
            "a name that is not allowed",
            ask(resolver, name),
            Expected::Closed,
        ));
        questions.push((
            "the same, asked elsewhere",
            ask(PUBLIC, name),
            Expected::Closed,
        ));
    }
    let open = matches!(policy.egress, Egress::Internet | Egress::Everywhere);
    let general = samples
        .iter()
        .filter(|name| open && allowed(name))
        .take(1)
        .cloned();
    for name in named(policy)
        .filter(&allowed)
        .take(MOST_OF_A_KIND)
        .chain(general)
    {
        questions.push(("an allowed name", ask(resolver, &name), Expected::Open));
    }
    questions
}

/// The names that rules spell out.
fn named(policy: &Policy) -> impl Iterator<Item = DomainName> {
    let patterns = policy
        .clauses()
        .iter()
        .filter_map(|clause| match &clause.destination {
            Destination::Domains(patterns) if clause.action == Action::Allow => Some(patterns),
            _ => None,
        });
    patterns.flatten().filter_map(|pattern| match pattern {
        DomainPattern::Exact(name) => Some(name.clone()),
        DomainPattern::Any | DomainPattern::Below(_) => None,
    })
}

fn published(policy: &Policy) -> impl Iterator<Item = Probe> {
    let tcp_only = policy
        .publish
        .iter()
        .filter(|port| port.transport == Transport::Tcp);
    tcp_only.map(|port| Probe {
        about: "a published port".to_owned(),
        from: Side::Host,
        question: tcp(port.address.unwrap_or(Ipv4Addr::LOCALHOST), port.host),
        expected: Expected::Open,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::PolicySpec;

    fn planned(json: &str) -> Vec<Probe> {
        let spec: PolicySpec = serde_json::from_str(json).unwrap();
        let surroundings = Surroundings {
            resolver: Ipv4Addr::new(198, 19, 255, 1),
            listeners: vec!["203.0.113.1:40000".parse().unwrap()],
            neighbours: vec![Ipv4Addr::new(198, 18, 1, 9)],
            peers: Vec::new(),
        };
        plan(&spec.check().unwrap(), &surroundings)
    }

    fn of<'a>(probes: &'a [Probe], about: &str) -> Vec<&'a Probe> {
        probes.iter().filter(|probe| probe.about == about).collect()
    }

    #[test]
    fn what_nobody_may_reach_is_asked_about_under_every_policy() {
        for policy in [
            "{}",
            r#"{"mode":"deny-all"}"#,
            r#"{"private_networks":true}"#,
            r#"{"allowed_cidrs":["0.0.0.0/0"]}"#,
        ] {
            let probes = planned(policy);
            for about in [
                "a service of the host",
                "another sandbox",
                "cloud metadata",
                "DNS over TLS",
                "DNS over HTTPS",
            ] {
                let found = of(&probes, about);
                assert_eq!(found.len(), 1, "{about}");
                assert_eq!(
                    found[0].expected,
                    Expected::Closed,
                    "{about} under {policy}"
                );
            }
        }
    }

    #[test]
    fn the_internet_is_open_or_closed_as_the_policy_says() {
        let internet = |json: &str| {
            let probes = planned(json);
            of(&probes, "the internet")
                .iter()
                .map(|probe| probe.expected)
                .collect::<Vec<_>>()
        };
        assert_eq!(internet("{}"), [Expected::Open; 2]);
        assert_eq!(internet(r#"{"mode":"deny-all"}"#), [Expected::Closed; 2]);
        assert_eq!(
            internet(r#"{"allowed_domains":["a.example"]}"#),
            [Expected::Closed; 2],
            "raw address"
        );
        let icmp = r#"{"rules":[{"action":"allow","protocol":"icmp"}]}"#;
        assert_eq!(internet(icmp), [Expected::Closed, Expected::Open]);
    }

    #[test]
    fn rules_names_and_ports_are_asked_about() {
        let probes = planned(
            r#"{"denied_cidrs":["9.9.0.0/16"],"allowed_domains":["a.example","*.b.example"],
                "allowed_cidrs":["10.9.0.0/16"],"publish":["127.0.0.1:8080:80","53:53/udp"]}"#,
        );
        let rules: Vec<_> = of(&probes, "a rule")
            .iter()
            .map(|p| (p.question.to_string(), p.expected))
            .collect();
        assert_eq!(
            rules,
            [
                ("tcp 9.9.0.1:80".to_owned(), Expected::Closed),
                ("tcp 10.9.0.1:80".to_owned(), Expected::Open),
            ]
        );
        assert_eq!(of(&probes, "an allowed name").len(), 1);
        assert_eq!(of(&probes, "a name that is not allowed").len(), 1);
        assert_eq!(of(&probes, "the same, asked elsewhere").len(), 1);
        let ports: Vec<_> = of(&probes, "a published port")
            .iter()
            .map(|p| p.question.to_string())
            .collect();
        assert_eq!(ports, ["tcp 127.0.0.1:8080"]);
    }
}
