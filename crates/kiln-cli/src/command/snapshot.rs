//! `kiln snapshot`.

use clap::{Args, Subcommand};
use kiln_api::{AfterSnapshot, CreateSnapshot, Snapshot};

use super::shared::for_each;
use crate::{
    Failure, Output,
    output::{format::Show, size::bytes, table},
    start::Daemon,
};

/// Snapshots: sandboxes as they were at a moment, memory and all, to begin others from
///
/// A snapshot holds whatever its guest had in its memory, secrets too.
#[derive(Debug, Args)]
pub(crate) struct SnapshotArgs {
    #[command(subcommand)]
    command: SnapshotCommand,
}

#[derive(Debug, Subcommand)]
enum SnapshotCommand {
    /// Make a snapshot of a sandbox, which is halted for that and then goes on
    Create {
        /// Id, unique prefix of one, or name
        sandbox: String,
        /// Name to find the snapshot by
        #[arg(long)]
        name: Option<String>,
        /// Leave the sandbox paused
        #[arg(long)]
        no_resume: bool,
        /// Stop the sandbox, without asking it: all that it had is in the snapshot
        #[arg(long, conflicts_with = "no_resume")]
        stop: bool,
    },
    /// List snapshots
    #[command(visible_alias = "list")]
    Ls {
        /// Print ids only
        #[arg(long, short, conflicts_with = "format")]
        quiet: bool,
        #[command(flatten)]
        show: Show<Snapshot>,
    },
    /// Tell all about a snapshot
    Inspect {
        /// Id, unique prefix of one, or name
        snapshot: String,
        #[command(flatten)]
        show: Show<Snapshot>,
    },
    /// Remove snapshots that no sandbox needs
    #[command(visible_aliases = ["remove", "delete"])]
    Rm {
        /// Ids, unique prefixes of them, or names
        #[arg(required = true, value_name = "SNAPSHOT")]
        snapshots: Vec<String>,
    },
}

pub(crate) async fn run(
    args: SnapshotArgs,
    daemon: &Daemon<'_>,
    output: &Output,
) -> Result<u8, Failure> {
    match args.command {
        SnapshotCommand::Create {
            sandbox,
            name,
            no_resume,
            stop,
        } => {
            let then = then(no_resume, stop);
            let request = CreateSnapshot { name, then };
            let made = daemon
                .ask(async |client| client.create_snapshot(&sandbox, &request).await)
                .await?;
            output.line(&made.id);
            output.object(&made);
            Ok(0)
        }
        SnapshotCommand::Ls { quiet, show } => list(quiet, &show, daemon, output).await,
        SnapshotCommand::Inspect { snapshot, show } => {
            let found = daemon
                .ask(async |client| client.snapshot(&snapshot).await)
                .await?;
            show.one(&found, output, || details(&found));
            Ok(0)
        }
        SnapshotCommand::Rm { snapshots } => {
            let remove = async |key: &str| {
                daemon
                    .ask(async |client| client.remove_snapshot(key).await)
                    .await
            };
            for_each(&snapshots, output, remove).await
        }
    }
}

fn then(no_resume: bool, stop: bool) -> AfterSnapshot {
    match (no_resume, stop) {
        (_, true) => AfterSnapshot::Stop,
        (true, false) => AfterSnapshot::StayPaused,
        (false, false) => AfterSnapshot::Resume,
    }
}

async fn list(
    quiet: bool,
    show: &Show<Snapshot>,
    daemon: &Daemon<'_>,
    output: &Output,
) -> Result<u8, Failure> {
    let snapshots = daemon.ask(async |client| client.snapshots().await).await?;
    if quiet {
        snapshots.iter().for_each(|it| output.line(&it.id));
        return Ok(0);
    }
    show.list(&snapshots, output, || render(&snapshots, table::now_ms()));
    Ok(0)
}

fn render(snapshots: &[Snapshot], now_ms: u64) -> String {
    let head = ["ID", "NAME", "SANDBOX", "IMAGE", "ENGINE", "TAKES", "AGE"];
    let mut rows = vec![head.map(str::to_owned)];
    rows.extend(snapshots.iter().map(|it| {
        [
            it.id.clone(),
            it.name.clone().unwrap_or_default(),
            it.sandbox_name
                .clone()
                .unwrap_or_else(|| it.sandbox.clone()),
            it.image.clone(),
            it.engine.as_str().to_owned(),
            bytes(it.bytes),
            table::age(now_ms.saturating_sub(it.created_at_ms)),
        ]
    }));
    table::align(&rows)
}

fn details(it: &Snapshot) -> String {
    let engine = format!("{} {}", it.engine.as_str(), it.engine_version);
    let disk = match it.disk_mib {
        0 => "none: its writes are in its memory".to_owned(),
        mib => bytes(mib << 20),
    };
    let sandbox = match &it.sandbox_name {
        Some(name) => format!("{} ({name})", it.sandbox),
        None => it.sandbox.clone(),
    };
    table::align(&[
        ["id".to_owned(), it.id.clone()],
        ["name".to_owned(), it.name.clone().unwrap_or_default()],
        ["sandbox".to_owned(), sandbox],
        ["image".to_owned(), it.image.clone()],
        ["engine".to_owned(), engine],
        ["vcpus".to_owned(), it.vcpus.to_string()],
        ["memory".to_owned(), bytes(u64::from(it.mem_mib) << 20)],
        ["disk".to_owned(), disk],
        ["takes".to_owned(), bytes(it.bytes)],
        ["used by".to_owned(), it.used_by.join(" ")],
    ])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{Cli, Command};

    fn typed(line: &str) -> Result<SnapshotCommand, clap::Error> {
        match Cli::parse_words(line.split(' ').map(Into::into).collect())?.command {
            Command::Snapshot(args) => Ok(args.command),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn b6_1_every_command_is_understood() {
        for line in [
            "kiln snapshot create web",
            "kiln snapshot create web --name golden --no-resume",
            "kiln snapshot create web --stop",
            "kiln snapshot ls -q",
            "kiln snapshot list",
            "kiln snapshot inspect golden",
            "kiln snapshot rm a b",
            "kiln snapshot delete a",
        ] {
            assert!(typed(line).is_ok(), "{line}");
        }
        for line in [
            "kiln snapshot",
            "kiln snapshot create",
            "kiln snapshot create web --stop --no-resume",
            "kiln snapshot rm",
            "kiln snapshot ls web",
        ] {
            assert!(typed(line).is_err(), "{line}");
        }
        assert_eq!(then(false, false), AfterSnapshot::Resume);
        assert_eq!(then(true, false), AfterSnapshot::StayPaused);
        assert_eq!(then(false, true), AfterSnapshot::Stop);
    }
}
