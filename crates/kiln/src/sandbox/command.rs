//! The command that runs in a sandbox from every start on.

use kiln_image::oci::ImageConfig;
use serde::{Deserialize, Serialize};

use super::InitSystem;
use super::driver::Live;
use crate::error::Error;
use crate::exec::ExecSpec;
use crate::process;
use crate::store::SandboxRow;

/// A sandbox's main command: the image's own, or what takes its place.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MainCommand {
    /// Runs instead of the image's entrypoint; an empty one takes it away.
    pub entrypoint: Option<Vec<String>>,
    /// Its words instead of the image's own when there are any, and how it runs. It outlives every
    /// client, so what is said here about detaching does not count.
    pub exec: ExecSpec,
}

/// Runs the main command of a sandbox that has one, in a guest that is up; the number of its
/// session. Nobody is attached to it: its last output is kept in the guest.
pub(super) async fn run(row: &SandboxRow, live: &Live) -> Result<Option<u64>, Error> {
    let Some(main) = &row.spec.command else {
        return Ok(None);
    };
    let config = row.image_config.as_ref();
    let words = process::main_command(
        own_command(row),
        main.entrypoint.as_deref(),
        &main.exec.argv,
    );
    let Some(argv) = words else {
        return Ok(None);
    };
    let wanted = ExecSpec {
        argv,
        kill_on_detach: false,
        main: true,
        ..main.exec.clone()
    };
    let completed = process::complete(config, &wanted)?;
    Ok(Some(live.link.exec_completed(&completed).await?.id))
}

/// What says how the image is run. One that brings its own init says with its command how to start
/// that, which nobody needs to be told.
pub(crate) fn own_command(row: &SandboxRow) -> Option<&ImageConfig> {
    let config = row.image_config.as_ref();
    config.filter(|_| row.spec.init == InitSystem::Kiln)
}
