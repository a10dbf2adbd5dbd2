//! An engine for tests: scripted, with a real process and no guest.
//!
//! Every machine is a real child process (`sleep infinity`, or a [`Program`] such as an agent in
//! host mode), so that identities, exits, adoption and clean-up are the real ones. What it
//! answers is scripted per [`Step`]: succeed, fail, stall until released, or die.
//!
//! ```
//! # async fn example() {
//! use kiln_vmm::fake::{FakeEngine, Plan, Step};
//!
//! let engine = FakeEngine::new();
//! engine.plan(Step::Boot, Plan::Fail);
//! // … the code under test spawns and boots a machine on `engine`; the boot fails once …
//! assert_eq!(engine.calls(), []);
//! # }
//! ```

mod machine;
mod script;

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use tokio::io::unix::AsyncFd;

use self::machine::FakeMachine;
pub use self::script::{Call, Gate, Plan, Step};
use self::script::{Outcome, Script};
use crate::console::ConsoleLog;
use crate::error::{AdoptError, SpawnError};
use crate::instance::{Instance, MadeFiles, RuntimeFiles};
use crate::machine::{
    Acceleration, AgentEndpoint, Capabilities, Engine, EngineKind, Machine, MachineRecord,
    MachineShape, MachineSpec, MachineState,
};
use crate::output::{Sink, drain_fifo, make_fifo, open_fifo};
use crate::process::{TakeOverError, VmmCommand, VmmProcess};
use crate::readable_fd::readable_fd;
use crate::snapshot::{HostFacts, checked};
use crate::validate::{EngineLimits, check};

const AGENT_SOCKET: &str = "agent.sock";
const CONSOLE_FIFO: &str = "con.out";
/// What it says of itself.
const VERSION: &str = "0.0.0";
/// Of its snapshots.
const FORMAT: &str = "fake";

/// Made while the machine is booted: what an adopter asks for.
const BOOTED: &str = "booted";
/// Everything that a machine has in its runtime directory.
pub(crate) const FILES: &[&str] = &[AGENT_SOCKET, CONSOLE_FIFO, BOOTED];
/// As Firecracker's, so that a spec that fits here fits there.
const MAX_DISKS: usize = 12;
const MAX_NICS: usize = 2;

/// A program that stands for the VMM.
#[derive(Clone, Debug)]
pub struct Program {
    /// Its path.
    pub path: PathBuf,
    /// Its arguments; `{runtime_dir}` stands for the machine's runtime directory.
    pub args: Vec<String>,
}

/// Which side listens for the agent, at `agent.sock` in the runtime directory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AgentSide {
    /// The program listens, as QEMU does.
    #[default]
    Program,
    /// The host listens, as with Firecracker.
    Host,
}

/// The scripted engine. Clones share script and record.
#[derive(Clone, Debug)]
pub struct FakeEngine {
    script: Arc<Script>,
    program: Program,
    agent_side: AgentSide,
    capabilities: Capabilities,
    host: HostFacts,
}

impl Default for FakeEngine {
    fn default() -> Self {
        Self::new()
    }
}

impl FakeEngine {
    /// An engine whose every step succeeds, with machines that sleep.
    #[must_use]
    pub fn new() -> Self {
        Self {
            script: Arc::default(),
            program: Program {
                path: "/bin/sleep".into(),
                args: vec!["infinity".into()],
            },
            agent_side: AgentSide::default(),
            host: HostFacts::here(VERSION, FORMAT.to_owned(), None),
            capabilities: Capabilities {
                version: VERSION.to_owned(),
                acceleration: Acceleration::Kvm,
                pause: true,
                ctrl_alt_del: true,
                max_disks: MAX_DISKS,
                max_nics: MAX_NICS,
                nic_limits: true,
                metadata: false,
                memory_hotplug: false,
                diff_snapshots: false,
            },
        }
    }

    /// Machines run `program`. What it prints is their console.
    #[must_use]
    pub fn with_program(mut self, program: Program, agent_side: AgentSide) -> Self {
        self.program = program;
        self.agent_side = agent_side;
        self
    }

    /// Other capabilities than everything.
    #[must_use]
    pub fn with_capabilities(mut self, capabilities: Capabilities) -> Self {
        self.capabilities = capabilities;
        self
    }

    /// Another host, as far as snapshots can tell.
    #[must_use]
    pub fn with_host_facts(mut self, host: HostFacts) -> Self {
        self.host = host;
        self
    }

    /// What the next call of `step` does that nothing is planned for yet.
    pub fn plan(&self, step: Step, plan: Plan) {
        self.script.plan(step, plan);
    }

    /// Every call so far, in the order in which they arrived.
    #[must_use]
    pub fn calls(&self) -> Vec<Call> {
        self.script.calls()
    }

    fn command(&self, spec: &MachineSpec, output: OwnedFd) -> std::io::Result<VmmCommand> {
        let mut command = VmmCommand::new(self.program.path.clone(), output.try_clone()?, output);
        let dir = spec.runtime_dir.to_string_lossy();
        command.args(
            self.program
                .args
                .iter()
                .map(|arg| arg.replace("{runtime_dir}", &dir)),
        );
        Ok(command)
    }

    fn agent_endpoint(&self, files: &RuntimeFiles) -> AgentEndpoint {
        let path = files.path(AGENT_SOCKET);
        match self.agent_side {
            AgentSide::Program => AgentEndpoint::Connect(path),
            AgentSide::Host => AgentEndpoint::Listen(path),
        }
    }

