//! Transactions as text, close to nft's own language: for golden tests and `inspect`. Pure.

use std::fmt;
use std::net::Ipv4Addr;

use super::{
    Change, Data, Element, Field, HookKind, Match, Rule, Set, SetKind, Statement, Transaction,
    Verdict,
};

impl fmt::Display for Transaction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "table {} {}",
            format!("{:?}", self.family).to_lowercase(),
            self.table
        )?;
        self.changes
            .iter()
            .try_for_each(|change| writeln!(f, "{change}"))
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AddTable { .. } => f.write_str("add table"),
            Self::DeleteTable => f.write_str("delete table"),
            Self::AddCounter(name) => write!(f, "add counter {name}"),
            Self::AddSet(set) => write!(f, "create {set}"),
            Self::EnsureSet(set) => write!(f, "add {set}"),
            Self::DeleteSet(name) => write!(f, "delete set {name}"),
            Self::AddChain(chain) => match chain.hook {
                None => write!(f, "create chain {}", chain.name),
                Some(hook) => write!(
                    f,
                    "create chain {} {{ type {} hook {} priority {}; policy {}; }}",
                    chain.name,
                    if hook.kind == HookKind::Nat {
                        "nat"
                    } else {
                        "filter"
                    },
                    hook_name(hook.number),
                    hook.priority,
                    if hook.drop { "drop" } else { "accept" },
                ),
            },
            Self::EnsureEmptyChain(name) => write!(f, "add and flush chain {name}"),
            Self::DeleteChain(name) => write!(f, "delete chain {name}"),
            Self::AddRule { chain, rule } => write!(f, "add rule {chain} {rule}"),
            Self::AddElements { set, elements } => elements_text(f, "create", set, elements),
            Self::EnsureElements { set, elements } => elements_text(f, "add", set, elements),
            Self::DeleteElements { set, elements } => elements_text(f, "delete", set, elements),
        }
    }
}

fn hook_name(number: u32) -> &'static str {
    ["prerouting", "input", "forward", "output", "postrouting"]
        .get(number as usize)
        .copied()
        .unwrap_or("?")
}

fn elements_text(
    f: &mut fmt::Formatter<'_>,
    verb: &str,
    set: &str,
    elements: &[Element],
) -> fmt::Result {
    write!(f, "{verb} element {set} {{")?;
    for element in elements {
        write!(
            f,
            " {}{}",
            if element.interval_end { "end:" } else { "" },
            bytes(&element.key)
        )?;
        match &element.data {
            Some(Data::Bytes(data)) => write!(f, " : {}", bytes(data))?,
            Some(Data::Verdict(verdict)) => write!(f, " : {verdict}")?,
            None => {}
        }
        if let Some(timeout) = element.timeout_ms {
            write!(f, " timeout {timeout}ms")?;
        }
        if let Some(rate) = element.rate {
            write!(f, " limit rate over {rate} bytes/second")?;
        }
        f.write_str(",")?;
    }
    f.write_str(" }")
}

/// Bytes as people read them: a name followed by numbers, an address, or hexadecimal.
fn bytes(value: &[u8]) -> String {
    if let Ok(octets) = <[u8; 4]>::try_from(value) {
        return Ipv4Addr::from(octets).to_string();
    }
    if value.len() >= 16 {
        let (name, rest) = value.split_at(16);
        let text: String = name
            .iter()
            .take_while(|byte| **byte != 0)
            .map(|byte| char::from(*byte))
            .collect();
        return if rest.is_empty() {
            text
        } else {
            format!("{text} . {}", bytes(rest))
        };
    }
    value.iter().map(|byte| format!("{byte:02x}")).collect()
}

