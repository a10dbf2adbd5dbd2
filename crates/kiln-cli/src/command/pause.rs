//! `kiln pause` and `kiln resume`.

use clap::Args;

use super::shared::for_each;
use crate::{Failure, Output, start::Daemon};

/// Halt running sandboxes; memory, disks and connections stay as they are
#[derive(Debug, Args)]
pub(crate) struct PauseArgs {
    /// Ids, unique prefixes of ids, or names
    #[arg(required = true, value_name = "SANDBOX")]
    sandboxes: Vec<String>,
}

/// Let paused sandboxes go on
#[derive(Debug, Args)]
pub(crate) struct ResumeArgs {
    /// Ids, unique prefixes of ids, or names
    #[arg(required = true, value_name = "SANDBOX")]
    sandboxes: Vec<String>,
}

pub(crate) async fn pause(
    args: &PauseArgs,
    daemon: &Daemon<'_>,
    output: &Output,
) -> Result<u8, Failure> {
    for_each(&args.sandboxes, output, async |key| {
        daemon
            .ask(async |client| client.pause(key).await)
            .await
            .map(drop)
    })
    .await
}

pub(crate) async fn resume(
    args: &ResumeArgs,
    daemon: &Daemon<'_>,
    output: &Output,
) -> Result<u8, Failure> {
    for_each(&args.sandboxes, output, async |key| {
        daemon
            .ask(async |client| client.resume(key).await)
            .await
            .map(drop)
    })
    .await
}
