//! What a user wants of a sandbox's network, checked and put in order.
//!
//! Pure. [`PolicySpec`] is what users write; [`Policy`] is what it means, with every fault found at
//! once. Knows nothing of nftables: the `ruleset` room compiles a [`Policy`].

mod check;
mod domain;
mod judge;
mod publish;
mod rate;

use std::fmt;

use serde::{Deserialize, Serialize};

pub use domain::{DomainName, DomainPattern};
pub use judge::NameVerdict;
pub use publish::{PublishedPort, Transport};
pub use rate::Rate;

use crate::subnet::{Cidr, Ranges};

/// What a rule, or the end of the list, does with a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Action {
    /// Let it pass.
    Allow,
    /// Drop it.
    Deny,
}

/// The three kinds of policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// The public internet.
    AllowAll,
    /// Nothing, not even names.
    DenyAll,
    /// What the rules say.
    Custom,
}

/// Which IP protocol a rule means.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Protocol {
    /// Any.
    #[default]
    All,
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// ICMP.
    Icmp,
}

impl Protocol {
    /// The number in the IP header.
    pub fn number(self) -> Option<u8> {
        match self {
            Self::All => None,
            Self::Icmp => Some(1),
            Self::Tcp => Some(6),
            Self::Udp => Some(17),
        }
    }
}

/// A port, or a range of them, as users write it: `443`, `"443"` or `"8000-8100"`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum PortSpec {
    /// One port.
    Number(u32),
    /// One port or a range.
    Text(String),
}

/// One rule as users write it. Without `domains` and `cidrs` it means every destination.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RuleSpec {
    /// Allow or deny.
    pub action: Action,
    /// Names: `example.com`, `*.example.com` (any depth below, not the name itself), `*`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub domains: Vec<String>,
    /// IPv4 addresses or networks.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub cidrs: Vec<String>,
    /// Which protocol.
    #[serde(default)]
    pub protocol: Protocol,
    /// Destination ports; only with `tcp` or `udp`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<PortSpec>,
    /// For people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub comment: Option<String>,
}

/// Limits as users write them, like `50mbit`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BandwidthSpec {
    /// Towards the guest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub download: Option<String>,
    /// From the guest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upload: Option<String>,
}

/// A policy as users write it.
///
/// Order of judgement: `denied_cidrs`, `rules` from first to last, `allowed_domains` and
/// `allowed_cidrs`, `default_action`. Private ranges stay closed unless a rule names a network
/// inside one, or `private_networks` is set.
///
/// ```
/// use kiln_net::policy::PolicySpec;
/// let spec = PolicySpec { allowed_domains: vec!["*.example.com".into()], ..PolicySpec::default() };
/// assert!(spec.check().is_ok());
/// let spec = PolicySpec { allowed_cidrs: vec!["nonsense".into()], ..PolicySpec::default() };
/// assert_eq!(spec.check().unwrap_err().faults().len(), 1);
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PolicySpec {
    /// The kind; when not given: `custom` if there is any rule, else `allow-all`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<Mode>,
    /// Whether "everywhere" includes private ranges.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub private_networks: bool,
    /// Ordered rules, first match wins.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rules: Vec<RuleSpec>,
    /// Short for a rule that allows these names.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub allowed_domains: Vec<String>,
    /// Short for a rule that allows these networks.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub allowed_cidrs: Vec<String>,
    /// Denied before anything is allowed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub denied_cidrs: Vec<String>,
    /// What happens to what no rule matches; `deny` unless said otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default_action: Option<Action>,
    /// Published ports: `[host-address:]port:guest[/udp]` or `port[/udp]`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub publish: Vec<String>,
    /// Limits of bandwidth.
    #[serde(default)]
    pub bandwidth: BandwidthSpec,
    /// Check the TLS server name or the HTTP host of web traffic against the allowed domains.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub verify_hosts: bool,
}

/// One thing that is wrong with a policy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Fault {
    /// Where, like `rules[2].cidrs[0]`.
    pub field: String,
    /// What.
    pub reason: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.reason)
    }
}

/// A policy was refused: everything that is wrong with it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the network policy is not valid: {}", .faults.iter().map(Fault::to_string).collect::<Vec<_>>().join("; "))]
pub struct PolicyError {
    faults: Vec<Fault>,
}

