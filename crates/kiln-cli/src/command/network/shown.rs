//! Networks in words.

use kiln_api::{
    NamedNetwork, Network, NetworkMode, NetworkPolicy, NetworkProof, PolicyMode, ProofOutcome,
    RuleAction,
};

use serde::Serialize;

use super::rule::Rule;
use crate::{
    Output,
    output::{
        format::{Fields, Listed},
        table,
    },
};

/// A network that has a name, or that of a sandbox.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub(super) enum Either {
    Named(Box<NamedNetwork>),
    Own(Box<Network>),
}

impl Listed for Either {
    fn fields() -> Fields {
        NamedNetwork::fields().and(Network::fields())
    }
}

impl Either {
    pub(super) fn in_words(&self) -> String {
        match self {
            Self::Named(network) => named_in_words(network),
            Self::Own(network) => in_words(network),
        }
    }
}

pub(super) fn show(network: &Network, output: &Output) {
    output.line(&in_words(network));
    output.object(network);
}

fn in_words(network: &Network) -> String {
    let mode = match (network.connected, network.mode) {
        (true, _) => "connected",
        (false, NetworkMode::None) => "none",
        (false, NetworkMode::User) => "user-mode",
        (false, _) => "not connected",
    };
    let mut rows = vec![row("network", mode)];
    match &network.name {
        Some(name) => {
            rows.push(row("shared", name));
            let publish = network.policy.publish.iter();
            rows.extend(publish.map(|port| row("publish", port)));
        }
        None => rows.extend(policy_rows(&network.policy)),
    }
    let facts = [
        ("interface", &network.interface),
        ("address", &network.address),
        ("guest", &network.guest_address),
        ("gateway", &network.gateway),
    ];
    for (name, value) in facts {
        rows.extend(value.iter().map(|value| row(name, value)));
    }
    rows.extend(network.mtu.map(|mtu| row("mtu", &mtu.to_string())));
    table::align(&rows)
}

pub(super) fn show_named(network: &NamedNetwork, output: &Output) {
    output.line(&named_in_words(network));
    output.object(network);
}

fn named_in_words(network: &NamedNetwork) -> String {
    let talk = if network.members_talk { "yes" } else { "no" };
    let mut rows = vec![
        row("network", &network.name),
        row("subnet", &network.subnet),
        row("gateway", &network.gateway),
        row("members talk", talk),
    ];
    if let Some(tunnel) = &network.wireguard {
        let whose = if tunnel.managed { "ours" } else { "existing" };
        let closed = if tunnel.fail_closed { "closed" } else { "open" };
        rows.push(row("wireguard", &format!("{} ({whose})", tunnel.interface)));
        rows.push(row("routing table", &tunnel.table.to_string()));
        rows.push(row("when it is down", closed));
    }
    rows.extend(policy_rows(&network.policy));
    rows.extend(network.interface.iter().map(|it| row("interface", it)));
    for member in &network.members {
        let text = format!("{} {} {}", member.sandbox, member.address, member.interface);
        rows.push(row("member", &text));
    }
    let away = |id: &&String| !network.members.iter().any(|it| it.sandbox == **id);
    let away = network.sandboxes.iter().filter(away);
    rows.extend(away.map(|id| row("not running", id)));
    table::align(&rows)
}

pub(super) fn list_in_words(networks: &[NamedNetwork]) -> String {
    let head = [
        "NAME",
        "SUBNET",
        "WIREGUARD",
        "STATE",
        "MEMBERS",
        "SANDBOXES",
    ]
    .map(str::to_owned);
    let rows = networks.iter().map(|network| {
        let tunnel = network.wireguard.as_ref();
        [
            network.name.clone(),
            network.subnet.clone(),
            tunnel.map_or_else(|| "-".to_owned(), |tunnel| tunnel.interface.clone()),
            if network.interface.is_some() {
                "up"
            } else {
                "down"
            }
            .to_owned(),
            network.members.len().to_string(),
            network.sandboxes.len().to_string(),
        ]
    });
    table::align(&std::iter::once(head).chain(rows).collect::<Vec<_>>())
}

/// In the order in which it decides.
pub(super) fn policy_rows(policy: &NetworkPolicy) -> Vec<[String; 2]> {
    let kind = policy.mode.map_or("default", |mode| match mode {
        PolicyMode::AllowAll => "allow-all",
        PolicyMode::DenyAll => "deny-all",
        PolicyMode::Custom => "custom",
    });
    let mut rows = vec![row("policy", kind)];
    let each = |name: &str, values: &[String]| -> Vec<[String; 2]> {
        values.iter().map(|value| row(name, value)).collect()
    };
    rows.extend(each("deny", &policy.denied_cidrs));
    let rules = policy.rules.iter();
    rows.extend(rules.map(|rule| row("rule", &Rule(rule.clone()).to_string())));
    rows.extend(each("allow", &policy.allowed_domains));
    rows.extend(each("allow", &policy.allowed_cidrs));
    rows.extend(policy.default_action.map(|action| {
        let action = match action {
            RuleAction::Allow => "allow",
            RuleAction::Deny => "deny",
        };
        row("otherwise", action)
    }));
    if policy.private_networks {
        rows.push(row("private networks", "as everywhere"));
    }
    if policy.verify_hosts {
        rows.push(row("hosts", "verified"));
    }
    rows.extend(each("publish", &policy.publish));
    let limits = [
        ("download", &policy.bandwidth.download),
        ("upload", &policy.bandwidth.upload),
    ];
    for (name, limit) in limits {
        rows.extend(limit.iter().map(|limit| row(name, limit)));
    }
    rows
}

pub(super) fn row(name: &str, value: &str) -> [String; 2] {
    [name.to_owned(), value.to_owned()]
}

pub(super) fn proofs_in_words(proofs: &[NetworkProof]) -> String {
    let head = ["FROM", "QUESTION", "POLICY", "RESULT", "ABOUT"].map(str::to_owned);
    let rows = proofs.iter().map(|proof| {
        let outcome = match proof.outcome {
            ProofOutcome::Holds => "holds",
            ProofOutcome::Broken => "BROKEN",
            ProofOutcome::Unproven => "unproven",
        };
        [
            proof.from.clone(),
            proof.question.clone(),
            if proof.allowed { "open" } else { "closed" }.to_owned(),
            outcome.to_owned(),
            proof.about.clone(),
        ]
    });
    table::align(&std::iter::once(head).chain(rows).collect::<Vec<_>>())
}
