//! `kiln exec`.

use clap::Args;

use super::{exec_limits::LimitArgs, shared::CommandArgs};
use crate::{
    Failure, Output,
    output::span::Millis,
    session::{self, Purpose},
    start::Daemon,
};

/// Run a command in a running sandbox
///
/// Without a command, runs a shell. Ctrl-C reaches the command; a second one ends it.
#[derive(Debug, Args)]
pub(crate) struct ExecArgs {
    #[command(flatten)]
    command: CommandArgs,
    /// Leave the command running and print the number of its session
    #[arg(long, short, conflicts_with_all = ["interactive", "tty"])]
    detach: bool,
    /// End the command with all its processes after this long: 90s, 5m; the exit code is 124 then
    #[arg(long, value_name = "SPAN")]
    timeout: Option<Millis>,
    #[command(flatten)]
    limits: LimitArgs,
    /// With a terminal: let the sandbox's time-out end it also while this command runs
    #[arg(long)]
    no_extend_timeout: bool,
    /// Id, unique prefix of an id, or name
    sandbox: String,
    /// Command and its arguments
    #[arg(trailing_var_arg = true, value_name = "COMMAND")]
    words: Vec<String>,
}

pub(crate) async fn run(
    args: ExecArgs,
    daemon: &Daemon<'_>,
    output: &Output,
) -> Result<u8, Failure> {
    let limits = args.limits.limits();
    let argv = args.words;
    let shell = argv.is_empty() && !args.detach;
    let mut request = args.command.request(argv, shell);
    request.keep_timeout = args.no_extend_timeout;
    request.timeout_ms = args.timeout.map(Millis::get);
    request.limits = limits;
    let mut purpose = Purpose::Exec;
    if args.detach {
        purpose = Purpose::Detach;
        request.stdin = false;
        request.kill_on_detach = false;
    }
    let stream = daemon
        .ask(async |client| client.exec(&args.sandbox, &request).await)
        .await?;
    session::drive(stream, purpose, &request, false, output).await
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use crate::cli::{Cli, Command};

    fn typed(line: &str) -> Result<(String, Vec<String>), clap::Error> {
        match Cli::try_parse_from(line.split(' '))?.command {
            Command::Exec(args) => Ok((args.sandbox, args.words)),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_follows_the_sandbox_is_the_command() {
        for line in [
            "kiln exec a ls -l",
            "kiln exec a -- ls -l",
            "kiln exec -i a ls -l",
        ] {
            let (sandbox, argv) = typed(line).unwrap();
            assert_eq!(
                (sandbox.as_str(), argv.join(" ").as_str()),
                ("a", "ls -l"),
                "{line}"
            );
        }
        for line in ["kiln exec", "kiln exec --bogus a ls", "kiln exec a --bogus"] {
            assert!(typed(line).is_err(), "{line}");
        }
    }
}