    fn failed(&self) -> SpawnError {
        SpawnError::Program {
            program: self.program.path.clone(),
            source: std::io::Error::other("scripted failure"),
        }
    }
}

#[async_trait]
impl Engine for FakeEngine {
    fn kind(&self) -> EngineKind {
        EngineKind::Fake
    }

    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    fn host_facts(&self) -> &HostFacts {
        &self.host
    }

    // Nothing is kept of one.
    fn forget_snapshot(&self, _dir: &Path) {}

    async fn spawn(&self, spec: &MachineSpec) -> Result<Box<dyn Machine>, SpawnError> {
        let begin = Instant::now();
        let limits = EngineLimits {
            max_disks: MAX_DISKS,
            max_nics: MAX_NICS,
            limits_nics: true,
            sockets: &[AGENT_SOCKET],
            socket_dir: None,
            confines: false,
            own_args: String::new(),
        };
        check(spec, &limits).map_err(SpawnError::Invalid)?;
        if let Some(restore) = &spec.restore {
            // It makes no jails.
            let unjailed = MachineSpec {
                jail: None,
                ..spec.clone()
            };
            checked(&unjailed, restore, EngineKind::Fake, &self.host)?;
        }
        let outcome = self.script.act(&spec.id, Step::Spawn).await;
        if outcome == Outcome::Fail {
            return Err(self.failed());
        }
        let files = RuntimeFiles::new(&spec.runtime_dir, FILES);
        let mut made = MadeFiles::default();
        let path = files.path(CONSOLE_FIFO);
        let output = made.make(path.clone(), make_fifo)?;
        let prepared = |source| SpawnError::Runtime {
            path: path.clone(),
            source,
        };
        let reader = open_reader(&files).map_err(prepared)?;
        let console = ConsoleLog::open(&spec.console_log).map_err(prepared)?;
        let command = self.command(spec, output).map_err(prepared)?;
        let process = VmmProcess::spawn(command)
            .await
            .map_err(|source| SpawnError::Program {
                program: self.program.path.clone(),
                source,
            })?;
        made.keep();

        let record = MachineRecord {
            id: spec.id.clone(),
            engine: EngineKind::Fake,
            process: process.identity().clone(),
            runtime_dir: spec.runtime_dir.clone(),
            console_log: spec.console_log.clone(),
            jail: None,
            allow_insecure: true,
            shape: MachineShape::of(spec),
        };
        let instance = Instance::new(record, process, console, MachineState::Spawned);
        drain(&instance, reader);
        if outcome == Outcome::Die {
            // Succeeds, like a VMM that dies right behind its exec.
            let _ = instance.process().end(Duration::ZERO).await;
        }
        let agent = spec.agent.then(|| self.agent_endpoint(&files));
        let spawned = begin.elapsed();
        Ok(Box::new(FakeMachine::new(
            instance,
            files,
            agent,
            (Arc::clone(&self.script), self.host.clone()),
            spawned,
        )))
    }

    async fn adopt(&self, record: &MachineRecord) -> Result<Box<dyn Machine>, AdoptError> {
        let unresponsive = |source| AdoptError::Unresponsive {
            id: record.id.clone(),
            source,
        };
        if record.engine != EngineKind::Fake {
            return Err(AdoptError::OtherEngine {
                id: record.id.clone(),
                engine: record.engine,
            });
        }
        let outcome = self.script.act(&record.id, Step::Adopt).await;
        let process = VmmProcess::take_over(&record.process).map_err(|error| match error {
            TakeOverError::Gone => AdoptError::Gone {
                id: record.id.clone(),
            },
            TakeOverError::Unknown(source) => unresponsive(source),
        })?;
        match outcome {
            Outcome::Succeed => {}
            Outcome::Fail => return Err(unresponsive(std::io::Error::other("scripted failure"))),
            Outcome::Die => {
                process.end(Duration::ZERO).await.map_err(unresponsive)?;
                return Err(AdoptError::Gone {
                    id: record.id.clone(),
                });
            }
        }
        let files = RuntimeFiles::new(&record.runtime_dir, FILES);
        let state = if files.path(BOOTED).exists() {
            MachineState::Running
        } else {
            MachineState::Spawned
        };
        let console = ConsoleLog::open(&record.console_log).map_err(unresponsive)?;
        let instance = Instance::new(record.clone(), process, console, state);
        drain(&instance, open_reader(&files).map_err(unresponsive)?);
        let agent = Some(self.agent_endpoint(&files));
        let script = (Arc::clone(&self.script), self.host.clone());
        Ok(Box::new(FakeMachine::new(
            instance,
            files,
            agent,
            script,
            Duration::ZERO,
        )))
    }
}

fn open_reader(files: &RuntimeFiles) -> std::io::Result<AsyncFd<OwnedFd>> {
    let fifo = open_fifo(&files.path(CONSOLE_FIFO))?;
    readable_fd(fifo)
}

fn drain(instance: &Instance, fifo: AsyncFd<OwnedFd>) {
    let sink = Sink::Console(instance.console().clone());
    instance.drain(drain_fifo(fifo, instance.process().clone(), sink));
}

/// Where a machine notes that it was booted.
fn booted_mark(files: &RuntimeFiles) -> impl AsRef<Path> {
    files.path(BOOTED)
}

#[cfg(test)]
mod tests;
