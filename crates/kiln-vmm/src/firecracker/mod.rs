//! Firecracker, driven through its API socket.
//!
//! The guest's console is Firecracker's standard output; its own log goes with its standard error
//! to another FIFO, so that the two never mix.

pub mod api;
pub mod config;
mod machine;
mod ready;

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use tokio::io::unix::AsyncFd;

use self::machine::FirecrackerMachine;
use self::ready::SocketWatch;
use crate::console::ConsoleLog;
use crate::error::{AdoptError, SpawnError};
use crate::instance::{Instance, MadeFiles, RuntimeFiles};
use crate::machine::{
    Acceleration, Capabilities, Engine, EngineKind, Machine, MachineRecord, MachineSpec,
    MachineState,
};
use crate::output::{Sink, drain_fifo, make_fifo, open_fifo};
use crate::process::{TakeOverError, VmmCommand, VmmProcess};
use crate::program::{ProgramError, version};
use crate::readable_fd::readable_fd;
use crate::validate::{EngineLimits, check};

const API_SOCKET: &str = "api.sock";
const VSOCK_SOCKET: &str = "v.sock";
/// [`VSOCK_SOCKET`] followed by the agent's port ([`AGENT_PORT`](crate::AGENT_PORT)).
const AGENT_SOCKET: &str = "v.sock_5556";
const CONSOLE_FIFO: &str = "con.out";
const OUTPUT_FIFO: &str = "vmm.out";
/// Everything that a machine has in its runtime directory.
pub(crate) const FILES: &[&str] = &[
    API_SOCKET,
    VSOCK_SOCKET,
    AGENT_SOCKET,
    CONSOLE_FIFO,
    OUTPUT_FIFO,
];
const SOCKETS: &[&str] = &[API_SOCKET, VSOCK_SOCKET, AGENT_SOCKET];

/// Of about 17 virtio devices, what vsock, entropy and later devices leave.
const MAX_DISKS: usize = 12;

/// Triple-fault-free reboot through the keyboard controller, which Firecracker takes for the end;
/// the three `i8042` words spare the probing of what is not there and keep Ctrl-Alt-Del working
/// (`i8042.nokbd` or `nopnp` would not).
const KERNEL_ARGS: &str = "console=ttyS0 quiet reboot=k panic=-1 cryptomgr.notests \
                           i8042.noaux i8042.nomux i8042.dumbkbd";

/// How long Firecracker may take for a call that only configures. A dead one is noticed at once,
/// so this is for one that hangs; a loaded machine gets its time.
const CONFIGURE: Duration = Duration::from_secs(20);
/// How long it may take to start, pause or resume the guest.
const CHANGE: Duration = Duration::from_secs(60);

/// Firecracker on this host.
#[derive(Debug)]
pub struct FirecrackerEngine {
    program: PathBuf,
    capabilities: Capabilities,
}

impl FirecrackerEngine {
    /// The Firecracker at `program`; whether KVM runs guests is not asked here.
    ///
    /// # Errors
    /// The program is missing or no Firecracker.
    pub async fn open(program: &Path) -> Result<Self, ProgramError> {
        Ok(Self {
            program: program.to_owned(),
            capabilities: Capabilities {
                version: version(program, "Firecracker v").await?,
                acceleration: Acceleration::Kvm,
                pause: true,
                ctrl_alt_del: cfg!(target_arch = "x86_64"),
                max_disks: MAX_DISKS,
            },
        })
    }

    fn command(&self, spec: &MachineSpec, files: &RuntimeFiles, output: Output) -> VmmCommand {
        let mut command = VmmCommand::new(self.program.clone(), output.console, output.own);
        command
            .args(["--id", &spec.id])
            // Request bodies are logged at the level below: kernel arguments stay out of it.
            .args(["--level", "Warning"])
            .args(["--log-path".into(), files.path(OUTPUT_FIFO)])
            .args(["--api-sock".into(), files.path(API_SOCKET)]);
        command
    }
}

