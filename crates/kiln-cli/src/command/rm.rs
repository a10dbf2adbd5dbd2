//! `kiln rm`.

use clap::Args;

use super::shared::for_each;
use crate::{Failure, Output, start::Daemon};

/// Remove sandboxes and all they wrote
#[derive(Debug, Args)]
pub(crate) struct RmArgs {
    /// Remove running ones too
    #[arg(long, short)]
    force: bool,
    /// Ids, unique prefixes of ids, or names
    #[arg(required = true, value_name = "SANDBOX")]
    sandboxes: Vec<String>,
}

pub(crate) async fn run(
    args: &RmArgs,
    daemon: &Daemon<'_>,
    output: &Output,
) -> Result<u8, Failure> {
    for_each(&args.sandboxes, output, async |key| {
        daemon
            .ask(async |client| client.remove(key, args.force).await)
            .await
    })
    .await
}
