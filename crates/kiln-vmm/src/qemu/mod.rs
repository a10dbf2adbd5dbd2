//! QEMU's `microvm` machine, driven through QMP.
//!
//! The sockets are bound here and inherited by QEMU, and the control and console connections are
//! made before QEMU runs: nothing has to be waited for, and no byte of the console is lost. When
//! nobody is connected to the console QEMU drops the output, so a dead daemon stalls no guest.
//!
//! Under TCG this engine is for hosts without usable KVM: slow, and not a security boundary.

mod args;
mod machine;
pub mod qmp;
mod tsc;

use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream as StdUnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use tokio::io::unix::AsyncFd;
use tokio::net::UnixStream;

use self::args::SocketFds;
use self::machine::QemuMachine;
use crate::console::ConsoleLog;
use crate::error::{AdoptError, SpawnError};
use crate::instance::{Instance, MadeFiles, RuntimeFiles};
use crate::machine::{
    Acceleration, Capabilities, Engine, EngineKind, Machine, MachineRecord, MachineSpec,
    MachineState,
};
use crate::output::{Sink, drain_fifo, drain_stream, make_fifo, open_fifo};
use crate::process::{TakeOverError, VmmCommand, VmmProcess};
use crate::program::{ProgramError, version};
use crate::readable_fd::readable_fd;
use crate::validate::{EngineLimits, check};

const QMP_SOCKET: &str = "qmp.sock";
const CONSOLE_SOCKET: &str = "con.sock";
const AGENT_SOCKET: &str = "agent.sock";
const OUTPUT_FIFO: &str = "vmm.out";
/// Everything that a machine has in its runtime directory.
pub(crate) const FILES: &[&str] = &[QMP_SOCKET, CONSOLE_SOCKET, AGENT_SOCKET, OUTPUT_FIFO];
const SOCKETS: &[&str] = &[QMP_SOCKET, CONSOLE_SOCKET, AGENT_SOCKET];

/// Of the 24 virtio-mmio slots, what the agent's channel, entropy and later devices leave.
const MAX_DISKS: usize = 16;

/// How long QEMU may take to answer. A dead QEMU is noticed at once, so this is for one that
/// hangs; a loaded machine gets its time.
const ANSWER: Duration = Duration::from_secs(30);

/// QEMU on this host.
#[derive(Debug)]
pub struct QemuEngine {
    program: PathBuf,
    capabilities: Capabilities,
    kernel_args: String,
}

impl QemuEngine {
    /// The QEMU at `program`, running guests by `acceleration`; whether that works is not asked
    /// here. What has to be measured once per boot of the host is kept in `cache_dir`.
    ///
    /// # Errors
    /// The program is missing or no QEMU.
    pub async fn open(
        program: &Path,
        acceleration: Acceleration,
        cache_dir: &Path,
    ) -> Result<Self, ProgramError> {
        let version = version(program, "QEMU emulator version ").await?;
        let tsc_khz = match acceleration {
            Acceleration::Kvm => None,
            Acceleration::Tcg => {
                let cache_dir = cache_dir.to_owned();
                // Sleeps while it measures. A runtime that shuts down needs no answer.
                tokio::task::spawn_blocking(move || tsc::khz(&cache_dir))
                    .await
                    .unwrap_or(None)
            }
        };
        Ok(Self {
            program: program.to_owned(),
            capabilities: Capabilities {
                version,
                acceleration,
                pause: true,
                // No keyboard controller, and the ACPI power button needs a listener in the guest.
                ctrl_alt_del: false,
                max_disks: MAX_DISKS,
            },
            kernel_args: args::kernel_args(acceleration, tsc_khz),
        })
    }

    fn limits(&self) -> EngineLimits {
        EngineLimits {
            max_disks: MAX_DISKS,
            sockets: SOCKETS,
            own_args: self.kernel_args.clone(),
        }
    }

    /// The whole command, with the descriptors that QEMU inherits.
    fn command(&self, spec: &MachineSpec, sockets: Listeners, output: Output) -> VmmCommand {
        let mut command = VmmCommand::new(self.program.clone(), output.stdout, output.stderr);
        let fds = SocketFds {
            qmp: command.inherit(sockets.qmp.into()),
            console: command.inherit(sockets.console.into()),
            agent: sockets.agent.map(|agent| command.inherit(agent.into())),
        };
        let acceleration = self.capabilities.acceleration;
        command.args(args::arguments(spec, acceleration, &self.kernel_args, fds));
        command
    }
}

