//! `cargo xtask deps`: holds the drawing in `docs/architecture.md` against the real dependencies.
//!
//! Owns the table of arrows and the rules on outside crates; reads `cargo metadata`, changes
//! nothing. Licences and advisories are `cargo deny`'s matter (`deny.toml`).

mod graph;
mod rules;

pub(crate) use graph::Metadata;
use rules::violations;

use crate::step::{self, StepError};

/// Why the dependencies could not be approved.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DepsError {
    #[error(transparent)]
    Metadata(#[from] StepError),
    #[error("cargo's metadata cannot be read")]
    Parse(#[from] serde_json::Error),
    #[error("{} rule(s) on dependencies broken:\n{}", .0.len(), .0.join("\n"))]
    Broken(Vec<String>),
}

/// Checks this workspace.
pub(crate) fn run() -> Result<(), DepsError> {
    let metadata = metadata()?;
    let broken = violations(&metadata);
    if !broken.is_empty() {
        return Err(DepsError::Broken(broken));
    }
    println!(
        "deps: the arrows between {} crates hold",
        metadata.members().count()
    );
    Ok(())
}

/// What cargo knows of this workspace, on the platform that Kiln runs on.
pub(crate) fn metadata() -> Result<Metadata, DepsError> {
    let json = step::capture(&mut step::cargo([
        "metadata",
        "--format-version=1",
        "--filter-platform=x86_64-unknown-linux-gnu",
    ]))?;
    Ok(serde_json::from_slice(&json)?)
}
