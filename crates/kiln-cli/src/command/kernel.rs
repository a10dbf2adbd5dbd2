//! `kiln kernel`.

use clap::{Args, Subcommand};

use kiln_api::Kernel;

use crate::{
    Failure, Output,
    output::{format::Show, table},
    start::Daemon,
};

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
    Ls {
        /// Print ids only
        #[arg(long, short, conflicts_with = "format")]
        quiet: bool,
        #[command(flatten)]
        show: Show<Kernel>,
    },
}

pub(crate) async fn run(
    args: &KernelArgs,
    daemon: &Daemon<'_>,
    output: &Output,
) -> Result<u8, Failure> {
    let KernelCommand::Ls { quiet, show } = &args.command;
    let kernels = daemon.ask(async |client| client.kernels().await).await?;
    if *quiet {
        kernels.iter().for_each(|it| output.line(&it.id));
        return Ok(0);
    }
    show.list(&kernels, output, || render(&kernels));
    Ok(0)
}

fn render(kernels: &[Kernel]) -> String {
    let mut rows = vec![["ID", "RELEASE", "MODULES", "SOURCE"].map(str::to_owned)];
    rows.extend(kernels.iter().map(|it| {
        [
            it.id.chars().take(12).collect(),
            it.release.clone(),
            it.modules.to_string(),
            it.source.clone(),
        ]
    }));
    table::align(&rows)
}
