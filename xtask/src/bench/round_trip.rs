//! A command by way of the API, as a program has it that runs on: `kiln exec` would count its own
//! start, too.
//!
//! The samples come from `crates/kiln-api/examples/exec_round_trip.rs`: xtask builds without the
//! library (decision 0001).

use std::path::{Path, PathBuf};
use std::process::Command;

use super::raw_fork::PAUSE;
use crate::step::{self, StepError};
use crate::workspace;

/// Each time the program is started; the median forgives the first, which is cold.
const COUNT: u32 = 3;

/// Builds the program.
pub(super) fn build() -> Result<PathBuf, StepError> {
    step::run(&mut step::cargo([
        "build",
        "--release",
        "--locked",
        "--quiet",
        "-p",
        "kiln-api",
        "--example",
        "exec_round_trip",
    ]))?;
    Ok(workspace::target().join("release/examples/exec_round_trip"))
}

/// The command that prints a microsecond number per round trip.
pub(super) fn command(built: &Path, socket: &Path, sandbox: &str, program: &str) -> Command {
    let mut command = Command::new(built);
    command
        .arg(socket)
        .args([sandbox, &COUNT.to_string(), &PAUSE.as_millis().to_string()])
        .arg(program);
    command
}
