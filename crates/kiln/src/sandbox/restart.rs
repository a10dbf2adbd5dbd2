//! Whether and when a sandbox whose machine ended is started again. Pure: no I/O, no clock.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// First wait before a restart; each one that follows a short run waits twice as long.
const FIRST_WAIT: Duration = Duration::from_millis(500);
/// No wait is longer.
const LONGEST_WAIT: Duration = Duration::from_secs(60);
/// A machine that ran this long has come up well: the waits begin anew.
pub(crate) const STABLE_AFTER: Duration = Duration::from_secs(10);

/// When a sandbox is started again by itself. A stop that was asked for, and one at a time-out,
/// are never followed by a restart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum RestartPolicy {
    /// Never.
    #[default]
    No,
    /// When its machine died: a guest that panicked, a VMM that ended, a host that rebooted. At
    /// most `max` times in a row, if that is given.
    OnFailure {
        /// Most restarts in a row.
        max: Option<u32>,
    },
    /// However its machine ended, also when the guest powered itself off or rebooted.
    Always,
}

/// How a machine that nobody stopped has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum EndedBy {
    /// The guest wanted it.
    Guest,
    /// It broke.
    Failure,
}

impl RestartPolicy {
    /// How long to wait before the restart that follows `streak` others in a row; `None` when
    /// there is none.
    pub(crate) fn wait(self, ended: EndedBy, streak: u32) -> Option<Duration> {
        let wanted = match self {
            Self::No => false,
            Self::OnFailure { max } => {
                ended == EndedBy::Failure && max.is_none_or(|max| streak < max)
            }
            Self::Always => true,
        };
        // 2^7 first waits are more than the longest: larger exponents change nothing.
        wanted.then(|| (FIRST_WAIT * (1 << streak.min(7))).min(LONGEST_WAIT))
    }
}

impl fmt::Display for RestartPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::No => f.write_str("no"),
            Self::OnFailure { max: None } => f.write_str("on-failure"),
            Self::OnFailure { max: Some(max) } => write!(f, "on-failure:{max}"),
            Self::Always => f.write_str("always"),
        }
    }
}

/// A text that names no restart policy.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no restart policy: write no, on-failure, on-failure:3 or always")]
pub struct NoRestartPolicy(String);

impl FromStr for RestartPolicy {
    type Err = NoRestartPolicy;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refused = || NoRestartPolicy(text.to_owned());
        Ok(match text.split_once(':') {
            None if text == "no" => Self::No,
            None if text == "always" => Self::Always,
            None if text == "on-failure" => Self::OnFailure { max: None },
            Some(("on-failure", max)) => Self::OnFailure {
                max: Some(max.parse().map_err(|_| refused())?),
            },
            _ => return Err(refused()),
        })
    }
}

impl TryFrom<String> for RestartPolicy {
    type Error = NoRestartPolicy;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<RestartPolicy> for String {
    fn from(policy: RestartPolicy) -> Self {
        policy.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies_are_written_as_they_are_read() {
        for text in ["no", "on-failure", "on-failure:3", "always"] {
            let policy: RestartPolicy = text.parse().unwrap();
            assert_eq!(policy.to_string(), text);
            let json = serde_json::to_string(&policy).unwrap();
            assert_eq!(json, format!("{text:?}"));
            assert_eq!(
                serde_json::from_str::<RestartPolicy>(&json).unwrap(),
                policy
            );
        }
        for text in [
            "",
            "yes",
            "on-failure:",
            "on-failure:x",
            "always:2",
            "on-failure:-1",
        ] {
            assert!(text.parse::<RestartPolicy>().is_err(), "{text}");
        }
    }

    #[test]
    fn each_policy_restarts_what_it_says() {
        let (always, failure) = (
            RestartPolicy::Always,
            RestartPolicy::OnFailure { max: Some(2) },
        );
        assert!(always.wait(EndedBy::Guest, 9).is_some());
        assert!(always.wait(EndedBy::Failure, 0).is_some());
        assert_eq!(failure.wait(EndedBy::Guest, 0), None);
        assert!(failure.wait(EndedBy::Failure, 1).is_some());
        assert_eq!(
            failure.wait(EndedBy::Failure, 2),
            None,
            "twice in a row at most"
        );
        assert_eq!(RestartPolicy::No.wait(EndedBy::Failure, 0), None);
    }

    proptest::proptest! {
        #[test]
        fn waits_grow_and_are_bounded(streak: u32) {
            let wait = RestartPolicy::Always.wait(EndedBy::Failure, streak).unwrap();
            let next = RestartPolicy::Always.wait(EndedBy::Failure, streak.saturating_add(1));
            proptest::prop_assert!(FIRST_WAIT <= wait && wait <= LONGEST_WAIT);
            proptest::prop_assert!(next.unwrap() >= wait);
        }
    }
}
