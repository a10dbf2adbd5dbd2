//! What networks of sandboxes need.

use std::process::{Command, Stdio};

use super::{Check, Facts, Level};

pub(super) fn checks(facts: &Facts) -> Vec<Check> {
    vec![
        root(facts),
        tun(facts),
        default_interface(facts),
        conntrack(facts),
    ]
}

fn root(facts: &Facts) -> Check {
    if facts.is_root {
        return Check::ok("root", "this user can make networks and jails");
    }
    Check::of(Level::Warning, "root", "this user is not root")
        .because("without root there are no networks, and no jails around machines")
        .remedy("run the daemon as root: `sudo kiln daemon`")
}

fn tun(facts: &Facts) -> Check {
    let path = facts.path("dev/net/tun");
    match std::fs::File::options().read(true).write(true).open(&path) {
        Ok(_) => Check::ok("tun", "/dev/net/tun can be opened"),
        Err(_) if !facts.is_root => Check::of(Level::Info, "tun", "not usable without root"),
        Err(error) => Check::of(Level::Failure, "tun", format!("/dev/net/tun: {error}"))
            .because("each sandbox with a network needs a TAP")
            .remedy("modprobe tun")
            .fixable(),
    }
}

fn default_interface(facts: &Facts) -> Check {
    let name = "default-interface";
    let routes = facts.read("proc/net/route").unwrap_or_default();
    let default = routes.lines().skip(1).find_map(|line| {
        let mut fields = line.split_whitespace();
        let interface = fields.next()?;
        (fields.next()? == "00000000").then(|| interface.to_owned())
    });
    match default {
        Some(interface) => Check::ok(name, interface),
        None => Check::of(Level::Warning, name, "there is no default route")
            .because("sandboxes reach nothing beyond this host")
            .remedy("give this host a default route"),
    }
}

fn conntrack(facts: &Facts) -> Check {
    let name = "conntrack";
    let (used, most) = (
        facts.number("proc/sys/net/netfilter/nf_conntrack_count"),
        facts.number("proc/sys/net/netfilter/nf_conntrack_max"),
    );
    match used.zip(most) {
        Some((used, most)) if used.saturating_mul(10) > most.saturating_mul(8) => Check::of(
            Level::Warning,
            name,
            format!("{used} of {most} connections are tracked"),
        )
        .because("when the table is full, connections of sandboxes and of this host fail")
        .remedy("sysctl -w net.netfilter.nf_conntrack_max=…"),
        Some((used, most)) => Check::ok(name, format!("{used} of {most} connections are tracked")),
        None => Check::of(Level::Info, name, "nothing is tracked yet"),
    }
}

/// Loads the module that is missing.
pub(super) fn fix(name: &str) -> bool {
    if name != "tun" {
        return false;
    }
    let loaded = Command::new("modprobe")
        .arg("tun")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    loaded.is_ok_and(|status| status.success())
}
