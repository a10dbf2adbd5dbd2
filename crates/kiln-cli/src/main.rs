//! The `kiln` command line: a client of the daemon, and, as `kiln daemon`, the daemon itself.
//!
//! Owns arguments, terminals, what is printed, and exit codes. Everything else is the daemon's.

mod cli;
mod command;
mod copy;
mod failure;
mod output;
mod place;
mod session;
mod start;

use std::process::ExitCode;

use cli::Cli;
use failure::Failure;
use output::Output;

fn main() -> ExitCode {
    let typed: Vec<_> = std::env::args_os().collect();
    let cli = match Cli::parse_words(typed.clone()) {
        Ok(cli) => cli,
        Err(error) => return cli::refuse(&error, &typed),
    };
    let output = Output::new(cli.global.json, cli.global.verbose);
    match command::run(cli, &output) {
        Ok(code) => ExitCode::from(code),
        Err(failure) => {
            output.failure(&failure.report());
            ExitCode::from(failure.exit_code())
        }
    }
}
