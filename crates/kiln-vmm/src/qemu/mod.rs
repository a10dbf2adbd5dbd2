//! QEMU's `microvm` machine, driven through QMP.
//!
//! The sockets are bound here and inherited by QEMU, and the control and console connections are
//! made before QEMU runs: nothing has to be waited for, and no byte of the console is lost. When
//! nobody is connected to the console QEMU drops the output, so a dead daemon stalls no guest.
//!
//! Under TCG this engine is for hosts without usable KVM: slow, and not a security boundary.

mod args;
mod devices;
mod machine;
pub mod qmp;
mod snapshot;
mod template;
mod tsc;

use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream as StdUnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use rustix::fs::{Gid, Uid};
use tokio::io::unix::AsyncFd;
use tokio::net::UnixStream;

use self::args::{Inherited, MemoryFd, SocketFds};
use self::machine::{Fresh, QemuMachine};
use self::template::Templates;
use crate::console::ConsoleLog;
use crate::error::{AdoptError, JailError, SpawnError};
use crate::instance::{Instance, MadeFiles, RuntimeFiles};
use crate::jail::{Access, Jail, Limits, Protection, give_to, off_the_runtime};
use crate::machine::{
    Acceleration, Capabilities, Engine, EngineKind, Machine, MachineRecord, MachineShape,
    MachineSpec, MachineState,
};
use crate::netns::open_netns;
use crate::options::DiskOptions;
use crate::output::{Sink, drain_fifo, drain_stream, make_fifo, open_fifo};
use crate::process::{Surroundings, TakeOverError, User, VmmCommand, VmmProcess};
use crate::program::{ProgramError, version};
use crate::readable_fd::readable_fd;
use crate::snapshot::{HostFacts, MEMORY, checked};
use crate::tap;
use crate::validate::{EngineLimits, SpecFault, SpecFaults, check};

const QMP_SOCKET: &str = "qmp.sock";
const CONSOLE_SOCKET: &str = "con.sock";
const AGENT_SOCKET: &str = "agent.sock";
const OUTPUT_FIFO: &str = "vmm.out";
/// Everything that a machine has in its runtime directory.
pub(crate) const FILES: &[&str] = &[QMP_SOCKET, CONSOLE_SOCKET, AGENT_SOCKET, OUTPUT_FIFO];
const SOCKETS: &[&str] = &[QMP_SOCKET, CONSOLE_SOCKET, AGENT_SOCKET];

/// Of the 24 virtio-mmio slots, what the agent's channel, entropy and later devices leave.
const MAX_DISKS: usize = 16;
const MAX_NICS: usize = 3;
/// What QEMU itself may use beside the guest's memory and translated code: libraries, buffers,
/// and room for the page cache of what it reads and writes.
const OWN_MEMORY_MIB: u64 = 192;
/// Its threads beside the guest's processors: workers for I/O come and go, up to 64.
const OWN_THREADS: u32 = 96;

const KVM: &str = "/dev/kvm";
/// Under this name a guest's memory is seen in `/proc`.
const MEMORY_NAME: &str = "kiln-memory";

/// How long QEMU may take to answer. A dead QEMU is noticed at once, so this is for one that
/// hangs; a loaded machine gets its time.
const ANSWER: Duration = Duration::from_secs(30);

