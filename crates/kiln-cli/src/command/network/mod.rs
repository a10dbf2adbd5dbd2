//! `kiln network`: what a sandbox may reach, and the proof.

mod policy;
mod rule;
mod shown;

use clap::{ArgGroup, Args, Subcommand, ValueEnum};
use kiln_api::{NetworkMode, NetworkRequest, ProofOutcome};

use crate::{Failure, Output, failure::FAILED, start::Daemon};
use policy::PolicyArgs;
use shown::{proofs_in_words, show};

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
        "network_policy", "rule", "default_action", "private_networks", "allow_domain",
        "allow_cidr", "deny_cidr", "publish", "bandwidth",
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
