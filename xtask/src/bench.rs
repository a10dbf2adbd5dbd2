//! placeholder
use std::process::ExitCode;
#[derive(Debug, clap::Args)]
pub(crate) struct Options {}
pub(crate) fn run(_: &Options) -> Result<ExitCode, std::io::Error> {
    Ok(ExitCode::SUCCESS)
}
