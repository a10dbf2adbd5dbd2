//! What can be told of a sandbox.

use kiln_vmm::jail::Protection;
use kiln_vmm::{EngineKind, Machine};
use serde::{Deserialize, Serialize};

use super::driver::View;
use super::labels::Labels;
use super::restart::RestartPolicy;
use super::state::SandboxState;
use crate::exec::ExecExit;
use crate::store::SandboxRow;

/// A sandbox as its owner sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxInfo {
    /// 12 characters of `[a-z0-9]`.
    pub id: String,
    /// Its name, if it was given one.
    pub name: Option<String>,
    /// What its root filesystem was made from.
    pub image: String,
    /// Where it is in its life.
    pub state: SandboxState,
    /// Engine that runs it, or ran it last.
    pub engine: Option<EngineKind>,
    /// Virtual processors.
    pub vcpus: u8,
    /// Memory in MiB.
    pub mem_mib: u32,
    /// Scratch disk in MiB; 0 with `tmpfs`.
    pub disk_mib: u64,
    /// Whether the guest's writes live in its memory.
    pub tmpfs: bool,
    /// When it was created, in ms since 1970.
    pub created_at_ms: u64,
    /// When it last came up, in ms since 1970.
    pub started_at_ms: Option<u64>,
    /// Why it is stopped or in error.
    pub reason: Option<String>,
    /// Process number of its VMM on the host.
    pub pid: Option<u32>,
    /// What its owner should know: a slow engine, a missing protection.
    pub warnings: Vec<String>,
    /// Protections that a confined VMM has and this one lacks, in words, as the kernel tells them
    /// now; empty when all hold, or nothing runs.
    pub unprotected: Vec<String>,
    /// Protections that its owner wants it to run without, at every start.
    pub without: Vec<Protection>,
    /// How long its last start took.
    pub timings: Option<Timings>,
    /// Words of its owner's.
    pub labels: Labels,
    /// The project that it belongs to.
    pub project: Option<String>,
    /// When it is stopped, in ms since 1970.
    pub expires_at_ms: Option<u64>,
    /// The time-out that it has at every start.
    pub timeout_ms: Option<u64>,
    /// After how long without use it is stopped.
    pub idle_timeout_ms: Option<u64>,
    /// Whether it goes when it stops.
    pub remove_on_stop: bool,
    /// Whether it is started again when its machine or its main command ends by itself.
    pub restart: RestartPolicy,
    /// How often that happened, to its machine or to its main command.
    pub restarts: u32,
    /// Number of the session of its main command, when that was started with it.
    pub main_session: Option<u64>,
    /// How its main command ended, the last time that it did since the sandbox came up.
    pub main_exit: Option<ExecExit>,
    /// Id of the snapshot that its first start began from, or will.
    pub snapshot: Option<String>,
}

impl From<&SandboxRow> for SandboxInfo {
    fn from(row: &SandboxRow) -> Self {
        Self {
            id: row.id.clone(),
            name: row.spec.name.clone(),
            image: row.image.clone(),
            state: row.state,
            engine: row.engine,
            vcpus: row.spec.vcpus,
            mem_mib: row.spec.mem_mib,
            disk_mib: if row.spec.tmpfs { 0 } else { row.spec.disk_mib },
            tmpfs: row.spec.tmpfs,
            created_at_ms: row.created_at_ms,
            started_at_ms: row.started_at_ms,
            reason: row.reason.clone(),
            pid: row.machine.as_ref().map(|machine| machine.process.pid),
            warnings: row.warnings.clone(),
            unprotected: Vec::new(),
            without: row.spec.without.clone(),
            timings: row.timings,
            labels: row.spec.labels.clone(),
            project: row.spec.project.clone(),
            expires_at_ms: row.expires_at_ms,
            timeout_ms: row.spec.timeout_ms,
            idle_timeout_ms: row.spec.idle_timeout_ms,
            remove_on_stop: row.spec.remove_on_stop,
            restart: row.spec.restart,
            restarts: row.restarts,
            main_session: row.main_session,
            main_exit: row.main_exit,
            snapshot: row.spec.snapshot.clone(),
        }
    }
}

impl SandboxInfo {
    /// With what the kernel tells now of the machine that runs it.
    pub(crate) fn of(row: &SandboxRow, machine: Option<&dyn Machine>) -> Self {
        Self {
            unprotected: machine.map(unprotected).unwrap_or_default(),
            ..Self::from(row)
        }
    }
}

impl From<&View> for SandboxInfo {
    /// With what the kernel told of its machine when that came up: to ask takes a dozen files of
    /// each, and a list is of many.
    fn from(view: &View) -> Self {
        Self {
            unprotected: view.unprotected.to_vec(),
            ..Self::from(view.row.as_ref())
        }
    }
}

/// Protections around a machine that do not hold, in words.
pub(super) fn unprotected(machine: &dyn Machine) -> Vec<String> {
    let breaches = machine.confinement().map(|it| it.breaches());
    breaches.iter().flatten().map(ToString::to_string).collect()
}

/// How long the parts of a start took, in µs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timings {
    /// Image, kernel and scratch disk.
    pub prepare_us: u64,
    /// From the decision to spawn until the VMM process existed.
    pub vmm_spawn_us: u64,
    /// From then until the guest was told to run.
    pub configure_us: u64,
    /// From then until the agent's PID 1 began.
    pub kernel_us: u64,
    /// From then until the agent's session stood.
    pub agent_us: u64,
}

impl Timings {
    /// The whole start.
    #[must_use]
    pub fn total_us(&self) -> u64 {
        self.prepare_us + self.vmm_spawn_us + self.configure_us + self.kernel_us + self.agent_us
    }
}
