//! `kiln update` and `kiln rename`.

use clap::{ArgGroup, Args};
use kiln_api::UpdateSandbox;

use super::{
    lifetime::{Label, restart_policy},
    shared::for_each,
};
use crate::{
    Failure, Output,
    output::{size::Mebibytes, span::Millis},
    start::Daemon,
};

/// Change time-outs, labels, restarts, processors or memory of sandboxes
///
/// What is not named stays as it is. Processors and memory change only while a sandbox is stopped;
/// the network's policy is changed by `kiln network update`.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("change").required(true).multiple(true).args([
    "label", "unlabel", "project", "timeout", "idle_timeout", "restart", "rm", "cpus", "memory",
]))]
pub(crate) struct UpdateArgs {
    /// Set a label
    #[arg(long, value_name = "NAME[=VALUE]")]
    label: Vec<Label>,
    /// Take a label away
    #[arg(long, value_name = "NAME")]
    unlabel: Vec<String>,
    /// Project that it belongs to; none takes it away
    #[arg(long, value_name = "NAME")]
    project: Option<String>,
    /// Stop it after this long, from now; none for never
    #[arg(long, value_name = "SPAN", value_parser = span_or_none)]
    timeout: Option<Span>,
    /// Stop it when nobody has used it for this long; none for never
    #[arg(long, value_name = "SPAN", value_parser = span_or_none)]
    idle_timeout: Option<Span>,
    /// Start it again when its machine ends by itself: no, on-failure, on-failure:3, always
    #[arg(long, value_name = "POLICY", value_parser = restart_policy)]
    restart: Option<String>,
    /// Remove it when it stops, or with --rm=false keep it
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    rm: Option<bool>,
    /// Virtual processors
    #[arg(long, value_name = "N")]
    cpus: Option<u8>,
    /// Memory: MiB, or with a unit: 512M, 2G
    #[arg(long, short, value_name = "SIZE")]
    memory: Option<Mebibytes>,
    /// Ids, unique prefixes of ids, or names
    #[arg(required = true, value_name = "SANDBOX")]
    sandboxes: Vec<String>,
}

/// A span, or that there is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Span(Option<u64>);

fn span_or_none(text: &str) -> Result<Span, &'static str> {
    match text {
        "none" => Ok(Span(None)),
        text => text.parse::<Millis>().map(|span| Span(Some(span.get()))),
    }
}

impl UpdateArgs {
    fn request(&self) -> UpdateSandbox {
        let set = self.label.iter().cloned().map(|label| {
            let (name, value) = label.into_pair();
            (name, Some(value))
        });
        let taken = self.unlabel.iter().map(|name| (name.clone(), None));
        let project = self.project.clone();
        UpdateSandbox {
            name: None,
            labels: set.chain(taken).collect(),
            project: project.map(|name| Some(name).filter(|name| name != "none")),
            timeout_ms: self.timeout.map(|span| span.0),
            idle_timeout_ms: self.idle_timeout.map(|span| span.0),
            restart: self.restart.clone(),
            remove_on_stop: self.rm,
            vcpus: self.cpus,
            mem_mib: self.memory.map(Mebibytes::as_u32),
        }
    }
}

pub(crate) async fn run(
    args: &UpdateArgs,
    daemon: &Daemon<'_>,
    output: &Output,
) -> Result<u8, Failure> {
    let update = args.request();
    for_each(&args.sandboxes, output, async |key| {
        daemon
            .ask(async |client| client.update(key, &update).await)
            .await
            .map(drop)
    })
    .await
}

/// Give a sandbox another name
#[derive(Debug, Args)]
pub(crate) struct RenameArgs {
    /// Id, unique prefix of an id, or name
    sandbox: String,
    /// The new name
    name: String,
}

pub(crate) async fn rename(
    args: &RenameArgs,
    daemon: &Daemon<'_>,
    output: &Output,
) -> Result<u8, Failure> {
    let update = UpdateSandbox {
        name: Some(args.name.clone()),
        ..UpdateSandbox::default()
    };
    let renamed = daemon
        .ask(async |client| client.update(&args.sandbox, &update).await)
        .await?;
    output.line(&args.name);
    output.object(&renamed);
    Ok(0)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use crate::cli::{Cli, Command};

    fn json(line: &str) -> String {
        match Cli::try_parse_from(line.split(' ')).unwrap().command {
            Command::Update(args) => serde_json::to_string(&args.request()).unwrap(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn only_what_is_named_changes() {
        assert!(Cli::try_parse_from(["kiln", "update", "a"]).is_err());
        assert_eq!(
            json("kiln update --timeout none --idle-timeout 5m --rm a b"),
            r#"{"timeout_ms":null,"idle_timeout_ms":300000,"remove_on_stop":true}"#
        );
        assert_eq!(
            json("kiln update --label a=1 --unlabel b --project none --rm=false a"),
            r#"{"labels":{"a":"1","b":null},"project":null,"remove_on_stop":false}"#
        );
    }
}
