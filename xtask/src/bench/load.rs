//! `cargo xtask bench load`: many clients with real guests, and a host with many sandboxes.

mod guests;
mod records;

use std::process::ExitCode;

use clap::Args;

use super::report::Report;
use crate::kiln::{self, Kiln, KilnError};
use crate::namespace::Namespace;
use crate::setup::{self, Purpose, SetupError};
use crate::step::{self, StepError};
use crate::traces::TracesError;
use crate::workspace;

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Print one flat JSON object instead of a table.
    #[arg(long)]
    json: bool,
    /// How many real sandboxes live and end.
    #[arg(long, default_value_t = 50, value_name = "N")]
    sandboxes: usize,
    /// How many clients make them.
    #[arg(long, default_value_t = 16, value_name = "N")]
    clients: usize,
    /// How many sandboxes without guests are held at once.
    #[arg(long, default_value_t = 1000, value_name = "N")]
    records: usize,
}

/// Why there are no figures.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LoadError {
    #[error(transparent)]
    Setup(#[from] SetupError),
    #[error(transparent)]
    Build(#[from] StepError),
    #[error(transparent)]
    Kiln(#[from] KilnError),
    #[error(transparent)]
    Traces(#[from] TracesError),
    #[error("cannot work in the target directory")]
    Directory(#[source] std::io::Error),
    #[error("the samples cannot be read")]
    Samples(#[source] serde_json::Error),
}

pub(crate) fn run(options: &Options) -> Result<ExitCode, LoadError> {
    setup::ensure(Purpose::Bench)?;
    let mut report = Report::default();
    if options.records > 0 {
        step::run(&mut step::cargo(records::BUILD))?;
        records::run(options.records, &mut report)?;
    }
    if options.sandboxes > 0 {
        kiln::build()?;
        real_guests(options, &mut report)?;
    }
    report.show(options.json);
    Ok(ExitCode::SUCCESS)
}

fn real_guests(options: &Options, report: &mut Report) -> Result<(), LoadError> {
    let mut kiln = Kiln::with_data_dir(workspace::target().join("bench"))?;
    match Namespace::new("load") {
        Ok(namespace) => kiln = kiln.networked(namespace),
        Err(error) => report.missing("guest_networks", error.to_string()),
    }
    guests::run(&kiln, options.sandboxes, options.clients, report)?;
    Ok(kiln.close()?)
}
