//! `kiln restart`.

use clap::Args;

use super::shared::{StopHow, for_each};
use crate::{Failure, Output, start::Daemon};

/// Stop sandboxes, if they run, and start them
#[derive(Debug, Args)]
pub(crate) struct RestartArgs {
    #[command(flatten)]
    how: StopHow,
    /// Ids, unique prefixes of ids, or names
    #[arg(required = true, value_name = "SANDBOX")]
    sandboxes: Vec<String>,
}

pub(crate) async fn run(
    args: &RestartArgs,
    daemon: &Daemon<'_>,
    output: &Output,
) -> Result<u8, Failure> {
    let request = args.how.request();
    for_each(&args.sandboxes, output, async |key| {
        daemon
            .ask(async |client| client.restart(key, request).await)
            .await
            .map(drop)
    })
    .await
}
