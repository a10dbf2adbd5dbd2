//! `kiln logs`.

use std::io::{self, Write};

use clap::Args;

use crate::{Failure, start::Daemon};

/// Print the console of a sandbox's guest
#[derive(Debug, Args)]
pub(crate) struct LogsArgs {
    /// Go on with what comes, until the sandbox stops
    #[arg(long, short)]
    follow: bool,
    /// Begin this many lines before the end
    #[arg(long, short = 'n', value_name = "LINES")]
    tail: Option<u32>,
    /// Id, unique prefix of an id, or name
    sandbox: String,
}

pub(crate) async fn run(args: &LogsArgs, daemon: &Daemon<'_>) -> Result<u8, Failure> {
    let mut log = daemon
        .ask(async |client| client.logs(&args.sandbox, args.follow, args.tail).await)
        .await?;
    let mut stdout = io::stdout().lock();
    while let Some(bytes) = log.next().await? {
        // Nothing else goes on here that blocking could hold up.
        let written = stdout.write_all(&bytes).and_then(|()| stdout.flush());
        match written {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(0),
            written => written.map_err(Failure::io("write to standard output"))?,
        }
    }
    Ok(0)
}
