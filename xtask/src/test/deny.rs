//! `cargo deny`: found on the machine or built once under the target directory.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::step::{self, StepError};
use crate::workspace;

/// Checks licences, bans, sources and advisories; returns what could not be checked and why.
pub(super) fn check() -> Result<Vec<String>, StepError> {
    let Some(cargo_deny) = found().or_else(built) else {
        return Ok(vec![
            "cargo deny: it is not installed and could not be built".to_owned(),
        ]);
    };
    step::run(deny(&cargo_deny).args(["check", "bans", "licenses", "sources"]))?;
    Ok(advisories(&cargo_deny)?.into_iter().collect())
}

/// The advisories lie in a git repository that not every machine can reach.
fn advisories(cargo_deny: &Path) -> Result<Option<String>, StepError> {
    let mut command = deny(cargo_deny);
    command.args(["check", "advisories"]);
    match step::capture(&mut command) {
        Ok(_) => Ok(None),
        Err(StepError::Failed { output, .. }) if output.contains("failed to fetch advisory") => Ok(
            Some("cargo deny advisories: their database cannot be reached from here".to_owned()),
        ),
        Err(error) => Err(error),
    }
}

/// Warnings (duplicates that are not ours to mend) stay out of the way; errors are shown.
fn deny(cargo_deny: &Path) -> Command {
    let mut command = Command::new(cargo_deny);
    command
        .current_dir(workspace::root())
        .args(["--log-level", "error"]);
    command
}

fn tools() -> PathBuf {
    workspace::target().join("tools")
}

fn found() -> Option<PathBuf> {
    let mut dirs = step::program_dirs();
    dirs.push(tools().join("bin"));
    step::find_program("cargo-deny", &dirs)
}

/// Builds it without optimisation: a minute instead of five, and it runs for two seconds.
fn built() -> Option<PathBuf> {
    let mut install = step::cargo([
        "install",
        "cargo-deny",
        "--locked",
        "--debug",
        "--quiet",
        "--root",
    ]);
    install
        .arg(tools())
        .env("CARGO_TARGET_DIR", tools().join("build"));
    let outcome = step::run(&mut install);
    // The build takes a gigabyte; the program is all that is wanted of it.
    let _ = std::fs::remove_dir_all(tools().join("build"));
    match outcome {
        Ok(()) => found(),
        Err(error) => {
            eprintln!("cargo deny: {error}");
            None
        }
    }
}
