//! One rule of a policy, as typed and as shown: `allow tcp 198.51.100.0/24 80,443 # comment`.

use std::fmt;
use std::str::FromStr;

use kiln_api::{NetworkRule, RuleAction, RulePorts, RuleProtocol};

/// How a rule is written.
pub(super) const SHAPE: &str =
    "write 'allow|deny [tcp|udp|icmp] any|NAME|CIDR[,…] [PORT|FIRST-LAST[,…]] [# COMMENT]'";
const ANY: &str = "any";

/// A rule, in words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Rule(pub(super) NetworkRule);

impl FromStr for Rule {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (text, comment) = match text.split_once('#') {
            Some((text, comment)) => (text, Some(comment.trim().to_owned())),
            None => (text, None),
        };
        let mut words = text.split_whitespace().peekable();
        let action = match words.next() {
            Some("allow") => RuleAction::Allow,
            Some("deny") => RuleAction::Deny,
            _ => return Err(SHAPE),
        };
        let protocol = words.peek().and_then(|word| protocol(word));
        if protocol.is_some() {
            words.next();
        }
        let (cidrs, domains) = destinations(words.next().ok_or(SHAPE)?);
        let ports = words.next().map_or_else(Vec::new, ports);
        if words.next().is_some() {
            return Err(SHAPE);
        }
        Ok(Self(NetworkRule {
            action,
            domains,
            cidrs,
            protocol: protocol.unwrap_or_default(),
            ports,
            comment,
        }))
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rule = &self.0;
        f.write_str(match rule.action {
            RuleAction::Allow => "allow",
            RuleAction::Deny => "deny",
        })?;
        f.write_str(match rule.protocol {
            RuleProtocol::All => "",
            RuleProtocol::Tcp => " tcp",
            RuleProtocol::Udp => " udp",
            RuleProtocol::Icmp => " icmp",
        })?;
        let to = [rule.cidrs.as_slice(), rule.domains.as_slice()].concat();
        match to.as_slice() {
            [] => write!(f, " {ANY}")?,
            some => write!(f, " {}", some.join(","))?,
        }
        let ports: Vec<String> = rule.ports.iter().map(port_text).collect();
        if !ports.is_empty() {
            write!(f, " {}", ports.join(","))?;
        }
        match &rule.comment {
            Some(comment) => write!(f, " # {comment}"),
            None => Ok(()),
        }
    }
}

fn protocol(word: &str) -> Option<RuleProtocol> {
    match word {
        "all" => Some(RuleProtocol::All),
        "tcp" => Some(RuleProtocol::Tcp),
        "udp" => Some(RuleProtocol::Udp),
        "icmp" => Some(RuleProtocol::Icmp),
        _ => None,
    }
}

/// What looks like an address is one; whether it is right, the daemon says.
fn destinations(text: &str) -> (Vec<String>, Vec<String>) {
    let numeric = |word: &String| {
        word.bytes()
            .all(|byte| byte.is_ascii_digit() || matches!(byte, b'.' | b'/'))
    };
    let words = text.split(',').filter(|word| *word != ANY);
    words.map(str::to_owned).partition(numeric)
}

fn ports(text: &str) -> Vec<RulePorts> {
    let port = |word: &str| match word.parse() {
        Ok(number) => RulePorts::Number(number),
        Err(_) => RulePorts::Text(word.to_owned()),
    };
    text.split(',').map(port).collect()
}

fn port_text(ports: &RulePorts) -> String {
    match ports {
        RulePorts::Number(number) => number.to_string(),
        RulePorts::Text(text) => text.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a7_2_a_rule_reads_as_it_is_shown() {
        for text in [
            "allow tcp 198.51.100.0/24,*.example.com 80,8000-8100 # the web",
            "deny any",
            "allow udp dns.example 53",
            "deny 10.0.0.0/8",
            "allow icmp any",
        ] {
            let rule: Rule = text.parse().unwrap();
            assert_eq!(rule.to_string(), text);
        }
        let rule: Rule = "allow tcp any,1.2.3.4 443".parse().unwrap();
        assert_eq!(rule.0.cidrs, ["1.2.3.4"]);
        assert_eq!(rule.0.ports, [RulePorts::Number(443)]);
    }

    #[test]
    fn a7_4_what_is_no_rule_is_refused() {
        for text in ["", "allow", "permit any", "allow tcp", "deny any 80 90"] {
            assert_eq!(text.parse::<Rule>(), Err(SHAPE), "{text}");
        }
    }
}
