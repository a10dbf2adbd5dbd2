//! From what users write to what it means; every fault is collected. Pure.

use super::publish::port;
use super::{
    Action, Bandwidth, Clause, Destination, DomainPattern, Egress, Fault, Mode, NEVER, PRIVATE,
    Policy, PolicyError, PolicySpec, PortRange, PortSpec, Protocol, PublishedPort, Rate, RuleSpec,
};
use crate::subnet::{Cidr, Ranges};

/// Each rule costs a few nftables expressions per packet of its VM.
const MAX_RULES: usize = 64;
const MAX_ITEMS: usize = 256;
const MAX_PORTS: usize = 16;
const MAX_COMMENT_LEN: usize = 256;

pub(super) fn check(spec: &PolicySpec) -> Result<Policy, PolicyError> {
    let mut checker = Checker {
        faults: Vec::new(),
        private_networks: spec.private_networks,
    };
    let egress = checker.egress(spec);
    let publish = checker.publish(&spec.publish);
    let bandwidth = checker.bandwidth(spec);
    if spec.verify_hosts && !has_domains(spec) {
        checker.fault("verify_hosts", "needs a rule that allows domains");
    }
    if checker.faults.is_empty() {
        Ok(Policy {
            egress,
            publish,
            bandwidth,
            verify_hosts: spec.verify_hosts,
        })
    } else {
        Err(PolicyError {
            faults: checker.faults,
        })
    }
}

fn has_domains(spec: &PolicySpec) -> bool {
    let in_rules = |rule: &RuleSpec| rule.action == Action::Allow && !rule.domains.is_empty();
    !spec.allowed_domains.is_empty() || spec.rules.iter().any(in_rules)
}

struct Checker {
    faults: Vec<Fault>,
    private_networks: bool,
}

impl Checker {
    fn fault(&mut self, field: impl Into<String>, reason: impl Into<String>) {
        self.faults.push(Fault {
            field: field.into(),
            reason: reason.into(),
        });
    }

    fn egress(&mut self, spec: &PolicySpec) -> Egress {
        let mode = self.mode(spec);
        let clauses = self.clauses(spec, mode);
        match mode {
            Mode::DenyAll => Egress::Nothing,
            Mode::AllowAll if spec.denied_cidrs.is_empty() && spec.private_networks => {
                Egress::Everywhere
            }
            Mode::AllowAll if spec.denied_cidrs.is_empty() => Egress::Internet,
            Mode::AllowAll | Mode::Custom => Egress::Clauses(clauses),
        }
    }

    /// The kind that is given or implied; contradictions are faults.
    fn mode(&mut self, spec: &PolicySpec) -> Mode {
        let rules = !spec.rules.is_empty()
            || !spec.allowed_domains.is_empty()
            || !spec.allowed_cidrs.is_empty();
        let implied = if rules || spec.default_action.is_some() {
            Mode::Custom
        } else {
            Mode::AllowAll
        };
        let mode = spec.mode.unwrap_or(implied);
        if mode != Mode::Custom && implied == Mode::Custom {
            self.fault(
                "mode",
                "rules, allowed networks, allowed domains and default_action need mode `custom`",
            );
        }
        if mode == Mode::DenyAll && !spec.denied_cidrs.is_empty() {
            self.fault("denied_cidrs", "mode `deny-all` denies everything already");
        }
        if mode == Mode::DenyAll && spec.private_networks {
            self.fault("private_networks", "mode `deny-all` opens nothing");
        }
        mode
    }

    fn clauses(&mut self, spec: &PolicySpec, mode: Mode) -> Vec<Clause> {
        let denied = self.shorthand("denied_cidrs", Action::Deny, &[], &spec.denied_cidrs);
        self.limit("rules", spec.rules.len(), MAX_RULES);
        let mut clauses: Vec<Clause> = denied.into_iter().collect();
        for (index, rule) in spec.rules.iter().take(MAX_RULES).enumerate() {
            clauses.extend(self.rule(&format!("rules[{index}]"), rule));
        }
        clauses.extend(self.shorthand(
            "allowed_domains",
            Action::Allow,
            &spec.allowed_domains,
            &[],
        ));
        clauses.extend(self.shorthand("allowed_cidrs", Action::Allow, &[], &spec.allowed_cidrs));
        let default = match mode {
            Mode::AllowAll => Action::Allow,
            Mode::DenyAll | Mode::Custom => spec.default_action.unwrap_or(Action::Deny),
        };
        if default == Action::Allow {
            clauses.push(self.everywhere(Action::Allow, Protocol::All, Vec::new()));
        }
        clauses
    }

    fn shorthand(
        &mut self,
        field: &str,
        action: Action,
        domains: &[String],
        cidrs: &[String],
    ) -> Option<Clause> {
        if domains.is_empty() && cidrs.is_empty() {
            return None;
        }
        let domains = self.domains(field, domains);
        let addresses = self.cidrs(field, action, cidrs);
        let destination = if cidrs.is_empty() {
            Destination::Domains(domains)
        } else {
            Destination::Addresses(addresses)
        };
        Some(Clause {
            action,
            destination,
            protocol: Protocol::All,
            ports: Vec::new(),
        })
    }

