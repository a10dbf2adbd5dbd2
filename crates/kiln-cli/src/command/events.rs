//! `kiln events`.

use clap::Args;
use kiln_api::Event;

use crate::{
    Failure, Output,
    output::{format::Show, printable},
    start::Daemon,
};

/// Tell what happens to sandboxes
///
/// One line each; with --json one object per line. Without --follow, what the daemon still knows.
#[derive(Debug, Args)]
pub(crate) struct EventsArgs {
    /// Go on with what comes, until Ctrl-C
    #[arg(long, short)]
    follow: bool,
    /// Begin behind the event of this number
    #[arg(long, value_name = "NUMBER", default_value_t = 0)]
    since: u64,
    /// Only this sandbox, by id or name as it is then
    #[arg(long, short, value_name = "SANDBOX")]
    sandbox: Option<String>,
    #[command(flatten)]
    show: Show<Event>,
}

pub(crate) async fn run(
    args: &EventsArgs,
    daemon: &Daemon<'_>,
    output: &Output,
) -> Result<u8, Failure> {
    let mut events = daemon
        .ask(async |client| client.events(args.since, args.follow).await)
        .await?;
    while let Some(event) = events.next().await? {
        if args.wants(&event) {
            args.show.one(&event, output, || line(&event));
        }
    }
    Ok(0)
}

impl EventsArgs {
    fn wants(&self, event: &Event) -> bool {
        self.sandbox.as_ref().is_none_or(|wanted| {
            event.sandbox.starts_with(wanted) || event.name.as_ref() == Some(wanted)
        })
    }
}

fn line(event: &Event) -> String {
    let Event {
        number,
        sandbox,
        kind,
        at_ms,
        ..
    } = event;
    let name = event.name.as_deref().unwrap_or("-");
    let (seconds, ms) = (at_ms / 1000, at_ms % 1000);
    let mut text = format!("{number:>5}  {seconds}.{ms:03}  {sandbox}  {name}  {kind}");
    if let Some(reason) = &event.reason {
        // Some of it is a guest's word.
        text.push_str(&format!(": {}", printable(reason)));
    }
    text
}