/// QEMU on this host.
#[derive(Debug)]
pub struct QemuEngine {
    program: PathBuf,
    capabilities: Capabilities,
    kernel_args: String,
    host: HostFacts,
    templates: Arc<Templates>,
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
        // Devices and their state differ between versions, and between processors.
        let format = format!("microvm {version} {acceleration:?}");
        Ok(Self {
            program: program.to_owned(),
            host: HostFacts::here(&version, format, tsc_khz),
            templates: Arc::default(),
            capabilities: Capabilities {
                version,
                acceleration,
                pause: true,
                // No keyboard controller, and the ACPI power button needs a listener in the guest.
                ctrl_alt_del: false,
                max_disks: MAX_DISKS,
                max_nics: MAX_NICS,
                nic_limits: false,
                metadata: false,
                memory_hotplug: false,
                diff_snapshots: false,
            },
            kernel_args: args::kernel_args(acceleration, tsc_khz),
        })
    }

    fn limits(&self) -> EngineLimits {
        EngineLimits {
            max_disks: MAX_DISKS,
            max_nics: MAX_NICS,
            limits_nics: false,
            sockets: SOCKETS,
            socket_dir: None,
            confines: true,
            own_args: self.kernel_args.clone(),
        }
    }

    /// Validates `spec` whole.
    fn check(&self, spec: &MachineSpec) -> Result<(), SpawnError> {
        let mut faults = check(spec, &self.limits())
            .err()
            .map_or_else(Vec::new, |faults| faults.0);
        faults.extend(missing_options(spec).map(SpecFault::Option));
        if faults.is_empty() {
            Ok(())
        } else {
            Err(SpawnError::Invalid(SpecFaults(faults)))
        }
    }

    /// The whole command, with the descriptors that QEMU inherits.
    fn command(
        &self,
        spec: &MachineSpec,
        jail: Option<&Jail>,
        opened: Opened,
        sockets: Listeners,
        output: Output,
    ) -> Result<(VmmCommand, MachineShape), SpawnError> {
        let mut command = VmmCommand::new(self.program.clone(), output.stdout, output.stderr);
        let inherited = Inherited {
            sockets: SocketFds {
                qmp: command.inherit(sockets.qmp.into()),
                console: command.inherit(sockets.console.into()),
                agent: sockets.agent.map(|agent| command.inherit(agent.into())),
            },
            kernel: opened.kernel.map(|file| command.inherit(file)),
            initramfs: opened.initramfs.map(|file| command.inherit(file)),
            memory: opened.memory.map(|(file, shared)| MemoryFd {
                fd: command.inherit(file),
                shared,
            }),
            disks: command.inherit_all(opened.disks),
            taps: command.inherit_all(opened.taps),
        };
        let shape = MachineShape {
            memory_fd: nameless_memory(spec, inherited.memory),
            ..MachineShape::of(spec)
        };
        let acceleration = self.capabilities.acceleration;
        command.args(args::arguments(
            spec,
            acceleration,
            &self.kernel_args,
            &inherited,
        ));
        command.surround(surroundings(spec, jail)?);
        Ok((command, shape))
    }

    fn limits_of(&self, spec: &MachineSpec) -> Limits {
        let guest = u64::from(spec.mem_mib);
        let translated = match self.capabilities.acceleration {
            Acceleration::Kvm => 0,
            Acceleration::Tcg => args::TRANSLATED_MIB,
        };
        Limits {
            memory_bytes: (guest + guest / 64 + translated + OWN_MEMORY_MIB) << 20,
            cpus: spec.vcpus.into(),
            pids: OWN_THREADS + u32::from(spec.vcpus),
        }
    }
}

/// What of the options QEMU's `microvm` does not have, or Kiln does not ask it for.
fn missing_options(spec: &MachineSpec) -> impl Iterator<Item = &'static str> {
    let options = &spec.options;
    let disks = |has: fn(&DiskOptions) -> bool| spec.disks.iter().any(|disk| has(&disk.options));
    [
        (options.smt, "threads of cores"),
        (options.cpu_template.is_some(), "CPU templates"),
        (options.track_dirty_pages, "diff snapshots"),
        (options.huge_pages, "memory in huge pages"),
        (options.memory_hotplug.is_some(), "memory that can be added"),
        (options.metadata.is_some(), "metadata service"),
        (
            spec.restore.as_ref().is_some_and(|it| it.uffd.is_some()),
            "memory that is served page by page",
        ),
        (
            spec.restore.as_ref().is_some_and(|it| it.step_clock),
            "clock that it could step",
        ),
        (options.entropy_limit.is_some(), "limit of entropy"),
        (
            disks(|disk| disk.root),
            "root disk: name it in the kernel's arguments",
        ),
        (disks(|disk| disk.partuuid.is_some()), "partition as root"),
        (disks(|disk| disk.async_io), "io_uring"),
    ]
    .into_iter()
    .filter_map(|(wanted, what)| wanted.then_some(what))
}