impl PolicyError {
    /// All faults, in the order of the fields.
    pub fn faults(&self) -> &[Fault] {
        &self.faults
    }
}

/// An inclusive range of ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PortRange {
    /// The first port.
    pub first: u16,
    /// The last port.
    pub last: u16,
}

impl PortRange {
    /// Whether a port is in it.
    pub fn contains(self, port: u16) -> bool {
        (self.first..=self.last).contains(&port)
    }
}

/// Where a clause applies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Destination {
    /// Fixed addresses.
    Addresses(Ranges),
    /// Whatever these names resolve to.
    Domains(Vec<DomainPattern>),
}

/// One step of a checked policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Clause {
    /// What to do.
    pub action: Action,
    /// With packets to where.
    pub destination: Destination,
    /// Of which protocol.
    pub protocol: Protocol,
    /// To which ports; empty means all.
    pub ports: Vec<PortRange>,
}

/// Limits, where there are any.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Bandwidth {
    /// Towards the guest.
    pub download: Option<Rate>,
    /// From the guest.
    pub upload: Option<Rate>,
}

/// What a sandbox may reach, in the shape that the ruleset needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Egress {
    /// Nothing.
    Nothing,
    /// The public internet.
    Internet,
    /// The public internet and private ranges.
    Everywhere,
    /// Judged clause by clause.
    Clauses(Vec<Clause>),
}

/// A checked policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// What may be reached.
    pub egress: Egress,
    /// What is published.
    pub publish: Vec<PublishedPort>,
    /// How fast.
    pub bandwidth: Bandwidth,
    /// Whether web traffic must name an allowed host.
    pub verify_hosts: bool,
}

impl Policy {
    /// Nothing in, nothing out.
    pub fn deny_all() -> Self {
        Self {
            egress: Egress::Nothing,
            publish: Vec::new(),
            bandwidth: Bandwidth::default(),
            verify_hosts: false,
        }
    }

    /// The default: the public internet.
    pub fn allow_all() -> Self {
        Self {
            egress: Egress::Internet,
            ..Self::deny_all()
        }
    }

    /// A number that stands for the policy, among those of one version of this crate.
    pub(crate) fn fingerprint(&self) -> u64 {
        crate::subnet::stable_hash(&[format!("{self:?}").as_bytes()])
    }

    /// Whether both say the same of every packet that a sandbox sends.
    pub(crate) fn judges_like(&self, other: &Self) -> bool {
        self.egress == other.egress && self.verify_hosts == other.verify_hosts
    }

    /// The ordered clauses, if the policy is of that kind.
    pub fn clauses(&self) -> &[Clause] {
        match &self.egress {
            Egress::Clauses(clauses) => clauses,
            Egress::Nothing | Egress::Internet | Egress::Everywhere => &[],
        }
    }
}

impl Default for Policy {
    fn default() -> Self {
        Self::allow_all()
    }
}

impl PolicySpec {
    /// Check everything and say all that is wrong.
    ///
    /// # Errors
    /// [`PolicyError`] with every fault.
    pub fn check(&self) -> Result<Policy, PolicyError> {
        check::check(self)
    }
}

const fn net(a: u8, b: u8, c: u8, d: u8, prefix: u8) -> Cidr {
    Cidr::of(std::net::Ipv4Addr::new(a, b, c, d), prefix)
}

/// Addresses that belong to somebody's own network: closed unless named.
pub const PRIVATE: [Cidr; 5] = [
    net(10, 0, 0, 0, 8),
    net(100, 64, 0, 0, 10),
    net(172, 16, 0, 0, 12),
    net(192, 0, 0, 0, 24),
    net(192, 168, 0, 0, 16),
];

/// Addresses that no policy opens: this host, link-local (cloud metadata), the sandboxes' own
/// addresses, multicast, reserved.
pub const NEVER: [Cidr; 6] = [
    net(0, 0, 0, 0, 8),
    net(127, 0, 0, 0, 8),
    net(169, 254, 0, 0, 16),
    net(198, 18, 0, 0, 15),
    net(224, 0, 0, 0, 4),
    net(240, 0, 0, 0, 4),
];

/// Whether an answer with this address is refused: it points into a private or special range.
pub fn is_special(address: std::net::Ipv4Addr) -> bool {
    PRIVATE
        .iter()
        .chain(&NEVER)
        .any(|cidr| cidr.contains(address))
}

#[cfg(test)]
mod tests;
