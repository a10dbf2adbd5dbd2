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

/// The smallest file that passes as a kernel: an ELF header and one loadable segment.
#[must_use]
pub fn kernel() -> Vec<u8> {
    const EHDR: usize = 64;
    const PHDR: usize = 56;
    let machine: u16 = if cfg!(target_arch = "aarch64") {
        183
    } else {
        62
    };
    let mut file = vec![0; EHDR + PHDR];
    file[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
    file[16..18].copy_from_slice(&2_u16.to_le_bytes());
    file[18..20].copy_from_slice(&machine.to_le_bytes());
    file[32..40].copy_from_slice(&(EHDR as u64).to_le_bytes());
    file[54..56].copy_from_slice(&(PHDR as u16).to_le_bytes());
    file[56..58].copy_from_slice(&1_u16.to_le_bytes());
    file[EHDR..EHDR + 4].copy_from_slice(&1_u32.to_le_bytes());
    let size = (EHDR + PHDR) as u64;
    file[EHDR + 32..EHDR + 40].copy_from_slice(&size.to_le_bytes());
    file
}