/// Files and TAPs of one machine, open for QEMU to inherit.
struct Opened {
    kernel: Option<OwnedFd>,
    initramfs: Option<OwnedFd>,
    /// With whether what the guest writes goes there.
    memory: Option<(OwnedFd, bool)>,
    disks: Vec<OwnedFd>,
    taps: Vec<OwnedFd>,
}

/// Makes the jail and opens everything that the machine needs. Blocks.
fn prepare(
    spec: &MachineSpec,
    limits: Limits,
    (host, acceleration): (&HostFacts, Acceleration),
    templates: &Templates,
    made: &mut MadeFiles,
) -> Result<(Option<Jail>, Opened), SpawnError> {
    let mut jail = None;
    if let Some(wanted) = &spec.jail {
        let dir = wanted.base_dir.join("qemu").join(&spec.id);
        let mut made = Jail::make(spec, wanted, Some(dir), limits)?;
        if acceleration == Acceleration::Kvm {
            // QEMU opens it by itself, by the one name that it knows.
            made.give_device(Path::new(KVM), "kvm")?;
        }
        jail = Some(made);
    }
    let (mut kernel, mut initramfs) = (None, None);
    if spec.restore.is_none() {
        kernel = Some(open_boot_file(&mut jail, &spec.boot.kernel, "kernel")?);
        if let Some(file) = &spec.boot.initramfs {
            initramfs = Some(open_boot_file(&mut jail, file, "initramfs")?);
        }
    }
    let opened = Opened {
        kernel,
        initramfs,
        memory: open_memory(spec, host, templates, made)?,
        disks: spec
            .disks
            .iter()
            .map(|disk| open(&disk.path, Access::to(disk)))
            .collect::<Result<_, _>>()?,
        taps: cards(spec)?,
    };
    Ok((jail, opened))
}

/// The TAPs, then the connection of a user-mode network.
fn cards(spec: &MachineSpec) -> Result<Vec<OwnedFd>, SpawnError> {
    let mut cards = tap::open_all(open_netns(spec)?, &spec.nics)?;
    if let Some(network) = &spec.options.user_network {
        let connected = std::os::unix::net::UnixStream::connect(&network.socket);
        let connection = connected.map_err(|source| SpawnError::Runtime {
            path: network.socket.clone(),
            source,
        })?;
        cards.push(connection.into());
    }
    Ok(cards)
}

/// QEMU opens these again, as the user that it is then: in a jail they are made readable for it.
fn open_boot_file(jail: &mut Option<Jail>, file: &Path, name: &str) -> Result<OwnedFd, SpawnError> {
    match jail {
        Some(jail) => open(&bring_in(jail, file, name)?, Access::Read),
        None => open(file, Access::Read),
    }
}

/// The file that is the guest's memory, where there is one: a new one of its own, or the
/// snapshot's.
fn open_memory(
    spec: &MachineSpec,
    host: &HostFacts,
    templates: &Templates,
    made: &mut MadeFiles,
) -> Result<Option<(OwnedFd, bool)>, SpawnError> {
    if let Some(restore) = &spec.restore {
        checked(spec, restore, EngineKind::Qemu, host)?;
        let path = restore.dir.join(MEMORY);
        let memory = templates
            .open(&path)
            .map_err(|source| SpawnError::Runtime { path, source })?;
        return Ok(Some((memory, false)));
    }
    let Some(path) = &spec.options.memory_file else {
        return if spec.options.shared_memory {
            Ok(Some((nameless(spec)?, true)))
        } else {
            Ok(None)
        };
    };
    let file = made.make(path.clone(), |path| {
        let file = std::fs::File::create_new(path)?;
        file.set_len(u64::from(spec.mem_mib) << 20)?;
        Ok(file)
    })?;
    if let Some(jail) = &spec.jail {
        give_to(path, jail.uid, jail.gid)?;
    }
    Ok(Some((file.into(), true)))
}

