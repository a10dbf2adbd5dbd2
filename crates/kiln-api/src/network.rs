//! Networks of sandboxes as they are asked for and told.

use serde::{Deserialize, Serialize};

/// The network of a sandbox to create.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields, default)]
pub struct NetworkRequest {
    /// Which kind; when unset, one of its own where the host can make one, else none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<NetworkMode>,
    /// What may be reached; the public internet when empty.
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
}

/// What a network lets through.
///
/// Order of judgement: `denied_cidrs`, `allowed_domains` and `allowed_cidrs`, the mode's default.
/// Private ranges stay closed unless an allowed CIDR lies inside one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields, default)]
pub struct NetworkPolicy {
    /// The kind; when unset, `custom` where anything is allowed by name, else `allow-all`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<PolicyMode>,
    /// Names that may be resolved and reached: `example.com`, `*.example.com`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub allowed_domains: Vec<String>,
    /// IPv4 networks that may be reached.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub allowed_cidrs: Vec<String>,
    /// IPv4 networks that may not, whatever else is said.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub denied_cidrs: Vec<String>,
    /// Published ports: `[[address:]host:]guest[/udp]`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub publish: Vec<String>,
    /// Limits of bandwidth.
    pub bandwidth: Bandwidth,
    /// Check the server name of web traffic against the allowed domains.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub verify_hosts: bool,
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
            r#"{"mode": "bridge"}"#,
        ] {
            assert!(
                serde_json::from_str::<NetworkRequest>(text).is_err(),
                "{text}"
            );
        }
    }
}
