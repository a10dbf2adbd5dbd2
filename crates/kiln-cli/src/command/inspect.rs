//! `kiln inspect`.

use clap::Args;

use kiln_api::Sandbox;

use crate::{Failure, Output, output::format::Show, start::Daemon};

/// Tell everything about sandboxes, as JSON
#[derive(Debug, Args)]
pub(crate) struct InspectArgs {
    #[command(flatten)]
    show: Show<Sandbox>,
    /// Ids, unique prefixes of ids, or names
    #[arg(required = true, value_name = "SANDBOX")]
    sandboxes: Vec<String>,
}

pub(crate) async fn run(
    args: &InspectArgs,
    daemon: &Daemon<'_>,
    output: &Output,
) -> Result<u8, Failure> {
    let mut told = Vec::with_capacity(args.sandboxes.len());
    for key in &args.sandboxes {
        told.push(daemon.ask(async |client| client.get(key).await).await?);
    }
    args.show.list_or(&told, output, || output.pretty(&told));
    Ok(0)
}
