//! `kiln sessions`.

use clap::Args;
use kiln_api::{ExitStatus, Session};

use crate::{
    Failure, Output,
    output::{format::Show, table},
    start::Daemon,
};

/// List the commands that run in a sandbox, and the last ones that have ended
///
/// `kiln attach` goes back to one; `--kill` ends one with all its processes.
#[derive(Debug, Args)]
pub(crate) struct SessionsArgs {
    /// End this session with all its processes
    #[arg(long, value_name = "NUMBER", conflicts_with = "format")]
    kill: Option<u64>,
    #[command(flatten)]
    show: Show<Session>,
    /// Id, unique prefix of an id, or name
    sandbox: String,
}

pub(crate) async fn run(
    args: &SessionsArgs,
    daemon: &Daemon<'_>,
    output: &Output,
) -> Result<u8, Failure> {
    if let Some(session) = args.kill {
        daemon
            .ask(async |client| client.kill(&args.sandbox, session).await)
            .await?;
        output.line(&session.to_string());
        output.object(&session);
        return Ok(0);
    }
    let sessions = daemon
        .ask(async |client| client.sessions(&args.sandbox).await)
        .await?;
    args.show.list(&sessions, output, || render(&sessions));
    Ok(0)
}

fn render(sessions: &[Session]) -> String {
    let mut rows = vec![["SESSION", "PID", "STATE", "TTY", "AGE", "COMMAND"].map(str::to_owned)];
    rows.extend(sessions.iter().map(|it| {
        [
            it.id.to_string(),
            it.pid.to_string(),
            state(it),
            if it.tty { "yes" } else { "no" }.to_owned(),
            table::age(it.age_ms),
            it.argv.join(" "),
        ]
    }));
    table::align(&rows)
}

fn state(session: &Session) -> String {
    match session.exit {
        None if session.attached => "attached".to_owned(),
        None => "detached".to_owned(),
        Some(ExitStatus::Code(code)) => format!("exited {code}"),
        Some(ExitStatus::Signal(signal)) => format!("signal {signal}"),
        Some(ExitStatus::TimedOut(_)) => "timed out".to_owned(),
    }
}
