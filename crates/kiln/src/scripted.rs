//! A host whose machines are processes that answer as guests do: Kiln's agent, without a guest.
//!
//! For what measures everything but guests. Only in builds with the feature `scripted`.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;

use kiln_vmm::fake::{AgentSide, FakeEngine, Program};

use crate::agent::AGENT;
use crate::engines::Engines;
use crate::error::{Error, ErrorCode};
use crate::{Host, HostConfig};

/// Name of the agent's program in the directory of programs.
const PROGRAM: &str = "agent";

/// Opens a host as [`Host::open`] does, with scripted machines. Their program is put in `programs`.
///
/// # Errors
/// As [`Host::open`], and [`ErrorCode::Host`] when the program cannot be written.
pub async fn open(config: HostConfig, programs: &Path) -> Result<Host, Error> {
    config.check()?;
    let path = programs.join(PROGRAM);
    let written = fs::write(&path, AGENT)
        .and_then(|()| fs::set_permissions(&path, fs::Permissions::from_mode(0o755)));
    written.map_err(|source| {
        Error::new(ErrorCode::Host, "cannot write the scripted guests' program").with_source(source)
    })?;
    let program = Program {
        path,
        args: ["--connect-unix", "{runtime_dir}/agent.sock"]
            .map(str::to_owned)
            .into(),
    };
    let engine = FakeEngine::new().with_program(program, AgentSide::Host);
    let engines = Engines::only(Arc::new(engine), &config);
    Host::open_with(config, engines, Vec::new()).await
}
