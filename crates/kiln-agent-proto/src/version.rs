//! The versions of the protocol, and how two sides settle on one.

use std::fmt;

/// Oldest protocol version that this code speaks.
pub const OLDEST: u32 = 1;

/// Newest protocol version that this code speaks.
pub const NEWEST: u32 = 4;

/// First version with [`Connect`](crate::message::Connect).
pub const CONNECT: u32 = 2;

/// First version with [`Watch`](crate::message::Watch).
pub const WATCH: u32 = 3;

/// First version with [`ExecLimits`](crate::message::ExecLimits). An older agent would ignore them.
pub const EXEC_LIMITS: u32 = 3;

/// First version with [`Wait`](crate::message::Wait).
pub const WAIT: u32 = 4;

/// The versions that one side speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VersionRange {
    /// Oldest.
    pub min: u32,
    /// Newest.
    pub max: u32,
}

impl VersionRange {
    /// What this code speaks.
    pub const OURS: Self = Self {
        min: OLDEST,
        max: NEWEST,
    };
}

impl fmt::Display for VersionRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.min == self.max {
            write!(f, "version {}", self.min)
        } else {
            write!(f, "versions {} to {}", self.min, self.max)
        }
    }
}

/// Host and agent have no version in common. The text is for people, on either side.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no common agent protocol: the host speaks {host}, the agent {agent}")]
pub struct VersionRefused {
    /// What the host speaks.
    pub host: VersionRange,
    /// What the agent speaks.
    pub agent: VersionRange,
}

/// Picks the newest version that both speak.
///
/// # Errors
/// [`VersionRefused`] when there is none, also for a range that is empty.
pub fn negotiate(host: VersionRange, agent: VersionRange) -> Result<u32, VersionRefused> {
    let newest = host.max.min(agent.max);
    if newest < host.min || newest < agent.min || newest == 0 {
        return Err(VersionRefused { host, agent });
    }
    Ok(newest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn range(min: u32, max: u32) -> VersionRange {
        VersionRange { min, max }
    }

    #[test]
    fn the_newest_common_version_wins() {
        assert_eq!(negotiate(range(1, 3), range(2, 5)), Ok(3));
        assert_eq!(negotiate(range(2, 5), range(1, 3)), Ok(3));
        assert_eq!(negotiate(range(4, 4), range(1, 4)), Ok(4));
    }

    #[test]
    fn a_refusal_names_both_sides() {
        let refused = negotiate(range(3, 4), range(1, 1)).unwrap_err();
        assert_eq!(
            refused.to_string(),
            "no common agent protocol: the host speaks versions 3 to 4, the agent version 1"
        );
        assert!(negotiate(range(0, 0), range(0, 0)).is_err());
    }

    proptest! {
        #[test]
        fn the_result_lies_in_both_ranges(a in 0u32..9, b in 0u32..9, c in 0u32..9, d in 0u32..9) {
            let (host, agent) = (range(a, b), range(c, d));
            let common = (1..9).filter(|v| (a..=b).contains(v) && (c..=d).contains(v)).max();
            prop_assert_eq!(negotiate(host, agent).ok(), common);
        }
    }
}
