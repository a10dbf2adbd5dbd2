//! `kiln wait`.

use clap::{Args, ValueEnum};
use kiln_api::{Sandbox, WaitFor};

use super::shared::for_each_with;
use crate::{Failure, Output, start::Daemon};

/// Wait until sandboxes have stopped, and print what they are then
#[derive(Debug, Args)]
pub(crate) struct WaitArgs {
    /// What to wait for
    #[arg(
        long = "for",
        value_enum,
        value_name = "STATE",
        default_value = "stopped"
    )]
    what: What,
    /// Ids, unique prefixes of ids, or names
    #[arg(required = true, value_name = "SANDBOX")]
    sandboxes: Vec<String>,
}

/// What is waited for.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum What {
    /// It has no machine, or is gone
    Stopped,
    /// It is up, or its start failed
    Running,
    /// It is gone
    Removed,
}

impl From<What> for WaitFor {
    fn from(what: What) -> Self {
        match what {
            What::Stopped => Self::Stopped,
            What::Running => Self::Running,
            What::Removed => Self::Removed,
        }
    }
}

pub(crate) async fn run(
    args: &WaitArgs,
    daemon: &Daemon<'_>,
    output: &Output,
) -> Result<u8, Failure> {
    let what = args.what.into();
    for_each_with(&args.sandboxes, output, line, async |key| {
        daemon
            .ask(async |client| client.wait(key, what).await)
            .await
    })
    .await
}

fn line(_: &str, sandbox: &Sandbox) -> String {
    let state = sandbox.state.as_str();
    match &sandbox.reason {
        Some(reason) => format!("{}  {state}: {reason}", sandbox.id),
        None => format!("{}  {state}", sandbox.id),
    }
}
