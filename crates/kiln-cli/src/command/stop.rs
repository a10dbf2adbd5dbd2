//! `kiln stop`.

use clap::Args;

use super::shared::{StopHow, for_each};
use crate::{Failure, Output, start::Daemon};

/// Stop sandboxes; their disks stay
#[derive(Debug, Args)]
pub(crate) struct StopArgs {
    #[command(flatten)]
    how: StopHow,
    /// Ids, unique prefixes of ids, or names
    #[arg(required = true, value_name = "SANDBOX")]
    sandboxes: Vec<String>,
}

pub(crate) async fn run(
    args: &StopArgs,
    daemon: &Daemon<'_>,
    output: &Output,
) -> Result<u8, Failure> {
    let request = args.how.request();
    for_each(&args.sandboxes, output, async |key| {
        daemon
            .ask(async |client| client.stop(key, request).await)
            .await
            .map(drop)
    })
    .await
}