    fn rule(&mut self, field: &str, rule: &RuleSpec) -> Vec<Clause> {
        let ports = self.ports(field, rule);
        if rule
            .comment
            .as_ref()
            .is_some_and(|comment| comment.len() > MAX_COMMENT_LEN)
        {
            self.fault(
                format!("{field}.comment"),
                format!("longer than {MAX_COMMENT_LEN} bytes"),
            );
        }
        let clause = |destination| Clause {
            action: rule.action,
            destination,
            protocol: rule.protocol,
            ports: ports.clone(),
        };
        let mut clauses = Vec::new();
        if !rule.domains.is_empty() {
            let domains = self.domains(&format!("{field}.domains"), &rule.domains);
            clauses.push(clause(Destination::Domains(domains)));
        }
        if !rule.cidrs.is_empty() {
            let ranges = self.cidrs(&format!("{field}.cidrs"), rule.action, &rule.cidrs);
            clauses.push(clause(Destination::Addresses(ranges)));
        }
        if clauses.is_empty() {
            clauses.push(self.everywhere(rule.action, rule.protocol, ports));
        }
        clauses
    }

    fn everywhere(&self, action: Action, protocol: Protocol, ports: Vec<PortRange>) -> Clause {
        let ranges = self.reach(action, Cidr::ALL);
        Clause {
            action,
            destination: Destination::Addresses(ranges),
            protocol,
            ports,
        }
    }

    /// What allowing a network opens: a network inside a private range was named on purpose, a
    /// wider one means the public part of it.
    fn reach(&self, action: Action, cidr: Cidr) -> Ranges {
        let named = PRIVATE.iter().any(|private| private.covers(cidr));
        if action == Action::Deny || self.private_networks || named {
            Ranges::of([cidr])
        } else {
            Ranges::of([cidr]).without(&Ranges::of(PRIVATE))
        }
    }

    fn cidrs(&mut self, field: &str, action: Action, texts: &[String]) -> Ranges {
        self.limit(field, texts.len(), MAX_ITEMS);
        let mut cidrs = Vec::new();
        for (index, text) in texts.iter().take(MAX_ITEMS).enumerate() {
            let field = format!("{field}[{index}]");
            match text.parse::<Cidr>() {
                Ok(cidr) if action == Action::Allow && NEVER.iter().any(|n| n.covers(cidr)) => {
                    self.fault(field, format!("{cidr} is never reachable from a sandbox"));
                }
                Ok(cidr) => cidrs.push(cidr),
                Err(error) => self.fault(field, error.to_string()),
            }
        }
        let pieces = cidrs.iter().map(|cidr| self.reach(action, *cidr));
        Ranges::union(pieces)
    }

    fn domains(&mut self, field: &str, texts: &[String]) -> Vec<DomainPattern> {
        self.limit(field, texts.len(), MAX_ITEMS);
        let mut patterns = Vec::new();
        for (index, text) in texts.iter().take(MAX_ITEMS).enumerate() {
            match DomainPattern::new(text) {
                Some(pattern) => patterns.push(pattern),
                None => self.fault(
                    format!("{field}[{index}]"),
                    "not a domain like `example.com`, `*.example.com` or `*` (other scripts as `xn--…`)",
                ),
            }
        }
        patterns
    }

    fn ports(&mut self, field: &str, rule: &RuleSpec) -> Vec<PortRange> {
        let field = format!("{field}.ports");
        if !rule.ports.is_empty() && !matches!(rule.protocol, Protocol::Tcp | Protocol::Udp) {
            self.fault(&field, "ports need protocol `tcp` or `udp`");
        }
        self.limit(&field, rule.ports.len(), MAX_PORTS);
        let mut ranges = Vec::new();
        for (index, spec) in rule.ports.iter().take(MAX_PORTS).enumerate() {
            match port_range(spec) {
                Some(range) => ranges.push(range),
                None => self.fault(
                    format!("{field}[{index}]"),
                    "not a port from 1 to 65535 or a range like 8000-8100",
                ),
            }
        }
        ranges
    }

    fn publish(&mut self, texts: &[String]) -> Vec<PublishedPort> {
        self.limit("publish", texts.len(), MAX_ITEMS);
        let mut ports: Vec<PublishedPort> = Vec::new();
        for (index, text) in texts.iter().take(MAX_ITEMS).enumerate() {
            let field = format!("publish[{index}]");
            match PublishedPort::new(text) {
                Some(port) if ports.iter().any(|other| other.collides(&port)) => {
                    self.fault(field, format!("port {} is published twice", port.host));
                }
                Some(port) => ports.push(port),
                None => self.fault(field, "not `[address:]port:guest[/udp]`"),
            }
        }
        ports
    }

    fn bandwidth(&mut self, spec: &PolicySpec) -> Bandwidth {
        Bandwidth {
            download: self.rate("bandwidth.download", spec.bandwidth.download.as_deref()),
            upload: self.rate("bandwidth.upload", spec.bandwidth.upload.as_deref()),
        }
    }

    fn rate(&mut self, field: &str, text: Option<&str>) -> Option<Rate> {
        let rate = text.and_then(Rate::new);
        if text.is_some() && rate.is_none() {
            self.fault(
                field,
                "not a rate like `500kbit`, `50mbit` or `1gbit` (8kbit to 100gbit)",
            );
        }
        rate
    }

    fn limit(&mut self, field: &str, count: usize, most: usize) {
        if count > most {
            self.fault(field, format!("{count} entries; {most} are the most"));
        }
    }
}

fn port_range(spec: &PortSpec) -> Option<PortRange> {
    let (first, last) = match spec {
        PortSpec::Number(number) => {
            let port = u16::try_from(*number).ok().filter(|port| *port != 0)?;
            (port, port)
        }
        PortSpec::Text(text) => {
            let (first, last) = text.split_once('-').unwrap_or((text, text));
            (port(first)?, port(last)?)
        }
    };
    (first <= last).then_some(PortRange { first, last })
}
