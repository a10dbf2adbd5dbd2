//! `kiln network`: what a sandbox may reach, and the proof.

mod named;
mod policy;
mod rule;
mod shown;

use std::{convert::Infallible, net::Ipv4Addr, str::FromStr};

use clap::{ArgGroup, Args, Subcommand};
use kiln_api::{NamedNetwork, NetworkMode, NetworkProof, NetworkRequest, ProofOutcome};

use crate::{Failure, Output, failure::FAILED, output::format::Show, start::Daemon};
use named::CreateArgs;
use policy::PolicyArgs;
use shown::{Either, proofs_in_words, show, show_named};

/// Networks: what sandboxes may reach, and those that they share
///
/// A sandbox has a network of its own unless it joins one by name: `kiln run --network NAME`.
/// Where both have the name that is given, the network is meant; give the sandbox's id then.
#[derive(Debug, Args)]
pub(crate) struct NetworkArgs {
    #[command(subcommand)]
    command: NetworkCommand,
}

#[derive(Debug, Subcommand)]
enum NetworkCommand {
    Create(Box<CreateArgs>),
    /// List the networks that sandboxes can share
    #[command(visible_alias = "list")]
    Ls {
        /// Print names only
        #[arg(long, short, conflicts_with = "format")]
        quiet: bool,
        #[command(flatten)]
        show: Show<NamedNetwork>,
    },
    /// Tell what a sandbox, or a network's members, may reach, and where they are
    Inspect {
        /// A network, or a sandbox's id, unique prefix of one, or name
        #[arg(id = "sandbox_or_network", value_name = "NAME")]
        name: String,
        #[command(flatten)]
        show: Show<Either>,
    },
    /// Replace the policy of a sandbox or a network; of a running one at once
    ///
    /// The new policy is the one given here, whole: what is not said again is no part of it.
    #[command(group = ArgGroup::new("change").required(true).multiple(true).args([
        "network_policy", "rule", "default_action", "private_networks", "allow_domain",
        "allow_cidr", "deny_cidr", "publish", "bandwidth",
    ]))]
    Update {
        /// A network, or a sandbox's id, unique prefix of one, or name
        #[arg(id = "sandbox_or_network", value_name = "NAME")]
        name: String,
        #[command(flatten)]
        policy: Box<PolicyArgs>,
    },
    /// Remove networks that no sandbox has
    #[command(visible_alias = "remove")]
    Rm {
        /// The networks
        #[arg(required = true, value_name = "NAME")]
        names: Vec<String>,
    },
    /// Prove that the policy is enforced, by asking from inside and outside
    ///
    /// Fails with NETWORK_POLICY_BROKEN when something answers that should not, or the reverse.
    Verify {
        /// Id, unique prefix of one, or name
        sandbox: String,
        #[command(flatten)]
        show: Show<NetworkProof>,
    },
}

/// Which network, as typed.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Choice {
    /// No network card at all.
    None,
    /// One of its own.
    Own,
    /// One that needs no root.
    User,
    /// One that is shared.
    Named(String),
}

impl FromStr for Choice {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(match text {
            "none" => Self::None,
            "default" => Self::Own,
            "user" => Self::User,
            name => Self::Named(name.to_owned()),
        })
    }
}

/// What `run` is told of the network.
#[derive(Debug, Args)]
pub(crate) struct RunNetworkArgs {
    /// `default` for one of its own, `none`, the name of one to share, or `user` without root (by
    /// passt, and without a policy) [default: one of its own, where this host can make one]
    #[arg(
        long,
        value_name = "NETWORK",
        env = "KILN_NETWORK",
        hide_env_values = true
    )]
    network: Option<Choice>,
    /// The address to have in a shared network [default: the lowest free one]
    #[arg(long, value_name = "ADDRESS")]
    ip: Option<Ipv4Addr>,
    #[command(flatten)]
    policy: PolicyArgs,
}

impl RunNetworkArgs {
    pub(super) fn request(self) -> NetworkRequest {
        let (mode, name) = match self.network {
            None => (None, None),
            Some(Choice::None) => (Some(NetworkMode::None), None),
            Some(Choice::Own) => (Some(NetworkMode::Default), None),
            Some(Choice::User) => (Some(NetworkMode::User), None),
            Some(Choice::Named(name)) => (Some(NetworkMode::Default), Some(name)),
        };
        NetworkRequest {
            mode,
            name,
            address: self.ip,
            policy: self.policy.policy(),
        }
    }
}

pub(crate) async fn run(
    args: NetworkArgs,
    daemon: &Daemon<'_>,
    output: &Output,
) -> Result<u8, Failure> {
    match args.command {
        NetworkCommand::Create(args) => named::create(*args, daemon, output).await,
        NetworkCommand::Ls { quiet, show } => named::list(quiet, &show, daemon, output).await,
        NetworkCommand::Rm { names } => named::remove(&names, daemon, output).await,
        NetworkCommand::Inspect { name, show } => {
            let named = daemon.ask(async |it| it.named_network(&name).await).await;
            let network = match named_or_sandbox(named)? {
                Some(network) => Either::Named(Box::new(network)),
                None => Either::Own(Box::new(
                    daemon.ask(async |it| it.network(&name).await).await?,
                )),
            };
            show.one(&network, output, || network.in_words());
            Ok(0)
        }
        NetworkCommand::Update { name, policy } => {
            let policy = policy.policy();
            let named = daemon.ask(async |it| it.update_named_network(&name, &policy).await);
            match named_or_sandbox(named.await)? {
                Some(network) => show_named(&network, output),
                None => {
                    let own = daemon.ask(async |it| it.update_network(&name, &policy).await);
                    show(&own.await?, output);
                }
            }
            Ok(0)
        }
        NetworkCommand::Verify { sandbox, show } => {
            let proofs = daemon
                .ask(async |client| client.verify_network(&sandbox).await)
                .await?;
            show.list(&proofs, output, || proofs_in_words(&proofs));
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

/// A network, or nothing where there is none of that name: then a sandbox is meant.
fn named_or_sandbox<T>(answer: Result<T, Failure>) -> Result<Option<T>, Failure> {
    match answer {
        Ok(network) => Ok(Some(network)),
        Err(failure) if failure.report().code == "NETWORK_NOT_FOUND" => Ok(None),
        Err(failure) => Err(failure),
    }
}
