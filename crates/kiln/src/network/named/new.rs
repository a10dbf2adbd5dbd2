//! What a user asks of a network with a name, and the rules that it must meet. Pure.

use kiln_net::policy::{Policy, PolicySpec};
use kiln_net::subnet::Subnet;
use serde::{Deserialize, Serialize};

use super::tunnel::{self, TunnelSpec, WireGuard};
use crate::error::{Error, ErrorCode};

/// Words that mean another kind of network where a name could stand.
const OTHER_KINDS: [&str; 4] = ["auto", "default", "none", "user"];
const MAX_NAME_LEN: usize = 63;

/// A network to make.
#[derive(Clone, Debug, Default)]
pub struct NewNetwork {
    /// 1 to 63 of `[a-z0-9-]`, a letter or digit at both ends; not `auto`, `default`, `none`
    /// or `user`.
    pub name: String,
    /// Its addresses, an IPv4 network of /1 to /30; a free one when unset.
    pub subnet: Option<String>,
    /// What its members may reach; ports are published and limits set per sandbox.
    pub policy: PolicySpec,
    /// Whether members reach each other.
    pub members_talk: bool,
    /// The only way out, if there is to be one.
    pub wireguard: Option<WireGuard>,
}

/// What is stored of a network. No key is in it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct NamedSpec {
    pub(crate) subnet: Subnet,
    pub(crate) policy: PolicySpec,
    pub(crate) members_talk: bool,
    pub(crate) tunnel: Option<TunnelSpec>,
}

/// A network that may be made.
pub(super) struct Checked {
    pub(super) subnet: Option<Subnet>,
    pub(super) tunnel: Option<tunnel::Checked>,
}

/// Whether a network can have this name.
pub(in crate::network) fn is_name(text: &str) -> bool {
    let inner = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = text.as_bytes();
    (1..=MAX_NAME_LEN).contains(&bytes.len())
        && bytes.iter().all(|byte| inner(byte) || *byte == b'-')
        && bytes.first().is_some_and(inner)
        && bytes.last().is_some_and(inner)
        && !OTHER_KINDS.contains(&text)
}

impl NewNetwork {
    /// Checks every rule and reports all faults together, under the code of the first.
    pub(super) fn check(&self) -> Result<Checked, Error> {
        let mut faults = Vec::new();
        if !is_name(&self.name) {
            let fault = format!(
                "name {:?} is not 1 to {MAX_NAME_LEN} of a-z, 0-9 and inner dashes, or means \
                 another kind of network",
                self.name
            );
            faults.push((ErrorCode::InvalidSpec, fault));
        }
        let subnet = match self.subnet.as_deref().map(str::parse::<Subnet>) {
            None => None,
            Some(Ok(subnet)) => Some(subnet),
            Some(Err(error)) => {
                faults.push((ErrorCode::InvalidSubnet, format!("subnet: {error}")));
                None
            }
        };
        check_policy(&self.policy, &mut faults);
        let tunnel = self.wireguard.as_ref().and_then(|wireguard| {
            tunnel::check(wireguard, &self.name)
                .map_err(|fault| faults.push(fault))
                .ok()
        });
        if let Some((code, _)) = faults.first() {
            let told: Vec<&str> = faults.iter().map(|(_, fault)| fault.as_str()).collect();
            return Err(Error::new(*code, told.join("; "))
                .with_hint("correct the named fields; nothing was made"));
        }
        Ok(Checked { subnet, tunnel })
    }
}

/// What a network's policy means; `None`, with the faults named, if it cannot be one.
pub(super) fn check_policy(
    spec: &PolicySpec,
    faults: &mut Vec<(ErrorCode, String)>,
) -> Option<Policy> {
    let code = ErrorCode::InvalidNetworkPolicy;
    if !spec.publish.is_empty() {
        let fault = "policy.publish: ports are published by each sandbox, not by the network";
        faults.push((code, fault.to_owned()));
    }
    if spec.bandwidth != kiln_net::policy::BandwidthSpec::default() {
        let fault = "policy.bandwidth: limits are set for each sandbox, not for the network";
        faults.push((code, fault.to_owned()));
    }
    match spec.check() {
        Ok(policy) => Some(policy),
        Err(error) => {
            let named = error.faults().iter();
            faults.extend(named.map(|fault| (code, format!("policy.{fault}"))));
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tunnel::{Secret, Tunnel};
    use super::*;

    fn new(name: &str) -> NewNetwork {
        NewNetwork {
            name: name.to_owned(),
            ..NewNetwork::default()
        }
    }

    fn code(network: &NewNetwork) -> &'static str {
        match network.check() {
            Ok(_) => "",
            Err(error) => error.code().as_str(),
        }
    }

    #[test]
    fn a9_each_fault_has_its_own_code() {
        assert_eq!(code(&new("lan-1")), "");
        for name in ["", "none", "default", "Lan", "-a", "a b", "../x"] {
            assert_eq!(code(&new(name)), "INVALID_SPEC", "{name}");
        }
        for subnet in [
            "10.0.0.0/31",
            "10.0.0.0/0",
            "10.0.0/24",
            "0x0a.0.0.0/8",
            " ",
            "10.0.0.1",
        ] {
            let network = NewNetwork {
                subnet: Some(subnet.to_owned()),
                ..new("lan")
            };
            assert_eq!(code(&network), "INVALID_SUBNET", "{subnet}");
        }
        let policy: PolicySpec =
            serde_json::from_str(r#"{"rules":[{"action":"allow","protocol":"icmp","ports":[1]}]}"#)
                .expect("policy");
        let network = NewNetwork {
            policy,
            ..new("lan")
        };
        assert_eq!(code(&network), "INVALID_FIREWALL_CONFIG");
        let tunnel = |text: &str| NewNetwork {
            wireguard: Some(WireGuard {
                tunnel: Tunnel::Managed {
                    interface: None,
                    config: Secret::new(text),
                },
                ..WireGuard::existing("wg0")
            }),
            ..new("lan")
        };
        let text = "[Interface]\nPrivateKey = oops\n";
        assert_eq!(code(&tunnel(text)), "INVALID_WIREGUARD_CONFIG");
    }

    #[test]
    fn a1_7_neither_a_firewall_nor_a_tunnel_unless_asked_for() {
        let plain = new("lan").check().unwrap_or_else(|error| panic!("{error}"));
        assert!(plain.tunnel.is_none());
        let policy = new("lan").policy.check().expect("the default");
        assert!(policy.clauses().is_empty());
        let asked = NewNetwork {
            policy: serde_json::from_str(
                r#"{"rules":[{"action":"deny","cidrs":["198.51.100.0/24"]}]}"#,
            )
            .expect("policy"),
            wireguard: Some(WireGuard::existing("wg7")),
            ..new("lan")
        };
        let checked = asked.check().unwrap_or_else(|error| panic!("{error}"));
        assert!(checked.tunnel.is_some());
        assert_eq!(asked.policy.check().expect("rules").clauses().len(), 1);
    }

    #[test]
    fn a7_4_what_belongs_to_sandboxes_is_refused_with_every_other_fault() {
        let network = NewNetwork {
            subnet: Some("x".to_owned()),
            policy: serde_json::from_str(
                r#"{"publish":["80:80"],"bandwidth":{"upload":"1mbit"},"denied_cidrs":["y"]}"#,
            )
            .expect("policy"),
            ..new("lan")
        };
        let error = network.check().err().expect("faults");
        for word in ["subnet", "publish", "bandwidth", "denied_cidrs"] {
            assert!(error.message().contains(word), "{error} lacks {word}");
        }
    }
}
