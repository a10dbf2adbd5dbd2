//! Protections that can be left out by name.

use std::fmt;

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

impl fmt::Display for Protection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Seccomp => "seccomp",
            Self::PidNamespace => "pid-namespace",
            Self::Cgroup => "cgroup",
        })
    }
}
