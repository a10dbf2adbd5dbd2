//! `kiln gc`.

use clap::Args;
use kiln_api::CollectGarbage;

use crate::{
    Failure, Output,
    output::{size, table},
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
    let mut rows = vec![["KIND", "SIZE", "REMOVED", "PATH"].map(str::to_owned)];
    rows.extend(found.iter().map(|it| {
        [
            it.kind.clone(),
            size::bytes(it.bytes),
            if it.removed { "yes" } else { "no" }.to_owned(),
            it.path.clone(),
        ]
    }));
    output.line(&table::align(&rows));
    output.object(&found);
    Ok(0)
}
