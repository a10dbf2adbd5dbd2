//! The `kiln` command line: a client of the daemon, and, as `kiln daemon`, the daemon itself.
//!
//! Owns arguments, terminals, what is printed, and exit codes. Everything else is the daemon's.

mod cli;
mod command;
mod contradictions;
mod copy;
mod failure;
mod output;
mod place;
mod remote;
mod session;
mod start;

use std::process::ExitCode;

use cli::Cli;
use failure::{FAILED, Failure};
use kiln_api::ErrorReport;
use kiln_daemon::SERVE_PAGES;
use output::Output;

/// Started by the engine beside a machine, never typed: serves the memory of a snapshot page by
/// page. It is unprivileged, has no environment, and outlives the daemon.
fn serve_pages() -> ExitCode {
    match kiln_daemon::serve_pages() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let report = ErrorReport::new("UFFD_FAILED", failure::with_causes(&error));
            Output::new(false, false).failure(&report);
            ExitCode::from(FAILED)
        }
    }
}

fn main() -> ExitCode {
    let typed: Vec<_> = std::env::args_os().collect();
    if typed.get(1).is_some_and(|word| word == SERVE_PAGES) {
        return serve_pages();
    }
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
