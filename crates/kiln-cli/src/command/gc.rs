//! `kiln gc`.

use clap::Args;
use kiln_api::{CollectGarbage, Leftover};

use crate::{
    Failure, Output,
    output::{format::Show, size, table},
    start::Daemon,
};

/// Remove what no sandbox owns any more: files, sockets, jails, control groups, interfaces and firewall
/// rules, what was never finished
///
/// Images and volumes that nobody uses are theirs: see `kiln image prune` and `kiln volume ls`.
#[derive(Debug, Args)]
pub(crate) struct GcArgs {
    /// Only tell what would be removed
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    show: Show<Leftover>,
}

pub(crate) async fn run(
    args: &GcArgs,
    daemon: &Daemon<'_>,
    output: &Output,
) -> Result<u8, Failure> {
    let request = CollectGarbage {
        dry_run: args.dry_run,
    };
    let found = daemon
        .ask(async |client| client.collect_garbage(request).await)
        .await?;
    args.show.list(&found, output, || render(&found));
    Ok(0)
}

fn render(found: &[Leftover]) -> String {
    let mut rows = vec![["KIND", "SIZE", "REMOVED", "PATH"].map(str::to_owned)];
    rows.extend(found.iter().map(|it| {
        [
            it.kind.clone(),
            size::bytes(it.bytes),
            if it.removed { "yes" } else { "no" }.to_owned(),
            it.path.clone(),
        ]
    }));
    table::align(&rows)
}
