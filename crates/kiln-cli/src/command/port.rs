//! `kiln port`.

use clap::Args;

use crate::{Failure, Output, start::Daemon};

/// Show which ports of this host lead to a sandbox
#[derive(Debug, Args)]
pub(crate) struct PortArgs {
    /// Id, unique prefix of an id, or name
    sandbox: String,
}

pub(crate) async fn run(
    args: &PortArgs,
    daemon: &Daemon<'_>,
    output: &Output,
) -> Result<u8, Failure> {
    let network = daemon
        .ask(async |client| client.network(&args.sandbox).await)
        .await?;
    let published = &network.policy.publish;
    published.iter().for_each(|port| output.line(port));
    output.object(published);
    Ok(0)
}
