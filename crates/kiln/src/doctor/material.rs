//! What guests boot from: agent, kernel, default image.

use std::path::Path;

use super::{Check, Facts, Level};
use crate::agent::AGENT;

pub(super) fn checks(facts: &Facts) -> Vec<Check> {
    let agent = format!("{} KiB, part of this program", AGENT.len() / 1024);
    vec![
        Check::ok("agent", agent),
        stored(
            facts,
            "guest-kernel",
            &facts.directories.kernels().join("bundles"),
        ),
        stored(facts, "default-image", &facts.directories.images()),
    ]
}

/// There already, or made at first use of Debian's packages.
fn stored(facts: &Facts, name: &str, dir: &Path) -> Check {
    let some = std::fs::read_dir(dir).is_ok_and(|mut it| it.next().is_some());
    if some {
        return Check::ok(name, format!("in {}", dir.display()));
    }
    match facts.program("apt-get") {
        Some(_) => Check::ok(name, "made from Debian's packages at first use"),
        None => Check::of(
            Level::Warning,
            name,
            "none, and no apt-get to fetch it with",
        )
        .because("a sandbox needs a kernel and an image to boot")
        .remedy("name them: `kiln run --kernel VMLINUX IMAGE`"),
    }
}
