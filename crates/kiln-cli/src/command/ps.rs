//! `kiln ps`.

use clap::Args;
use kiln_api::{EngineKind, Sandbox};

use crate::{
    Failure, Output,
    output::{format::Show, table},
    start::Daemon,
};

/// List sandboxes
#[derive(Debug, Args)]
pub(crate) struct PsArgs {
    /// List those without a machine too: created, stopped and failed ones
    #[arg(long, short)]
    all: bool,
    /// Only those that meet this: state=running, label=NAME[=VALUE], project=NAME, name=PART,
    /// id=START, image=NAME; several must all be met. A state shows those without a machine too
    #[arg(long, short, value_name = "NAME=VALUE")]
    filter: Vec<String>,
    /// Print ids only
    #[arg(long, short, conflicts_with = "format")]
    quiet: bool,
    #[command(flatten)]
    show: Show<Sandbox>,
}

impl PsArgs {
    fn names_state(&self) -> bool {
        let names = |it: &String| it.starts_with("state=") || it.starts_with("status=");
        self.filter.iter().any(names)
    }
}

pub(crate) async fn run(
    args: &PsArgs,
    daemon: &Daemon<'_>,
    output: &Output,
) -> Result<u8, Failure> {
    let mut sandboxes = daemon
        .ask(async |client| client.list(&args.filter).await)
        .await?;
    let all = args.all || args.names_state();
    sandboxes.retain(|sandbox| all || sandbox.state.is_live());
    if args.quiet {
        sandboxes.iter().for_each(|it| output.line(&it.id));
        return Ok(0);
    }
    let table = || render(&sandboxes, table::now_ms());
    args.show.list(&sandboxes, output, table);
    Ok(0)
}

fn render(sandboxes: &[Sandbox], now_ms: u64) -> String {
    let mut rows = vec![
        [
            "ID", "NAME", "IMAGE", "STATE", "ENGINE", "CPUS", "MEM", "AGE",
        ]
        .map(str::to_owned),
    ];
    rows.extend(sandboxes.iter().map(|it| {
        [
            it.id.clone(),
            it.name.clone().unwrap_or_else(|| "-".to_owned()),
            it.image.clone(),
            state(it),
            it.engine.map_or("-", EngineKind::as_str).to_owned(),
            it.vcpus.to_string(),
            format!("{}M", it.mem_mib),
            table::age(now_ms.saturating_sub(it.created_at_ms)),
        ]
    }));
    table::align(&rows)
}

/// A machine that is not confined must not look like one that is.
fn state(sandbox: &Sandbox) -> String {
    let word = sandbox.state.as_str();
    let waived: Vec<_> = sandbox.without.iter().map(|it| it.as_str()).collect();
    match sandbox.unprotected.len() {
        0 if waived.is_empty() => word.to_owned(),
        // It has no machine now, and will lack them when it has one.
        0 => format!("{word}, without {}", waived.join(", ")),
        lacks => format!("{word}, {lacks} protections missing"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_aligned() {
        let sandbox: Sandbox = serde_json::from_value(serde_json::json!({
            "id": "abcdef012345", "name": "web", "image": "default", "state": "running",
            "engine": "qemu", "vcpus": 1, "mem_mib": 512, "disk_mib": 10240,
            "created_at_ms": 1_000,
        }))
        .unwrap();
        let other = Sandbox {
            id: "b".into(),
            name: None,
            engine: None,
            ..sandbox.clone()
        };
        assert_eq!(
            render(&[sandbox, other], 91_000),
            "ID            NAME  IMAGE    STATE    ENGINE  CPUS  MEM   AGE\n\
             abcdef012345  web   default  running  qemu    1     512M  90s\n\
             b             -     default  running  -       1     512M  90s"
        );
    }
}
