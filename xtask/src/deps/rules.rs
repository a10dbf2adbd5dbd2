//! The rules themselves: pure functions from metadata to sentences about what is broken.

use std::collections::BTreeSet;

use super::graph::Metadata;

/// Which crates of the workspace each one may use. A crate that is not listed is an error: it has
/// to be drawn in `docs/architecture.md` first.
const ARROWS: &[(&str, &[&str])] = &[
    ("kiln-agent-proto", &[]),
    ("kiln-tree", &[]),
    ("kiln-agent", &["kiln-agent-proto", "kiln-tree"]),
    ("kiln-vmm", &[]),
    ("kiln-net", &[]),
    ("kiln-image", &[]),
    (
        "kiln",
        &[
            "kiln-agent-proto",
            "kiln-vmm",
            "kiln-net",
            "kiln-image",
            "kiln-tree",
        ],
    ),
    // Itself: its tests need a feature of it.
    ("kiln-api", &["kiln-api"]),
    ("kiln-daemon", &["kiln", "kiln-api"]),
    ("kiln-cli", &["kiln-api", "kiln-daemon", "kiln-tree"]),
    ("xtask", &["kiln-agent-proto"]),
    ("e2e", &["kiln-api"]),
];

/// Outside crates that must not be in the build at all.
const BANNED: &[(&str, &str)] = &[
    ("openssl", ONE_TLS),
    ("openssl-sys", ONE_TLS),
    ("native-tls", ONE_TLS),
    ("aws-lc-rs", ONE_TLS),
    ("aws-lc-sys", ONE_TLS),
    ("boring", ONE_TLS),
    ("async-std", ONE_RUNTIME),
    ("smol", ONE_RUNTIME),
    ("async-executor", ONE_RUNTIME),
    ("glommio", ONE_RUNTIME),
];
const ONE_TLS: &str = "the one TLS stack is rustls with ring";
const TYPED_ERRORS: &str = "each operation has one typed error";
const ONE_RUNTIME: &str = "the one async runtime is tokio";

/// Outside crates of which a second version would be a second stack.
const SINGLE_VERSION: &[&str] = &[
    "axum", "hyper", "prost", "ring", "rusqlite", "rustls", "tokio", "yamux",
];

/// Outside crates that only some rooms may name.
const ONLY_IN: &[(&str, &[&str], &str)] = &[
    (
        "axum",
        &["kiln-daemon"],
        "the daemon is the only room that knows HTTP servers",
    ),
    ("rusqlite", &["kiln"], "the store belongs to kiln"),
    (
        "clap",
        &["kiln-cli", "xtask"],
        "only command lines parse arguments",
    ),
    (
        "indicatif",
        &["kiln-cli"],
        "only the command line draws progress",
    ),
    ("anyhow", &[], TYPED_ERRORS),
    ("eyre", &[], TYPED_ERRORS),
];

/// Crates that must never reach the guest: the agent is PID 1 in an untrusted machine and every
/// byte of it is copied into each guest's memory.
const NOT_IN_THE_AGENT: &[&str] = &[
    "axum",
    "clap",
    "hyper",
    "rusqlite",
    "rustls",
    "serde_json",
    "tracing-subscriber",
];

/// Every broken rule, as a sentence.
pub(super) fn violations(metadata: &Metadata) -> Vec<String> {
    let mut broken = arrows(metadata);
    broken.extend(rooms(metadata));
    broken.extend(banned(metadata));
    broken.extend(second_versions(metadata));
    broken.extend(agent_closure(metadata));
    broken
}

/// Arrows between our own crates; those of tests and build scripts count too.
fn arrows(metadata: &Metadata) -> Vec<String> {
    let members: BTreeSet<&str> = metadata
        .members()
        .map(|member| member.name.as_str())
        .collect();
    let mut broken = Vec::new();
    for member in metadata.members() {
        let Some((_, may_use)) = ARROWS.iter().find(|(name, _)| *name == member.name) else {
            broken.push(format!(
                "{} is not in the drawing: add it to docs/architecture.md and to xtask/src/deps/rules.rs",
                member.name
            ));
            continue;
        };
        for used in member
            .dependencies
            .iter()
            .filter(|used| members.contains(used.name.as_str()))
        {
            if !may_use.contains(&used.name.as_str()) {
                let kind = used
                    .kind
                    .as_deref()
                    .map(|kind| format!("{kind}-"))
                    .unwrap_or_default();
                let (user, used) = (&member.name, &used.name);
                broken.push(format!("{user} must not use {used} ({kind}dependency)"));
            }
        }
    }
    broken
}

fn rooms(metadata: &Metadata) -> Vec<String> {
    let mut broken = Vec::new();
    for member in metadata.members() {
        for (outside, rooms, why) in ONLY_IN {
            let linked = member
                .dependencies
                .iter()
                .any(|d| d.name == *outside && d.kind.is_none());
            if linked && !rooms.contains(&member.name.as_str()) {
                broken.push(format!("{} must not use {outside}: {why}", member.name));
            }
        }
    }
    broken
}

fn banned(metadata: &Metadata) -> Vec<String> {
    let mut broken = Vec::new();
    for package in metadata.packages() {
        if let Some((name, why)) = BANNED.iter().find(|(name, _)| *name == package.name) {
            broken.push(format!("{name} {} is in the build: {why}", package.version));
        }
    }
    broken
}

