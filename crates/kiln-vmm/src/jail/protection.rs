//! Protections that can be left out by name.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A protection around a VMM that its owner may do without, where a debugger or a host is in its
/// way. All others hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Protection {
    /// System calls are filtered.
    Seccomp,
    /// It sees no process but its own.
    PidNamespace,
    /// A control group limits it.
    Cgroup,
}

impl Protection {
    /// Every one.
    pub const ALL: [Self; 3] = [Self::Seccomp, Self::PidNamespace, Self::Cgroup];

    /// As users write it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Seccomp => "seccomp",
            Self::PidNamespace => "pid-namespace",
            Self::Cgroup => "cgroup",
        }
    }
}

impl fmt::Display for Protection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A word that names no protection.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no protection: seccomp, pid-namespace or cgroup")]
pub struct NoProtection(String);

impl FromStr for Protection {
    type Err = NoProtection;

    fn from_str(word: &str) -> Result<Self, Self::Err> {
        let found = Self::ALL.into_iter().find(|it| it.as_str() == word);
        found.ok_or_else(|| NoProtection(word.chars().take(40).collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_round_trip() {
        for protection in Protection::ALL {
            assert_eq!(protection.to_string().parse(), Ok(protection));
        }
        for word in ["", "all", "network-namespace", "SECCOMP"] {
            assert!(word.parse::<Protection>().is_err(), "{word}");
        }
    }
}
