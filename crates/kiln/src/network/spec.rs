//! What a user asks of a sandbox's network. Pure.

use std::net::Ipv4Addr;

use kiln_net::policy::{BandwidthSpec, Policy, PolicySpec};
use serde::{Deserialize, Serialize};

use super::named::is_name;
use crate::error::{Error, ErrorCode};

/// What kind of network a sandbox has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NetworkMode {
    /// One of its own; where this host cannot make one, none, with a warning.
    #[default]
    Auto,
    /// No network card at all.
    None,
    /// One of its own, or it does not start.
    Default,
    /// Without root: `passt` carries its packets as connections of the user's own. No policy is
    /// enforced.
    User,
}

/// What a user asks of a sandbox's network.
///
/// ```
/// let network: kiln::NetworkSpec = serde_json::from_str(
///     r#"{"mode": "default", "policy": {"allowed_domains": ["*.example.com"]}}"#,
/// ).unwrap();
/// assert_eq!(network.mode, kiln::NetworkMode::Default);
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NetworkSpec {
    /// Which kind.
    pub mode: NetworkMode,
    /// The network to join, by name; one of its own when unset.
    pub name: Option<String>,
    /// The address to have in that network; the lowest free one when unset.
    pub address: Option<Ipv4Addr>,
    /// What may be reached, what is published, and how fast; the public internet when empty. In a
    /// network with a name, only what is published and how fast: the rest is the network's.
    pub policy: PolicySpec,
}

impl NetworkSpec {
    /// A sandbox without a network.
    #[must_use]
    pub fn none() -> Self {
        Self {
            mode: NetworkMode::None,
            ..Self::default()
        }
    }

    /// What the policy means.
    pub(crate) fn checked_policy(&self) -> Result<Policy, Error> {
        let checked = self.policy.check();
        checked.map_err(|error| Error::new(ErrorCode::InvalidNetworkPolicy, error.to_string()))
    }

    /// Checks every rule and reports all faults together.
    pub(crate) fn check(&self) -> Result<(), Error> {
        let faults = self.faults();
        if faults.is_empty() {
            return Ok(());
        }
        Err(
            Error::new(ErrorCode::InvalidNetworkPolicy, faults.join("; "))
                .with_hint("correct the named fields; nothing was changed"),
        )
    }

    /// Every fault, each naming its field.
    pub(crate) fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        if self.mode == NetworkMode::None && self.policy != PolicySpec::default() {
            faults.push("network.policy is given, but network.mode is none".to_owned());
        }
        if self.mode == NetworkMode::User && !self.only_publishes() {
            let fault =
                "network.policy: a user-mode network enforces none; it only publishes ports";
            faults.push(fault.to_owned());
        }
        if let Some(name) = &self.name {
            faults.extend(self.faults_of_shared(name));
        } else if self.address.is_some() {
            let fault = "network.address is given, but no network: only shared ones have addresses";
            faults.push(fault.to_owned());
        }
        if let Err(error) = self.policy.check() {
            let named = error.faults().iter();
            faults.extend(named.map(|fault| format!("network.policy.{fault}")));
        }
        faults
    }

    fn only_publishes(&self) -> bool {
        self.policy.bandwidth == BandwidthSpec::default() && self.is_its_own()
    }

    /// Whether the policy says only what is each sandbox's own, in whatever network.
    fn is_its_own(&self) -> bool {
        let own = PolicySpec {
            publish: self.policy.publish.clone(),
            bandwidth: self.policy.bandwidth.clone(),
            ..PolicySpec::default()
        };
        self.policy == own
    }

    fn faults_of_shared(&self, name: &str) -> Vec<String> {
        let mut faults = Vec::new();
        if matches!(self.mode, NetworkMode::None | NetworkMode::User) {
            let fault = "network.name is given, but network.mode is none or user";
            faults.push(fault.to_owned());
        }
        if !is_name(name) {
            faults.push(format!("network.name {name:?} is no name of a network"));
        }
        if !self.is_its_own() {
            faults.push(format!(
                "network.policy: what members of a network may reach is told to the network: \
                 `kiln network update {name}`; a sandbox publishes ports and has limits"
            ));
        }
        faults
    }

    /// Whether a sandbox may start without a network when none can be made: only when nothing was
    /// asked for.
    pub(crate) fn is_optional(&self) -> bool {
        self.mode == NetworkMode::Auto
            && self.name.is_none()
            && self.policy == PolicySpec::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_for_is_never_left_out_silently() {
        assert!(NetworkSpec::default().is_optional());
        let explicit = NetworkSpec {
            mode: NetworkMode::Default,
            ..NetworkSpec::default()
        };
        assert!(!explicit.is_optional());
        let publishing = PolicySpec {
            publish: vec!["8080:80".to_owned()],
            ..PolicySpec::default()
        };
        let published = NetworkSpec {
            policy: publishing,
            ..NetworkSpec::default()
        };
        assert!(!published.is_optional() && published.faults().is_empty());
    }

    #[test]
    fn every_fault_names_its_field() {
        let policy = PolicySpec {
            allowed_cidrs: vec!["nonsense".to_owned()],
            publish: vec!["0:0".to_owned()],
            ..PolicySpec::default()
        };
        let spec = NetworkSpec {
            mode: NetworkMode::None,
            policy,
            ..NetworkSpec::default()
        };
        let faults = spec.faults().join("; ");
        for word in ["network.mode", "allowed_cidrs", "publish"] {
            assert!(faults.contains(word), "{faults} does not name {word}");
        }
    }

    #[test]
    fn a_shared_networks_policy_is_its_own() {
        let faults = |text: &str| {
            let spec: NetworkSpec = serde_json::from_str(text).expect("spec");
            spec.faults().join("; ")
        };
        assert_eq!(
            faults(r#"{"name":"lan","policy":{"publish":["80:80"]}}"#),
            ""
        );
        assert_eq!(faults(r#"{"name":"lan","address":"172.30.0.9"}"#), "");
        assert_eq!(
            faults(r#"{"name":"lan","policy":{"bandwidth":{"upload":"1mbit"}}}"#),
            ""
        );
        for (text, word) in [
            (r#"{"name":"lan","mode":"none"}"#, "mode"),
            (r#"{"name":"No Name"}"#, "name"),
            (
                r#"{"name":"lan","policy":{"allowed_cidrs":["1.1.1.1"]}}"#,
                "update lan",
            ),
            (r#"{"address":"172.30.0.9"}"#, "address"),
            (r#"{"name":"lan","mode":"user"}"#, "user"),
            (
                r#"{"mode":"user","policy":{"mode":"deny-all"}}"#,
                "enforces none",
            ),
            (
                r#"{"mode":"user","policy":{"bandwidth":{"upload":"1mbit"}}}"#,
                "enforces none",
            ),
        ] {
            assert!(faults(text).contains(word), "{text}: {}", faults(text));
        }
    }

    #[test]
    fn unknown_fields_are_refused() {
        serde_json::from_str::<NetworkSpec>(r#"{"policy": {"alowed_domains": []}}"#)
            .expect_err("typing error");
    }
}
