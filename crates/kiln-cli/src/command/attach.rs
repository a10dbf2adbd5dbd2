//! `kiln attach`.

use clap::Args;
use kiln_api::{ErrorReport, ExecRequest, Session};

use crate::{
    Failure, Output,
    session::{self, Purpose, terminal},
    start::Daemon,
};

/// Go back to a command that runs in a sandbox
#[derive(Debug, Args)]
pub(crate) struct AttachArgs {
    /// Id, unique prefix of an id, or name
    sandbox: String,
    /// Number of the session; may be left out when only one runs
    session: Option<u64>,
}

pub(crate) async fn run(
    args: AttachArgs,
    daemon: &Daemon<'_>,
    output: &Output,
) -> Result<u8, Failure> {
    to(&args.sandbox, args.session, daemon, output).await
}

/// Goes back to a session of a sandbox, or to the only one that runs.
pub(super) async fn to(
    sandbox: &str,
    session: Option<u64>,
    daemon: &Daemon<'_>,
    output: &Output,
) -> Result<u8, Failure> {
    let sessions = daemon
        .ask(async |client| client.sessions(sandbox).await)
        .await?;
    let session = choose(&sessions, session)?;
    let request = ExecRequest {
        argv: session.argv.clone(),
        tty: session.tty.then(terminal::size),
        stdin: session.tty || terminal::stdin_is_data(),
        ..ExecRequest::default()
    };
    let stream = daemon
        .ask(async |client| client.attach(sandbox, session.id).await)
        .await?;
    session::drive(stream, Purpose::Attach, &request, false, output).await
}

fn choose(sessions: &[Session], asked: Option<u64>) -> Result<&Session, Failure> {
    let fits = |session: &&Session| match asked {
        Some(id) => session.id == id,
        None => session.exit.is_none(),
    };
    let mut fitting = sessions.iter().filter(fits);
    match (fitting.next(), fitting.next()) {
        (Some(session), None) => Ok(session),
        (None, _) => Err(Failure::reported(ErrorReport::new(
            "SESSION_NOT_FOUND",
            "the sandbox has no such session",
        ))),
        (Some(_), Some(_)) => {
            let running = sessions.iter().filter(fits);
            let ids: Vec<_> = running
                .map(|it| format!("{} ({})", it.id, it.argv.join(" ")))
                .collect();
            let report = ErrorReport::new("AMBIGUOUS", "several sessions run in the sandbox")
                .with_hint(format!("name one: {}", ids.join(", ")));
            Err(Failure::reported(report))
        }
    }
}