#[async_trait]
impl Engine for QemuEngine {
    fn kind(&self) -> EngineKind {
        EngineKind::Qemu
    }

    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    async fn spawn(&self, spec: &MachineSpec) -> Result<Box<dyn Machine>, SpawnError> {
        let begin = Instant::now();
        check(spec, &self.limits()).map_err(SpawnError::Invalid)?;
        let files = RuntimeFiles::new(&spec.runtime_dir, FILES);
        let mut made = MadeFiles::default();
        let output = Output::make(&files, &mut made)?;
        let fifo = output.reader(&files)?;
        let (listeners, streams) = make_sockets(spec, &files, &mut made)?;
        let console = ConsoleLog::open(&spec.console_log).map_err(|source| {
            let path = spec.console_log.clone();
            SpawnError::Runtime { path, source }
        })?;

        let process = VmmProcess::spawn(self.command(spec, listeners, output))
            .await
            .map_err(|source| SpawnError::Program {
                program: self.program.clone(),
                source,
            })?;
        made.keep();

        let record = MachineRecord {
            id: spec.id.clone(),
            engine: EngineKind::Qemu,
            process: process.identity().clone(),
            runtime_dir: spec.runtime_dir.clone(),
            console_log: spec.console_log.clone(),
        };
        let instance = Instance::new(record, process, console, MachineState::Spawned);
        drain(&instance, Some(fifo), Some(streams.console));
        let spawned = begin.elapsed();
        Ok(Box::new(QemuMachine::spawned(
            instance,
            files,
            spec.agent,
            streams.qmp,
            spawned,
        )))
    }

    async fn adopt(&self, record: &MachineRecord) -> Result<Box<dyn Machine>, AdoptError> {
        if record.engine != EngineKind::Qemu {
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
        let fifo = open_fifo(&files.path(OUTPUT_FIFO))
            .and_then(readable_fd)
            .ok();
        let stream = UnixStream::connect(files.path(CONSOLE_SOCKET)).await.ok();
        drain(&instance, fifo, stream);
        QemuMachine::adopted(instance, files)
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

fn drain(instance: &Instance, output: Option<AsyncFd<OwnedFd>>, console: Option<UnixStream>) {
    if let Some(output) = output {
        let sink = Sink::Output(instance.output().clone());
        instance.drain(drain_fifo(output, instance.process().clone(), sink));
    }
    if let Some(console) = console {
        instance.drain(drain_stream(
            console,
            Sink::Console(instance.console().clone()),
        ));
    }
}

/// QEMU's standard output and error: one FIFO.
struct Output {
    stdout: OwnedFd,
    stderr: OwnedFd,
}

impl Output {
    fn make(files: &RuntimeFiles, made: &mut MadeFiles) -> Result<Self, SpawnError> {
        let path = files.path(OUTPUT_FIFO);
        let stdout = made.make(path.clone(), make_fifo)?;
        let stderr = stdout
            .try_clone()
            .map_err(|source| SpawnError::Runtime { path, source })?;
        Ok(Self { stdout, stderr })
    }

    /// This side's end, an open file description of its own.
    fn reader(&self, files: &RuntimeFiles) -> Result<AsyncFd<OwnedFd>, SpawnError> {
        let path = files.path(OUTPUT_FIFO);
        open_fifo(&path)
            .and_then(readable_fd)
            .map_err(|source| SpawnError::Runtime { path, source })
    }
}

/// What QEMU inherits.
struct Listeners {
    qmp: UnixListener,
    console: UnixListener,
    agent: Option<UnixListener>,
}

/// This side of the connections that wait in the listeners.
struct Streams {
    qmp: UnixStream,
    console: UnixStream,
}

fn make_sockets(
    spec: &MachineSpec,
    files: &RuntimeFiles,
    made: &mut MadeFiles,
) -> Result<(Listeners, Streams), SpawnError> {
    let mut bind = |name| made.make(files.path(name), |path| UnixListener::bind(path));
    let listeners = Listeners {
        qmp: bind(QMP_SOCKET)?,
        console: bind(CONSOLE_SOCKET)?,
        agent: spec.agent.then(|| bind(AGENT_SOCKET)).transpose()?,
    };
    let streams = Streams {
        qmp: connect(files.path(QMP_SOCKET))?,
        console: connect(files.path(CONSOLE_SOCKET))?,
    };
    Ok((listeners, streams))
}

fn connect(path: PathBuf) -> Result<UnixStream, SpawnError> {
    StdUnixStream::connect(&path)
        .and_then(|stream| {
            stream.set_nonblocking(true)?;
            UnixStream::from_std(stream)
        })
        .map_err(|source| SpawnError::Runtime { path, source })
}
