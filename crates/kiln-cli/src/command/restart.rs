//! `kiln restart`.

use clap::Args;
use kiln_api::StopSandbox;

use super::shared::for_each;
use crate::{Failure, Output, start::Daemon};

/// Stop sandboxes, if they run, and start them
#[derive(Debug, Args)]
pub(crate) struct RestartArgs {
    /// Seconds that the guest has to power off before its machine is ended
    #[arg(long, short, value_name = "SECONDS")]
    time: Option<u32>,
    /// Ids, unique prefixes of ids, or names
    #[arg(required = true, value_name = "SANDBOX")]
    sandboxes: Vec<String>,
}

pub(crate) async fn run(
    args: &RestartArgs,
    daemon: &Daemon<'_>,
    output: &Output,
) -> Result<u8, Failure> {
    let request = StopSandbox {
        grace_ms: args.time.map(|seconds| u64::from(seconds) * 1000),
    };
    for_each(&args.sandboxes, output, async |key| {
        daemon
            .ask(async |client| client.restart(key, request).await)
            .await
            .map(drop)
    })
    .await
}
