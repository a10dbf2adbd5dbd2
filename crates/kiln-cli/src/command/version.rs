//! `kiln version`.

use clap::Args;
use kiln_api::Version;
use serde::Serialize;

use super::shared::is_not_running;
use crate::{Failure, Output, start::Daemon};

/// Print the versions of this program and of the daemon, if one runs
#[derive(Debug, Args)]
pub(crate) struct VersionArgs {}

#[derive(Debug, Serialize)]
struct Versions {
    version: &'static str,
    daemon: Option<Version>,
}

pub(crate) async fn run(
    _: &VersionArgs,
    daemon: &Daemon<'_>,
    output: &Output,
) -> Result<u8, Failure> {
    let running = match daemon.client.version().await {
        Ok(version) => Some(version),
        Err(error) if is_not_running(&error) => None,
        Err(error) => return Err(error.into()),
    };
    output.line(&format!("kiln {}", kiln_daemon::VERSION));
    output.line(&match &running {
        Some(it) => format!("daemon {} (process {})", it.version, it.pid),
        None => "daemon not running".to_owned(),
    });
    output.object(&Versions {
        version: kiln_daemon::VERSION,
        daemon: running,
    });
    Ok(0)
}
