//! `cargo xtask setup`: installs the programs that a chore needs and this machine lacks.
//!
//! Owns the table of programs and when apt is called. It never touches what is already there.

mod apt;
mod table;

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};

use crate::step;
use apt::{Apt, AptError};
use table::{TOOLS, Tool};

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// What the machine is to be ready for.
    #[arg(long = "for", value_enum)]
    purpose: Purpose,
}

/// What a machine can be made ready for; each one includes `demo`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Purpose {
    /// Boot a microVM and run a command in it.
    Demo,
    /// Run all tests.
    Test,
    /// Run a command in the lab machine.
    Lab,
    /// Measure.
    Bench,
}

/// Why a machine could not be made ready.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SetupError {
    #[error("{} missing and not to be installed from here", .missing.join(", "))]
    Install {
        missing: Vec<String>,
        #[source]
        source: AptError,
    },
}

pub(crate) fn run(options: &Options) -> Result<(), SetupError> {
    ensure(options.purpose)
}

/// Makes this machine ready for a purpose.
pub(crate) fn ensure(purpose: Purpose) -> Result<(), SetupError> {
    ensure_on(&Machine::this(), purpose)
}

/// What set-up looks at and calls on a machine; tests make one of their own.
#[derive(Debug)]
struct Machine {
    program_dirs: Vec<PathBuf>,
    root: PathBuf,
    apt: Apt,
}

impl Machine {
    fn this() -> Self {
        let program_dirs = step::program_dirs();
        let apt = Apt::of_this_machine(&program_dirs);
        Self {
            program_dirs,
            root: PathBuf::from("/"),
            apt,
        }
    }

    fn has(&self, tool: &Tool) -> bool {
        match tool.probe {
            table::Probe::Program(name) => step::find_program(name, &self.program_dirs).is_some(),
            table::Probe::File(path) => self.root.join(path).exists(),
        }
    }
}

fn ensure_on(machine: &Machine, purpose: Purpose) -> Result<(), SetupError> {
    let missing: Vec<&Tool> = TOOLS
        .iter()
        .filter(|tool| tool.serves(purpose) && !machine.has(tool))
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    for tool in &missing {
        eprintln!(
            "setup: {} is missing: {} (package {})",
            tool.name, tool.why, tool.package
        );
    }
    let mut packages: Vec<&str> = missing.iter().map(|tool| tool.package).collect();
    packages.sort_unstable();
    packages.dedup();
    machine
        .apt
        .install(&packages)
        .map_err(|source| SetupError::Install {
            missing: missing.iter().map(|tool| tool.name.to_owned()).collect(),
            source,
        })
}

/// Package lists older than this are fetched again before an install.
const LISTS_STALE_AFTER: Duration = Duration::from_secs(7 * 24 * 60 * 60);

#[cfg(test)]
mod tests;