#[async_trait]
impl Engine for FirecrackerEngine {
    fn kind(&self) -> EngineKind {
        EngineKind::Firecracker
    }

    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    async fn spawn(&self, spec: &MachineSpec) -> Result<Box<dyn Machine>, SpawnError> {
        let begin = Instant::now();
        let limits = EngineLimits {
            max_disks: MAX_DISKS,
            sockets: SOCKETS,
            own_args: KERNEL_ARGS.to_owned(),
        };
        check(spec, &limits).map_err(SpawnError::Invalid)?;
        let files = RuntimeFiles::new(&spec.runtime_dir, FILES);
        let mut made = MadeFiles::default();
        let output = Output::make(&files, &mut made)?;
        let readers = Readers::open(&files).map_err(|source| SpawnError::Runtime {
            path: spec.runtime_dir.clone(),
            source,
        })?;
        let socket = files.path(API_SOCKET);
        let ready = SocketWatch::new(socket.clone()).map_err(|source| SpawnError::Runtime {
            path: socket,
            source,
        })?;
        let console = ConsoleLog::open(&spec.console_log).map_err(|source| {
            let path = spec.console_log.clone();
            SpawnError::Runtime { path, source }
        })?;

        let process = VmmProcess::spawn(self.command(spec, &files, output))
            .await
            .map_err(|source| SpawnError::Program {
                program: self.program.clone(),
                source,
            })?;
        made.keep();

        let record = MachineRecord {
            id: spec.id.clone(),
            engine: EngineKind::Firecracker,
            process: process.identity().clone(),
            runtime_dir: spec.runtime_dir.clone(),
            console_log: spec.console_log.clone(),
        };
        let instance = Instance::new(record, process, console, MachineState::Spawned);
        readers.drain_into(&instance);
        let spawned = begin.elapsed();
        Ok(Box::new(FirecrackerMachine::spawned(
            instance,
            files,
            spec.clone(),
            ready,
            spawned,
        )))
    }

    async fn adopt(&self, record: &MachineRecord) -> Result<Box<dyn Machine>, AdoptError> {
        if record.engine != EngineKind::Firecracker {
            return Err(AdoptError::OtherEngine {
                id: record.id.clone(),
                engine: record.engine,
            });
        }
        let process = VmmProcess::take_over(&record.process).map_err(|error| match error {
            TakeOverError::Gone => AdoptError::Gone {
                id: record.id.clone(),
            },
            TakeOverError::Unknown(source) => unresponsive(record, source),
        })?;
        let files = RuntimeFiles::new(&record.runtime_dir, FILES);
        let console =
            ConsoleLog::open(&record.console_log).map_err(|error| unresponsive(record, error))?;
        let instance = Instance::new(record.clone(), process, console, MachineState::Running);
        // A machine whose output cannot be drained still runs, and its guest loses nothing.
        if let Ok(readers) = Readers::open(&files) {
            readers.drain_into(&instance);
        }
        FirecrackerMachine::adopted(instance, files)
            .await
            .map(|machine| Box::new(machine) as Box<dyn Machine>)
            .map_err(|source| unresponsive(record, source))
    }
}

fn unresponsive(record: &MachineRecord, source: std::io::Error) -> AdoptError {
    AdoptError::Unresponsive {
        id: record.id.clone(),
        source,
    }
}

/// Firecracker's ends of the two FIFOs.
struct Output {
    console: OwnedFd,
    own: OwnedFd,
}

impl Output {
    fn make(files: &RuntimeFiles, made: &mut MadeFiles) -> Result<Self, SpawnError> {
        Ok(Self {
            console: made.make(files.path(CONSOLE_FIFO), make_fifo)?,
            own: made.make(files.path(OUTPUT_FIFO), make_fifo)?,
        })
    }
}

/// This side's ends.
struct Readers {
    console: AsyncFd<OwnedFd>,
    own: AsyncFd<OwnedFd>,
}

impl Readers {
    fn open(files: &RuntimeFiles) -> std::io::Result<Self> {
        let reader = |name| open_fifo(&files.path(name)).and_then(readable_fd);
        Ok(Self {
            console: reader(CONSOLE_FIFO)?,
            own: reader(OUTPUT_FIFO)?,
        })
    }

    fn drain_into(self, instance: &Instance) {
        let process = instance.process();
        let console = Sink::Console(instance.console().clone());
        instance.drain(drain_fifo(self.console, process.clone(), console));
        let own = Sink::Output(instance.output().clone());
        instance.drain(drain_fifo(self.own, process.clone(), own));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_agents_socket_is_named_after_its_port() {
        assert_eq!(
            AGENT_SOCKET,
            format!("{VSOCK_SOCKET}_{}", crate::AGENT_PORT)
        );
    }
}
