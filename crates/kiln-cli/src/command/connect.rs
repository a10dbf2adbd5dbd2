//! `kiln connect`.

use clap::Args;

use super::shared::Connect;
use crate::{Failure, Output, start::Daemon};

/// Open a shell in a running sandbox
///
/// With --session, goes back to the shell or command of that number.
#[derive(Debug, Args)]
pub(crate) struct ConnectArgs {
    /// Go back to this session instead
    #[arg(long, short, value_name = "NUMBER", conflicts_with_all = ["user", "workdir", "no_extend_timeout"])]
    session: Option<u64>,
    /// User, by name or number, and group: USER[:GROUP]
    #[arg(long, short, value_name = "USER")]
    user: Option<String>,
    /// Working directory
    #[arg(long, short, value_name = "DIR")]
    workdir: Option<String>,
    /// Let the sandbox's time-out end it also while the shell is open
    #[arg(long)]
    no_extend_timeout: bool,
    /// Id, unique prefix of an id, or name
    sandbox: String,
}

pub(crate) async fn run(
    args: ConnectArgs,
    daemon: &Daemon<'_>,
    output: &Output,
) -> Result<u8, Failure> {
    if let Some(session) = args.session {
        return super::attach::to(&args.sandbox, Some(session), daemon, output).await;
    }
    let connect = Connect {
        user: args.user,
        workdir: args.workdir,
        keep_timeout: args.no_extend_timeout,
        ..Connect::to(args.sandbox)
    };
    connect.run(daemon, output).await
}
