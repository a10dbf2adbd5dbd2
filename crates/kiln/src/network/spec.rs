//! What a user asks of a sandbox's network. Pure.

use kiln_net::policy::{Policy, PolicySpec};
use serde::{Deserialize, Serialize};

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
    /// What may be reached, what is published, and how fast; the public internet when empty.
    pub policy: PolicySpec,
}

impl NetworkSpec {
    /// A sandbox without a network.
    #[must_use]
    pub fn none() -> Self {
        Self {
            mode: NetworkMode::None,
            policy: PolicySpec::default(),
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
        if let Err(error) = self.policy.check() {
            let named = error.faults().iter();
            faults.extend(named.map(|fault| format!("network.policy.{fault}")));
        }
        faults
    }

    /// Whether a sandbox may start without a network when none can be made: only when nothing was
    /// asked for.
    pub(crate) fn is_optional(&self) -> bool {
        self.mode == NetworkMode::Auto && self.policy == PolicySpec::default()
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
        };
        let faults = spec.faults().join("; ");
        for word in ["network.mode", "allowed_cidrs", "publish"] {
            assert!(faults.contains(word), "{faults} does not name {word}");
        }
    }

    #[test]
    fn unknown_fields_are_refused() {
        serde_json::from_str::<NetworkSpec>(r#"{"policy": {"alowed_domains": []}}"#)
            .expect_err("typing error");
    }
}