/// Memory in a file without a name: of no file system, so that none can be full.
fn nameless(spec: &MachineSpec) -> Result<OwnedFd, SpawnError> {
    let made = rustix::fs::memfd_create(MEMORY_NAME, rustix::fs::MemfdFlags::CLOEXEC);
    let sized = made.and_then(|memory| {
        rustix::fs::ftruncate(&memory, u64::from(spec.mem_mib) << 20)?;
        Ok(memory)
    });
    sized.map_err(|errno| SpawnError::Runtime {
        path: MEMORY_NAME.into(),
        source: errno.into(),
    })
}

/// QEMU's number of that file. What it inherits stays open as long as it lives.
fn nameless_memory(spec: &MachineSpec, memory: Option<MemoryFd>) -> Option<i32> {
    let memory = memory.filter(|memory| memory.shared && spec.options.memory_file.is_none());
    memory.map(|memory| memory.fd)
}

/// Brings a file in and says where it is on the host.
fn bring_in(jail: &mut Jail, file: &Path, name: &str) -> Result<PathBuf, JailError> {
    jail.bring_in(file, name, Access::Read)?;
    Ok(jail.root().unwrap_or_default().join(name))
}

fn open(path: &Path, access: Access) -> Result<OwnedFd, SpawnError> {
    std::fs::File::options()
        .read(true)
        .write(access == Access::Write)
        .open(path)
        .map(OwnedFd::from)
        .map_err(|source| SpawnError::Runtime {
            path: path.to_owned(),
            source,
        })
}

fn surroundings(spec: &MachineSpec, jail: Option<&Jail>) -> Result<Surroundings, SpawnError> {
    let Some(jail) = jail else {
        return Ok(Surroundings {
            netns: open_netns(spec)?,
            no_new_privs: true,
            ..Surroundings::default()
        });
    };
    Ok(Surroundings {
        netns: open_netns(spec)?,
        pid_namespace: !spec.options.lacks(Protection::PidNamespace),
        cgroups: jail.group().doors()?,
        binds: jail.binds().to_vec(),
        no_new_privs: true,
        user: Some(User {
            uid: Uid::from_raw(jail.record().uid),
            gid: Gid::from_raw(jail.record().gid),
            groups: Vec::new(),
        }),
    })
}

#[async_trait]
impl Engine for QemuEngine {
    fn kind(&self) -> EngineKind {
        EngineKind::Qemu
    }

    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    fn host_facts(&self) -> &HostFacts {
        &self.host
    }

    fn forget_snapshot(&self, dir: &Path) {
        self.templates.forget(&dir.join(MEMORY));
    }

    async fn spawn(&self, spec: &MachineSpec) -> Result<Box<dyn Machine>, SpawnError> {
        let begin = Instant::now();
        self.check(spec)?;
        let (preparing, limits) = (spec.clone(), self.limits_of(spec));
        let (host, templates) = (self.host.clone(), Arc::clone(&self.templates));
        let acceleration = self.capabilities.acceleration;
        let (jail, opened, mut made) = off_the_runtime(move || {
            let mut made = MadeFiles::default();
            let host = (&host, acceleration);
            let (jail, opened) = prepare(&preparing, limits, host, &templates, &mut made)?;
            Ok::<_, SpawnError>((jail, opened, made))
        })
        .await?;
        let files = RuntimeFiles::new(&spec.runtime_dir, FILES);
        let output = Output::make(&files, &mut made)?;
        let fifo = output.reader(&files)?;
        let (listeners, streams) = make_sockets(spec, &files, &mut made)?;
        let console = ConsoleLog::open(&spec.console_log).map_err(|source| {
            let path = spec.console_log.clone();
            SpawnError::Runtime { path, source }
        })?;

        let (command, shape) = self.command(spec, jail.as_ref(), opened, listeners, output)?;
        let process = VmmProcess::spawn(command)
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
            jail: jail.map(Jail::keep),
            allow_insecure: spec.allow_insecure,
            shape,
        };
        let instance = Instance::new(record, process, console, MachineState::Spawned);
        drain(&instance, Some(fifo), Some(streams.console));
        let spawned = begin.elapsed();
        Ok(Box::new(QemuMachine::spawned(
            instance,
            files,
            Fresh {
                stream: streams.qmp,
                spec: spec.clone(),
            },
            self.host.clone(),
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
        QemuMachine::adopted(instance, files, self.host.clone())
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
