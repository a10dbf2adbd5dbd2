//! `kiln version`.

use clap::Args;
use kiln_api::Version;
use serde::{Deserialize, Serialize};

use super::shared::is_not_running;
use crate::{
    Failure, Output,
    output::format::{Show, listed},
    start::Daemon,
};

/// Print the versions of this program and of the daemon, if one runs
#[derive(Debug, Args)]
pub(crate) struct VersionArgs {
    #[command(flatten)]
    show: Show<Versions>,
}

/// Of this program and the daemon.
#[derive(Debug, Serialize, Deserialize)]
struct Versions {
    version: String,
    daemon: Option<Version>,
}

listed!(Versions);

pub(crate) async fn run(
    args: &VersionArgs,
    daemon: &Daemon<'_>,
    output: &Output,
) -> Result<u8, Failure> {
    let running = match daemon.client.version().await {
        Ok(version) => Some(version),
        Err(error) if is_not_running(&error) => None,
        Err(error) => return Err(error.into()),
    };
    let versions = Versions {
        version: kiln_daemon::VERSION.to_owned(),
        daemon: running,
    };
    args.show.one(&versions, output, || in_words(&versions));
    Ok(0)
}

fn in_words(versions: &Versions) -> String {
    let daemon = match &versions.daemon {
        Some(it) => format!("daemon {} (process {})", it.version, it.pid),
        None => "daemon not running".to_owned(),
    };
    format!("kiln {}\n{daemon}", versions.version)
}
