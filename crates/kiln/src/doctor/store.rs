//! Whether what Kiln remembers holds together.

use super::{Check, Facts, Level};
use crate::store::Health;

pub(super) fn checks(facts: &Facts) -> Vec<Check> {
    let name = "store";
    let found = match Health::of(&facts.data_dir.join(crate::config::DATABASE)) {
        Ok(Some(health)) => told(name, &health),
        Ok(None) => Check::of(Level::Info, name, "nothing is stored yet by this version"),
        Err(error) => broken(name, format!("it cannot be read: {error}")),
    };
    vec![found]
}

fn told(name: &str, health: &Health) -> Check {
    if !health.faults.is_empty() {
        return broken(name, health.faults.join("; "));
    }
    let Health {
        sandboxes,
        leases,
        intents,
        ..
    } = health;
    let finding =
        format!("consistent: {sandboxes} sandboxes, {leases} leases, {intents} under way");
    Check::ok(name, finding)
}

fn broken(name: &str, finding: String) -> Check {
    Check::of(Level::Failure, name, finding)
        .because("sandboxes may be forgotten, or given what belongs to others")
        .remedy("end the daemon, keep a copy of kiln.db, and put back one that is good")
}