fn second_versions(metadata: &Metadata) -> Vec<String> {
    let mut broken = Vec::new();
    for name in SINGLE_VERSION {
        let versions: BTreeSet<&str> = metadata
            .packages()
            .iter()
            .filter(|package| package.name == *name)
            .map(|package| package.version.as_str())
            .collect();
        if versions.len() > 1 {
            let versions = versions.into_iter().collect::<Vec<_>>().join(", ");
            broken.push(format!("{name} is in the build more than once: {versions}"));
        }
    }
    broken
}

fn agent_closure(metadata: &Metadata) -> Vec<String> {
    let linked = metadata.linked_into("kiln-agent");
    NOT_IN_THE_AGENT
        .iter()
        .filter(|name| linked.contains(*name))
        .map(|name| format!("{name} is linked into kiln-agent, which runs in every guest"))
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// A workspace of the given crates, each with its normal dependencies.
    fn sample(crates: &[(&str, &[&str])], outside: &[(&str, &str)]) -> Value {
        let package = |name: &str, version: &str, dependencies: &[&str]| {
            json!({
                "id": format!("{name}@{version}"), "name": name, "version": version,
                "dependencies": dependencies.iter()
                    .map(|used| json!({"name": used, "kind": null})).collect::<Vec<_>>(),
            })
        };
        let mut packages: Vec<Value> = crates
            .iter()
            .map(|(name, used)| package(name, "0.1.0", used))
            .collect();
        packages.extend(
            outside
                .iter()
                .map(|(name, version)| package(name, version, &[])),
        );
        json!({
            "packages": packages,
            "workspace_members":
                crates.iter().map(|(name, _)| format!("{name}@0.1.0")).collect::<Vec<_>>(),
            "resolve": null,
        })
    }

    fn broken_in(sample: Value) -> Vec<String> {
        violations(&serde_json::from_value(sample).unwrap())
    }

    #[test]
    fn the_drawn_arrows_are_allowed() {
        let sample = sample(
            &[
                ("kiln-image", &[]),
                ("kiln-vmm", &["tokio"]),
                ("kiln", &["kiln-vmm", "kiln-image"]),
            ],
            &[("tokio", "1.0.0"), ("ring", "0.17.0")],
        );
        assert_eq!(broken_in(sample), Vec::<String>::new());
    }

    #[test]
    fn an_arrow_that_is_not_drawn_is_refused() {
        let sample = sample(&[("kiln-image", &[]), ("kiln-vmm", &["kiln-image"])], &[]);
        assert_eq!(
            broken_in(sample),
            ["kiln-vmm must not use kiln-image (dependency)"]
        );
    }

    #[test]
    fn arrows_of_tests_count_too() {
        let mut sample = sample(&[("kiln", &[]), ("kiln-api", &["kiln"])], &[]);
        sample["packages"][1]["dependencies"][0]["kind"] = json!("dev");
        assert_eq!(
            broken_in(sample),
            ["kiln-api must not use kiln (dev-dependency)"]
        );
    }

    #[test]
    fn a_crate_outside_the_drawing_is_refused() {
        let broken = broken_in(sample(&[("kiln-common", &[])], &[]));
        assert_eq!(broken.len(), 1);
        assert!(
            broken[0].starts_with("kiln-common is not in the drawing"),
            "{broken:?}"
        );
    }

    #[test]
    fn a_second_tls_stack_or_runtime_is_refused() {
        let broken = broken_in(sample(
            &[],
            &[("aws-lc-sys", "0.30.0"), ("async-std", "1.13.0")],
        ));
        assert_eq!(
            broken,
            [
                "aws-lc-sys 0.30.0 is in the build: the one TLS stack is rustls with ring",
                "async-std 1.13.0 is in the build: the one async runtime is tokio",
            ]
        );
    }

    #[test]
    fn a_second_version_of_a_stack_is_refused() {
        let broken = broken_in(sample(&[], &[("ring", "0.16.20"), ("ring", "0.17.14")]));
        assert_eq!(
            broken,
            ["ring is in the build more than once: 0.16.20, 0.17.14"]
        );
    }

    #[test]
    fn a_room_keeps_its_crates_to_itself() {
        let broken = broken_in(sample(&[("kiln", &["axum"])], &[("axum", "0.8.0")]));
        assert_eq!(
            broken,
            ["kiln must not use axum: the daemon is the only room that knows HTTP servers"]
        );
    }

    #[test]
    fn the_agent_stays_small_through_any_number_of_steps() {
        let mut sample = sample(
            &[("kiln-agent", &["helper"])],
            &[("helper", "1.0.0"), ("hyper", "1.0.0"), ("clap", "4.0.0")],
        );
        let linked = |id: &str| json!({"pkg": id, "dep_kinds": [{"kind": null}]});
        let only_tests = json!({"pkg": "clap@4.0.0", "dep_kinds": [{"kind": "dev"}]});
        sample["resolve"] = json!({"nodes": [
            {"id": "kiln-agent@0.1.0", "deps": [linked("helper@1.0.0"), only_tests]},
            {"id": "helper@1.0.0", "deps": [linked("hyper@1.0.0")]},
            {"id": "hyper@1.0.0", "deps": []},
            {"id": "clap@4.0.0", "deps": []},
        ]});
        assert_eq!(
            broken_in(sample),
            ["hyper is linked into kiln-agent, which runs in every guest"]
        );
    }
}
