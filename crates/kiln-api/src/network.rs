//! Networks of sandboxes as they are asked for and told.

use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

/// The network of a sandbox to create.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields, default)]
pub struct NetworkRequest {
    /// Which kind; when unset, one of its own where the host can make one, else none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<NetworkMode>,
    /// The network to join, by name; one of its own when unset.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The address to have in that network; the lowest free one when unset.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>))]
    pub address: Option<Ipv4Addr>,
    /// What may be reached; the public internet when empty. In a network with a name, only what is
    /// published: the rest is the network's.
    pub policy: NetworkPolicy,
}

/// What kind of network a sandbox has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
pub enum NetworkMode {
    /// One of its own where the host can make one, else none.
    #[default]
    Auto,
    /// No network card at all.
    None,
    /// One of its own, or it does not start.
    Default,
    /// Without root: carried as connections of the daemon's user. No policy is enforced.
    User,
}

/// What a network lets through.
///
/// Order of judgement: `denied_cidrs`, `rules` from first to last, `allowed_domains` and
/// `allowed_cidrs`, `default_action`. Private ranges stay closed unless a rule names a network
/// inside one, or `private_networks` is set.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields, default)]
pub struct NetworkPolicy {
    /// The kind; when unset, `custom` where anything is allowed by name, else `allow-all`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<PolicyMode>,
    /// Whether "everywhere" includes private ranges.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub private_networks: bool,
    /// Ordered rules: the first that matches decides.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub rules: Vec<NetworkRule>,
    /// Names that may be resolved and reached: `example.com`, `*.example.com`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub allowed_domains: Vec<String>,
    /// IPv4 networks that may be reached.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub allowed_cidrs: Vec<String>,
    /// IPv4 networks that may not, whatever else is said.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub denied_cidrs: Vec<String>,
    /// What happens to what no rule matches; `deny` when unset and the mode is `custom`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub default_action: Option<RuleAction>,
    /// Published ports: `[[address:]host:]guest[/udp]`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub publish: Vec<String>,
    /// Limits of bandwidth.
    pub bandwidth: Bandwidth,
    /// Check the server name of web traffic against the allowed domains.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub verify_hosts: bool,
}

/// One rule. Without `domains` and `cidrs` it means every destination.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct NetworkRule {
    /// What it does.
    pub action: RuleAction,
    /// Names: `example.com`, `*.example.com`, `*`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub domains: Vec<String>,
    /// IPv4 addresses or networks.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub cidrs: Vec<String>,
    /// Which protocol.
    #[serde(default)]
    pub protocol: RuleProtocol,
    /// Destination ports; only with `tcp` or `udp`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<RulePorts>,
    /// For people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub comment: Option<String>,
}

/// What a rule does with a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
pub enum RuleAction {
    /// Let it pass.
    Allow,
    /// Drop it.
    Deny,
}

/// Which IP protocol a rule means.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
pub enum RuleProtocol {
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

/// A port or a range: `443`, `"443"` or `"8000-8100"`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(untagged)]
pub enum RulePorts {
    /// One port.
    Number(u32),
    /// One port or a range.
    Text(String),
}

/// Limits such as `50mbit`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields, default)]
pub struct Bandwidth {
    /// Towards the guest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub download: Option<String>,
    /// From the guest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub upload: Option<String>,
}

/// The three kinds of policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
pub enum PolicyMode {
    /// The public internet.
    AllowAll,
    /// Nothing, not even names.
    DenyAll,
    /// What is allowed by name or address.
    Custom,
}

/// A sandbox's network as it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Network {
    /// What was asked for.
    pub mode: NetworkMode,
    /// The network that it shares, if it does: that one's policy holds.
    #[serde(default)]
    pub name: Option<String>,
    /// The policy: in force while it is connected, else for its next start.
    pub policy: NetworkPolicy,
    /// Whether there is a network now.
    pub connected: bool,
    /// Its interface on the host.
    #[serde(default)]
    pub interface: Option<String>,
    /// Where the host reaches the guest.
    #[serde(default)]
    pub address: Option<String>,
    /// What the guest calls itself.
    #[serde(default)]
    pub guest_address: Option<String>,
    /// The guest's gateway and resolver.
    #[serde(default)]
    pub gateway: Option<String>,
    /// The largest packet that passes whole.
    #[serde(default)]
    pub mtu: Option<u32>,
}

/// One question that was asked to verify a policy, and what it showed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct NetworkProof {
    /// What it is about, for people.
    pub about: String,
    /// `guest` or `host`: where it was asked.
    pub from: String,
    /// What was asked.
    pub question: String,
    /// Whether the policy lets an answer come.
    pub allowed: bool,
    /// What it showed.
    pub outcome: ProofOutcome,
}

/// What one question showed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
pub enum ProofOutcome {
    /// As the policy says.
    Holds,
    /// Not as the policy says.
    Broken,
    /// Nothing is shown, since the host gets no answer either.
    Unproven,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_misspelt_limit_is_refused() {
        for text in [
            r#"{"policy": {"denied_cidr": []}}"#,
            r#"{"policy": {"bandwidth": {"up": "1mbit"}}}"#,
            r#"{"policy": {"rules": [{"action": "allow", "cidr": "10.0.0.0/8"}]}}"#,
            r#"{"policy": {"rules": [{"cidrs": ["10.0.0.0/8"]}]}}"#,
            r#"{"mode": "bridge"}"#,
        ] {
            assert!(
                serde_json::from_str::<NetworkRequest>(text).is_err(),
                "{text}"
            );
        }
    }
}