impl fmt::Display for Set {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            SetKind::AddressPortMap | SetKind::MarkMap | SetKind::VerdictMap => "map",
            SetKind::Plain | SetKind::Interval | SetKind::Timeout | SetKind::Rate => "set",
        };
        write!(f, "{kind} {} {{ {}", self.name, fields(&self.key))?;
        match self.kind {
            SetKind::Plain => {}
            SetKind::Interval => f.write_str("; interval")?,
            SetKind::Timeout => f.write_str("; timeout")?,
            SetKind::Rate => f.write_str("; limit rate over")?,
            SetKind::AddressPortMap => f.write_str(" : address . port")?,
            SetKind::MarkMap => f.write_str(" : mark")?,
            SetKind::VerdictMap => f.write_str(" : verdict")?,
        }
        if self.size > 0 {
            write!(f, "; size {}", self.size)?;
        }
        f.write_str(" }")
    }
}

fn fields(key: &[Field]) -> String {
    key.iter()
        .map(Field::to_string)
        .collect::<Vec<_>>()
        .join(" . ")
}

impl fmt::Display for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::InputInterface => "iifname",
            Self::OutputInterface => "oifname",
            Self::FlowMark => "ct mark",
            Self::EtherType => "meta protocol",
            Self::EtherSource => "ether saddr",
            Self::ArpSenderMac => "arp saddr ether",
            Self::ArpSenderAddress => "arp saddr ip",
            Self::SourceAddress => "ip saddr",
            Self::DestinationAddress => "ip daddr",
            Self::Protocol => "meta l4proto",
            Self::DestinationPort => "th dport",
            Self::IcmpType => "icmp type",
        })
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let matches = self.matches.iter().map(Match::to_string);
        let statements = self.statements.iter().map(Statement::to_string);
        f.write_str(&matches.chain(statements).collect::<Vec<_>>().join(" "))
    }
}

impl fmt::Display for Match {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let not = |negate: &bool| if *negate { "!= " } else { "" };
        match self {
            Self::InterfacePrefix {
                field,
                prefix,
                negate,
            } => {
                write!(f, "{field} {}\"{prefix}*\"", not(negate))
            }
            Self::Equal {
                field,
                value,
                negate,
            } => {
                write!(f, "{field} {}{}", not(negate), value_text(*field, value))
            }
            Self::Between { field, first, last } => {
                write!(
                    f,
                    "{field} {}-{}",
                    value_text(*field, first),
                    value_text(*field, last)
                )
            }
            Self::InSet { key, set, negate } => {
                write!(f, "{} {}@{set}", fields(key), not(negate))
            }
            Self::Reply => f.write_str("ct direction reply"),
            Self::Invalid => f.write_str("ct state invalid"),
            Self::Redirected => f.write_str("ct status dnat"),
            Self::NotRedirected => f.write_str("ct status != dnat"),
            Self::LocalDestination => f.write_str("fib daddr type local"),
        }
    }
}

fn value_text(field: Field, value: &[u8]) -> String {
    match (field, value) {
        (Field::DestinationPort, [high, low]) => u16::from_be_bytes([*high, *low]).to_string(),
        (Field::Protocol | Field::IcmpType, [number]) => number.to_string(),
        _ => bytes(value),
    }
}

impl fmt::Display for Statement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Count(name) => write!(f, "counter name {name}"),
            Self::MarkFlowFrom { key, map } => write!(f, "ct mark set {key} map @{map}"),
            Self::Verdict(verdict) => write!(f, "{verdict}"),
            Self::VerdictFrom { key, map } => write!(f, "{key} vmap @{map}"),
            Self::Dnat {
                address,
                port: Some(port),
            } => write!(f, "dnat ip to {address}:{port}"),
            Self::Dnat {
                address,
                port: None,
            } => write!(f, "dnat ip to {address}"),
            Self::DnatFrom { key, map } => write!(f, "dnat ip to {} map @{map}", fields(key)),
            Self::Snat(address) => write!(f, "snat ip to {address}"),
            Self::Masquerade => f.write_str("masquerade"),
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Accept => f.write_str("accept"),
            Self::Drop => f.write_str("drop"),
            Self::Jump(chain) => write!(f, "jump {chain}"),
            Self::Goto(chain) => write!(f, "goto {chain}"),
        }
    }
}
