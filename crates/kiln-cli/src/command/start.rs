//! `kiln start`.

use clap::Args;

use super::shared::for_each;
use crate::{Failure, Output, start::Daemon};

/// Start stopped sandboxes
#[derive(Debug, Args)]
pub(crate) struct StartArgs {
    /// Ids, unique prefixes of ids, or names
    #[arg(required = true, value_name = "SANDBOX")]
    sandboxes: Vec<String>,
}

pub(crate) async fn run(
    args: &StartArgs,
    daemon: &Daemon<'_>,
    output: &Output,
) -> Result<u8, Failure> {
    for_each(&args.sandboxes, output, async |key| {
        daemon
            .ask(async |client| client.start(key).await)
            .await
            .map(drop)
    })
    .await
}
