//! `kiln network`: what a sandbox may reach, and the proof.

use clap::{ArgGroup, Args, Subcommand, ValueEnum};
use kiln_api::{
    Bandwidth, Network, NetworkMode, NetworkPolicy, NetworkProof, NetworkRequest, PolicyMode,
    ProofOutcome,
};

use crate::{Failure, Output, failure::FAILED, output::table, start::Daemon};

/// Look at, change and verify the network of a sandbox
#[derive(Debug, Args)]
pub(crate) struct NetworkArgs {
    #[command(subcommand)]
    command: NetworkCommand,
}

#[derive(Debug, Subcommand)]
enum NetworkCommand {
    /// Tell what a sandbox may reach, and where it is
    Inspect {
        /// Id, unique prefix of one, or name
        sandbox: String,
    },
    /// Replace the policy of a sandbox; of a running one at once
    ///
    /// The new policy is the one given here, whole: what is not said again is no part of it.
    #[command(group = ArgGroup::new("change").required(true).multiple(true).args([
        "network_policy", "allow_domain", "allow_cidr", "deny_cidr", "publish", "bandwidth",
    ]))]
    Update {
        /// Id, unique prefix of one, or name
        sandbox: String,
        #[command(flatten)]
        policy: PolicyArgs,
    },
    /// Prove that the policy is enforced, by asking from inside and outside
    ///
    /// Fails with NETWORK_POLICY_BROKEN when something answers that should not, or the reverse.
    Verify {
        /// Id, unique prefix of one, or name
        sandbox: String,
    },
}

/// Which kind of network.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Mode {
    /// No network card at all.
    None,
    /// One of its own: the public internet, unless a policy says otherwise.
    Default,
}

/// Which kind of policy.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Kind {
    /// The public internet.
    AllowAll,
    /// Nothing, not even names.
    DenyAll,
    /// Only what is allowed.
    Custom,
}

/// What `run` is told of the network.
#[derive(Debug, Args)]
pub(crate) struct RunNetworkArgs {
    /// Which network [default: the public internet, where this host can make one]
    #[arg(
        long,
        value_enum,
        value_name = "KIND",
        env = "KILN_NETWORK",
        hide_env_values = true
    )]
    network: Option<Mode>,
    #[command(flatten)]
    policy: PolicyArgs,
}

/// A policy.
#[derive(Debug, Args)]
struct PolicyArgs {
    /// What may be reached [default: custom where anything is allowed, else allow-all]
    #[arg(long, value_enum, value_name = "POLICY")]
    network_policy: Option<Kind>,
    /// Allow a name: example.com, or *.example.com for all below it
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    allow_domain: Vec<String>,
    /// Allow an IPv4 network
    #[arg(long, value_name = "CIDR", value_delimiter = ',')]
    allow_cidr: Vec<String>,
    /// Deny an IPv4 network, whatever else is allowed
    #[arg(long, value_name = "CIDR", value_delimiter = ',')]
    deny_cidr: Vec<String>,
    /// Have a port of the host lead to one of the guest
    #[arg(long, short, value_name = "[[ADDRESS:]HOST:]GUEST[/udp]")]
    publish: Vec<String>,
    /// Limit both directions, such as 50mbit, or each: DOWN/UP
    #[arg(long, value_name = "RATE[/RATE]")]
    bandwidth: Option<String>,
    /// Check the server name of web traffic against the allowed names
    #[arg(long, requires = "allow_domain")]
    verify_hosts: bool,
}

impl RunNetworkArgs {
    pub(super) fn request(self) -> NetworkRequest {
        NetworkRequest {
            mode: self.network.map(|mode| match mode {
                Mode::None => NetworkMode::None,
                Mode::Default => NetworkMode::Default,
            }),
            policy: self.policy.policy(),
        }
    }
}

impl PolicyArgs {
    /// As it was typed: the daemon checks it, with every fault named.
    fn policy(self) -> NetworkPolicy {
        NetworkPolicy {
            mode: self.network_policy.map(|kind| match kind {
                Kind::AllowAll => PolicyMode::AllowAll,
                Kind::DenyAll => PolicyMode::DenyAll,
                Kind::Custom => PolicyMode::Custom,
            }),
            allowed_domains: self.allow_domain,
            allowed_cidrs: self.allow_cidr,
            denied_cidrs: self.deny_cidr,
            publish: self.publish,
            bandwidth: self.bandwidth.map(bandwidth).unwrap_or_default(),
            verify_hosts: self.verify_hosts,
        }
    }
}

fn bandwidth(text: String) -> Bandwidth {
    let (download, upload) = match text.split_once('/') {
        Some((down, up)) => (down.to_owned(), up.to_owned()),
        None => (text.clone(), text),
    };
    Bandwidth {
        download: Some(download),
        upload: Some(upload),
    }
}

pub(crate) async fn run(
    args: NetworkArgs,
    daemon: &Daemon<'_>,
    output: &Output,
) -> Result<u8, Failure> {
    match args.command {
        NetworkCommand::Inspect { sandbox } => {
            let network = daemon
                .ask(async |client| client.network(&sandbox).await)
                .await?;
            show(&network, output);
            Ok(0)
        }
        NetworkCommand::Update { sandbox, policy } => {
            let policy = policy.policy();
            let network = daemon
                .ask(async |client| client.update_network(&sandbox, &policy).await)
                .await?;
            show(&network, output);
            Ok(0)
        }
        NetworkCommand::Verify { sandbox } => {
            let proofs = daemon
                .ask(async |client| client.verify_network(&sandbox).await)
                .await?;
            output.line(&proofs_in_words(&proofs));
            output.object(&proofs);
            let broken = proofs
                .iter()
                .any(|proof| proof.outcome == ProofOutcome::Broken);
            if broken {
                output.failure(&kiln_api::ErrorReport::new(
                    "NETWORK_POLICY_BROKEN",
                    "the network does not do what its policy says",
                ));
                return Ok(FAILED);
            }
            Ok(0)
        }
    }
}

fn show(network: &Network, output: &Output) {
    output.line(&in_words(network));
    output.object(network);
}

fn in_words(network: &Network) -> String {
    let policy = &network.policy;
    let mode = match (network.connected, network.mode) {
        (true, _) => "connected",
        (false, NetworkMode::None) => "none",
        (false, _) => "not connected",
    };
    let kind = policy.mode.map_or("default", |mode| match mode {
        PolicyMode::AllowAll => "allow-all",
        PolicyMode::DenyAll => "deny-all",
        PolicyMode::Custom => "custom",
    });
    let mut rows = vec![row("network", mode), row("policy", kind)];
    for (name, values) in [
        ("allow", &policy.allowed_domains),
        ("allow", &policy.allowed_cidrs),
        ("deny", &policy.denied_cidrs),
        ("publish", &policy.publish),
    ] {
        rows.extend(values.iter().map(|value| row(name, value)));
    }
    let facts = [
        ("download", &policy.bandwidth.download),
        ("upload", &policy.bandwidth.upload),
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

fn row(name: &str, value: &str) -> [String; 2] {
    [name.to_owned(), value.to_owned()]
}

fn proofs_in_words(proofs: &[NetworkProof]) -> String {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bandwidth_is_for_both_directions_or_each() {
        let both = bandwidth("5mbit".to_owned());
        assert_eq!(
            (both.download.as_deref(), both.upload.as_deref()),
            (Some("5mbit"), Some("5mbit"))
        );
        let each = bandwidth("5mbit/1mbit".to_owned());
        assert_eq!(each.upload.as_deref(), Some("1mbit"));
    }
}
