//! `kiln kernel`.

use clap::{Args, Subcommand};

use crate::{Failure, Output, output::table, start::Daemon};

/// Guest kernels on this host
#[derive(Debug, Args)]
pub(crate) struct KernelArgs {
    #[command(subcommand)]
    command: KernelCommand,
}

#[derive(Debug, Subcommand)]
enum KernelCommand {
    /// List them
    #[command(alias = "list")]
    Ls,
}

pub(crate) async fn run(
    args: &KernelArgs,
    daemon: &Daemon<'_>,
    output: &Output,
) -> Result<u8, Failure> {
    let KernelCommand::Ls = args.command;
    let kernels = daemon.ask(async |client| client.kernels().await).await?;
    let mut rows = vec![["ID", "RELEASE", "MODULES", "SOURCE"].map(str::to_owned)];
    rows.extend(kernels.iter().map(|it| {
        [
            it.id.chars().take(12).collect(),
            it.release.clone(),
            it.modules.to_string(),
            it.source.clone(),
        ]
    }));
    output.line(&table::align(&rows));
    output.object(&kernels);
    Ok(0)
}
