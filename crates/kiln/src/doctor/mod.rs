//! Is this host fit for sandboxes, and safe for its owner? Needs no open host, and changes nothing
//! unless it is asked to.
//!
//! Each check is a function from what the host says ([`Facts`]) to a [`Check`]; the files that it
//! reads are found below a root, so that a test can be any host. What Kiln itself enforces at every
//! start (users, seccomp, limits, networks) is no check here: it is refused there.

mod boundary;
mod capacity;
mod engines;
mod facts;
mod material;
mod network;
mod places;
mod store;

use serde::{Deserialize, Serialize};

use crate::config::HostConfig;

pub(crate) use facts::Facts;

/// How a check turned out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// As it should be.
    Ok,
    /// Good to know.
    Info,
    /// Sandboxes run, but slower, fewer, or less apart from each other than they could.
    Warning,
    /// Sandboxes do not run, or not safely.
    Failure,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Check {
    /// Stable name.
    pub name: String,
    /// How it turned out.
    pub level: Level,
    /// What was found.
    pub finding: String,
    /// Why it matters; only when it is not as it should be.
    pub reason: Option<String>,
    /// What to do about it.
    pub remedy: Option<String>,
    /// Whether `fix` would do that.
    pub fixable: bool,
    /// Whether that was done now.
    pub fixed: bool,
}

impl Check {
    fn ok(name: &str, finding: impl Into<String>) -> Self {
        Self {
            name: name.to_owned(),
            level: Level::Ok,
            finding: finding.into(),
            reason: None,
            remedy: None,
            fixable: false,
            fixed: false,
        }
    }

    fn of(level: Level, name: &str, finding: impl Into<String>) -> Self {
        Self {
            level,
            ..Self::ok(name, finding)
        }
    }

    fn because(self, reason: &str) -> Self {
        Self {
            reason: Some(reason.to_owned()),
            ..self
        }
    }

    fn remedy(self, remedy: impl Into<String>) -> Self {
        Self {
            remedy: Some(remedy.into()),
            ..self
        }
    }

    fn fixable(self) -> Self {
        Self {
            fixable: true,
            ..self
        }
    }
}

/// Looks at the host that this configuration would be opened on. With `fix`, does what is safe to
/// do about what it finds, and looks again.
pub async fn doctor(config: &HostConfig, fix: bool) -> Vec<Check> {
    let facts = Facts::of_this_host(config);
    let checks = examine(&facts).await;
    if !fix {
        return checks;
    }
    let mut fixed = Vec::new();
    for check in checks.iter().filter(|check| check.fixable) {
        if places::fix(&facts, &check.name) || network::fix(&check.name) {
            fixed.push(check.name.clone());
        }
    }
    let mut again = examine(&facts).await;
    for check in &mut again {
        check.fixed = fixed.contains(&check.name);
    }
    again
}

async fn examine(facts: &Facts) -> Vec<Check> {
    let mut checks = engines::checks(facts).await;
    checks.extend(material::checks(facts));
    checks.extend(places::checks(facts));
    checks.extend(store::checks(facts));
    checks.extend(network::checks(facts));
    checks.extend(boundary::checks(facts));
    checks.extend(capacity::checks(facts));
    checks
}

#[cfg(test)]
mod tests;
