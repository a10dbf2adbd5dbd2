//! Firecracker, driven through its API socket.
//!
//! The guest's console is Firecracker's standard output; its own log goes with its standard error
//! to another FIFO, so that the two never mix.

pub mod api;
pub mod config;
mod machine;
mod metrics;
mod place;
mod ready;
mod requests;
mod seccomp;
mod snapshot;
pub mod version;

use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Instant;

use async_trait::async_trait;
use tokio::io::unix::AsyncFd;

use self::machine::{FirecrackerMachine, Known, Start};
use self::metrics::{Counted, count};
use self::place::Place;
use self::ready::SocketWatch;
pub use self::seccomp::FilterError;
use self::version::{Feature, Version};
use crate::console::ConsoleLog;
use crate::error::{AdoptError, JailError, SpawnError};
use crate::instance::{Instance, MadeFiles, sweep};
use crate::jail::{
    Access, Jail, JailRecord, JailSpec, Limits, Protection, give_to, off_the_runtime,
};
use crate::machine::{
    Acceleration, Capabilities, Engine, EngineKind, Machine, MachineRecord, MachineShape,
    MachineSpec, MachineState,
};
use crate::netns::open_netns;
use crate::output::{Sink, drain_fifo, make_fifo, open_fifo};
use crate::process::{Surroundings, TakeOverError, VmmCommand, VmmProcess};
use crate::program::{ProgramError, find, version, version_by};
use crate::readable_fd::readable_fd;
use crate::snapshot::{HostFacts, Manifest, checked};
use crate::validate::{EngineLimits, SpecFault, SpecFaults, check};

const API_SOCKET: &str = "api.sock";
const VSOCK_SOCKET: &str = "v.sock";
/// [`VSOCK_SOCKET`] followed by the agent's port ([`AGENT_PORT`](crate::AGENT_PORT)).
const AGENT_SOCKET: &str = "v.sock_5556";
const CONSOLE_FIFO: &str = "con.out";
const OUTPUT_FIFO: &str = "vmm.out";
const UFFD_SOCKET: &str = "uffd.sock";
const METRICS_FIFO: &str = "metrics";
/// Everything that a machine has in its runtime directory.
pub(crate) const FILES: &[&str] = &[
    API_SOCKET,
    VSOCK_SOCKET,
    AGENT_SOCKET,
    CONSOLE_FIFO,
    OUTPUT_FIFO,
    METRICS_FIFO,
    UFFD_SOCKET,
];
/// Name of the kernel in a jail.
const JAILED_KERNEL: &str = "kernel";
const SOCKETS: &[&str] = &[API_SOCKET, VSOCK_SOCKET, AGENT_SOCKET];

/// Of about 17 virtio devices, what vsock, entropy and later devices leave.
const MAX_DISKS: usize = 12;
const MAX_NICS: usize = 3;
/// What Firecracker itself may use beside the guest's memory: its 5 MiB, page tables, and room for
/// the page cache of what it reads and writes.
const OWN_MEMORY_MIB: u64 = 64;
/// Its threads beside the guest's processors; some engines of I/O have workers.
const OWN_THREADS: u32 = 32;

/// Names the jailer when it is not beside Firecracker.
pub const JAILER_VARIABLE: &str = "KILN_JAILER";

/// Triple-fault-free reboot through the keyboard controller, which Firecracker takes for the end;
/// the three `i8042` words spare the probing of what is not there and keep Ctrl-Alt-Del working
/// (`i8042.nokbd` or `nopnp` would not).
const KERNEL_ARGS: &str = "console=ttyS0 quiet reboot=k panic=-1 cryptomgr.notests \
                           i8042.noaux i8042.nomux i8042.dumbkbd";

/// Firecracker on this host.
#[derive(Debug)]
pub struct FirecrackerEngine {
    program: PathBuf,
    jailer: Option<PathBuf>,
    /// Compiled system call filters in place of its own.
    filters: Option<PathBuf>,
    version: Version,
    host: HostFacts,
    capabilities: Capabilities,
}

impl FirecrackerEngine {
    /// The Firecracker at `program`; whether KVM runs guests is not asked here.
    ///
    /// # Errors
    /// The program is missing or no Firecracker.
    pub async fn open(program: &Path) -> Result<Self, ProgramError> {
        let text = version(program, "Firecracker v").await?;
        let unsupported = || ProgramError::Unsupported {
            program: program.to_owned(),
            version: text.clone(),
        };
        let version: Version = text.parse().map_err(|_| unsupported())?;
        if version < Version::OLDEST {
            return Err(unsupported());
        }
        // One that does not say it reads its own snapshots at least.
        let format = version_by(program, "--snapshot-version", "v").await;
        let format = format.unwrap_or_else(|_| format!("that of {text}"));
        Ok(Self {
            host: HostFacts::here(&text, format, None),
            program: program.to_owned(),
            jailer: find_jailer(program),
            filters: None,
            version,
            capabilities: Capabilities {
                version: text,
                acceleration: Acceleration::Kvm,
                pause: true,
                ctrl_alt_del: cfg!(target_arch = "x86_64"),
                max_disks: MAX_DISKS,
                max_nics: MAX_NICS,
                nic_limits: true,
                metadata: true,
                memory_hotplug: Feature::MemoryHotplug.is_in(version),
                diff_snapshots: true,
            },
        })
    }

    /// Its version, which [`version`] tells more about.
    #[must_use]
    pub fn version(&self) -> Version {
        self.version
    }

    /// Runs machines under the system call filters in `filters` (JSON), not under Firecracker's
    /// own; `compiler` is its `seccompiler-bin`, and the compiled filters are kept at `compiled`.
    ///
    /// # Errors
    /// They cannot be compiled: no machine ever runs without filters because of that.
    pub async fn with_filters(
        mut self,
        filters: &Path,
        compiler: &Path,
        compiled: &Path,
    ) -> Result<Self, FilterError> {
        seccomp::compile(filters, compiler, compiled).await?;
        self.filters = Some(compiled.to_owned());
        Ok(self)
    }

    /// Jails machines by the jailer at `path`, not by the one that was found.
    #[must_use]
    pub fn with_jailer(mut self, path: impl Into<PathBuf>) -> Self {
        self.jailer = Some(path.into());
        self
    }

    /// Validates `spec` whole.
    fn check(&self, spec: &MachineSpec) -> Result<(), SpawnError> {
        let limits = EngineLimits {
            max_disks: MAX_DISKS,
            max_nics: MAX_NICS,
            limits_nics: true,
            sockets: SOCKETS,
            socket_dir: spec
                .jail
                .as_ref()
                .map(|jail| self.jail_dir(spec, jail).join("root")),
            confines: true,
            own_args: KERNEL_ARGS.to_owned(),
        };
        let mut faults = check(spec, &limits)
            .err()
            .map_or_else(Vec::new, |faults| faults.0);
        faults.extend(requests::faults(spec, self.version));
        if spec.jail.is_some() && self.jailer.is_none() {
            faults.push(SpecFault::NoJailer);
        }
        if faults.is_empty() {
            Ok(())
        } else {
            Err(SpawnError::Invalid(SpecFaults(faults)))
        }
    }

    /// Where the jailer makes the jail: it names one directory after the program, behind all
    /// links.
    fn jail_dir(&self, spec: &MachineSpec, jail: &JailSpec) -> PathBuf {
        let real = std::fs::canonicalize(&self.program).unwrap_or_else(|_| self.program.clone());
        let name = real.file_name().unwrap_or_default();
        jail.base_dir.join(name).join(&spec.id)
    }

    async fn prepared(&self, spec: &MachineSpec) -> Result<Prepared, SpawnError> {
        let (spec, host, version) = (spec.clone(), self.host.clone(), self.version);
        if spec.jail.is_none() && spec.restore.is_none() {
            // Nothing is copied or read: no reason to go elsewhere.
            return Ok(Prepared {
                jail: None,
                filters: self.filters.clone(),
                inside: spec,
                manifest: None,
            });
        }
        let dir = spec.jail.as_ref().map(|jail| self.jail_dir(&spec, jail));
        // Copies files. A jail that nobody waits for any more is dropped, and thereby removed.
        let filters = self.filters.clone();
        off_the_runtime(move || prepare(dir, spec, (&host, version, filters))).await
    }

    fn command(
        &self,
        spec: &MachineSpec,
        place: &Place,
        (jail, filters): (Option<&Jail>, Option<&Path>),
        output: Output,
    ) -> Result<VmmCommand, SpawnError> {
        let (program, jailing) = match (jail, &self.jailer) {
            (Some(jail), Some(jailer)) => (jailer, jailer_args(&self.program, jail.record())),
            (Some(_) | None, _) => (&self.program, Vec::new()),
        };
        let mut command = VmmCommand::new(program.clone(), output.console, output.own);
        command
            .args(["--id", &spec.id])
            .args(jailing)
            // Request bodies are logged at the level below: kernel arguments stay out of it.
            .args(["--level", "Warning"])
            .args(["--log-path".into(), place.inside(OUTPUT_FIFO)])
            .args(["--metrics-path".into(), place.inside(METRICS_FIFO)])
            .args(["--api-sock".into(), place.inside(API_SOCKET)]);
        if spec.options.lacks(Protection::Seccomp) {
            command.args(["--no-seccomp"]);
        } else if let Some(filters) = filters {
            command.args(["--seccomp-filter".into(), filters.to_path_buf()]);
        }
        command.surround(surroundings(spec, jail)?);
        Ok(command)
    }
}

/// A machine that is about to be spawned, as Firecracker will see it.
struct Prepared {
    jail: Option<Jail>,
    filters: Option<PathBuf>,
    inside: MachineSpec,
    /// The snapshot that it begins from.
    manifest: Option<Manifest>,
}

/// Makes the jail with everything in it that the machine needs. Blocks.
fn prepare(
    dir: Option<PathBuf>,
    mut spec: MachineSpec,
    (host, version, mut filters): (&HostFacts, Version, Option<PathBuf>),
) -> Result<Prepared, SpawnError> {
    let mut manifest = None;
    if let Some(restore) = &spec.restore {
        let found = checked(&spec, restore, EngineKind::Firecracker, host)?;
        snapshot::fit(&spec, restore, &found, version)?;
        manifest = Some(found);
    }
    let mut jail = match (spec.jail.clone(), dir) {
        (Some(wanted), Some(dir)) => Some(fill_jail(&wanted, dir, &mut spec, manifest.as_ref())?),
        (Some(_) | None, _) => None,
    };
    if let (Some(jail), Some(filters)) = (&mut jail, &mut filters) {
        *filters = jail.bring_in(filters, "filters", Access::Read)?;
    }
    Ok(Prepared {
        jail,
        filters,
        inside: spec,
        manifest,
    })
}

fn fill_jail(
    wanted: &JailSpec,
    dir: PathBuf,
    spec: &mut MachineSpec,
    manifest: Option<&Manifest>,
) -> Result<Jail, JailError> {
    let limits = Limits {
        memory_bytes: memory_limit(spec),
        cpus: spec.vcpus.into(),
        pids: OWN_THREADS + u32::from(spec.vcpus),
    };
    let mut jail = Jail::make(spec, wanted, Some(dir), limits)?;
    if let Some(manifest) = manifest {
        snapshot::bring_in(&mut jail, spec, manifest)?;
        return Ok(jail);
    }
    spec.boot.kernel = jail.bring_in(&spec.boot.kernel, JAILED_KERNEL, Access::Read)?;
    if let Some(initramfs) = &mut spec.boot.initramfs {
        *initramfs = jail.bring_in(initramfs, "initramfs", Access::Read)?;
    }
    for disk in &mut spec.disks {
        let name = format!("disk-{}", disk.id);
        disk.path = jail.bring_in(&disk.path, &name, Access::to(disk))?;
    }
    Ok(jail)
}

/// What the jailer is told beside the id; it passes on what follows.
fn jailer_args(program: &Path, jail: &JailRecord) -> Vec<OsString> {
    // `<base>/<program>/<id>`
    let base = jail.dir.as_deref().and_then(|dir| dir.parent()?.parent());
    vec![
        "--exec-file".into(),
        program.into(),
        "--uid".into(),
        jail.uid.to_string().into(),
        "--gid".into(),
        jail.gid.to_string().into(),
        "--chroot-base-dir".into(),
        base.unwrap_or(Path::new("/")).into(),
        "--".into(),
    ]
}

fn surroundings(spec: &MachineSpec, jail: Option<&Jail>) -> Result<Surroundings, SpawnError> {
    Ok(Surroundings {
        netns: open_netns(spec)?,
        pid_namespace: jail.is_some() && !spec.options.lacks(Protection::PidNamespace),
        cgroups: match jail {
            Some(jail) => jail.group().doors()?,
            None => Vec::new(),
        },
        binds: jail.map_or_else(Vec::new, |jail| jail.binds().to_vec()),
        no_new_privs: true,
        // The jailer becomes another user when it needs to be root no more.
        user: None,
    })
}

/// Guest memory with a part for its page tables, and what the VMM needs itself.
fn memory_limit(spec: &MachineSpec) -> u64 {
    let guest = u64::from(spec.mem_mib);
    (guest + guest / 64 + OWN_MEMORY_MIB) << 20
}

fn find_jailer(program: &Path) -> Option<PathBuf> {
    let real = std::fs::canonicalize(program).ok();
    let beside = real
        .as_deref()
        .and_then(Path::parent)
        .map(|dir| dir.join("jailer"))
        .filter(|path| path.is_file());
    match std::env::var_os(JAILER_VARIABLE) {
        Some(_) => find(None, JAILER_VARIABLE, "jailer"),
        None => beside.or_else(|| find(None, JAILER_VARIABLE, "jailer")),
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

    fn host_facts(&self) -> &HostFacts {
        &self.host
    }

    // Nothing is kept of one.
    fn forget_snapshot(&self, _dir: &Path) {}

    async fn spawn(&self, spec: &MachineSpec) -> Result<Box<dyn Machine>, SpawnError> {
        let begin = Instant::now();
        self.check(spec)?;
        let runtime_dir = spec.runtime_dir.clone();
        let console_log = spec.console_log.clone();
        let Prepared {
            jail,
            filters,
            inside,
            manifest,
        } = self.prepared(spec).await?;
        let root = jail.as_ref().and_then(Jail::root);
        let kernel = kernel_on_host(spec, root.as_deref());
        let place = Place::new(&runtime_dir, root);
        let mut made = MadeFiles::default();
        let output = Output::make(&place, &mut made)?;
        if let Some(jail) = jail.as_ref().map(Jail::record) {
            give_to(&place.output(), jail.uid, jail.gid)?;
            give_to(&place.metrics(), jail.uid, jail.gid)?;
        }
        let prepared = |path: &Path| {
            let path = path.to_owned();
            move |source| SpawnError::Runtime { path, source }
        };
        let readers = Readers::open(&place).map_err(prepared(&runtime_dir))?;
        let socket = place.api_socket();
        let ready = SocketWatch::new(socket.clone()).map_err(prepared(&socket))?;
        let console = ConsoleLog::open(&console_log).map_err(prepared(&console_log))?;

        let surrounded = (jail.as_ref(), filters.as_deref());
        let command = self.command(&inside, &place, surrounded, output)?;
        let process = VmmProcess::spawn(command)
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
            runtime_dir,
            console_log,
            jail: jail.map(Jail::keep),
            allow_insecure: spec.allow_insecure,
            shape: MachineShape {
                kernel,
                ..MachineShape::of(&inside)
            },
        };
        let start = match (&inside.restore, &manifest) {
            (Some(restore), Some(manifest)) => {
                if let Some(handler) = &restore.uffd {
                    let started =
                        snapshot::start_handler(restore, handler, &place, &record, &process).await;
                    if let Err(error) = started {
                        return Err(undone(&process, record, error).await);
                    }
                }
                let load = snapshot::load(&inside, restore, manifest, &place, self.version);
                Start::Load(Box::new(load))
            }
            _ => Start::Boot,
        };
        let instance = Instance::new(record, process, console, MachineState::Spawned);
        let counted = readers.drain_into(&instance);
        let spawned = begin.elapsed();
        Ok(Box::new(FirecrackerMachine::spawned(
            instance,
            place,
            inside,
            (ready, start),
            spawned,
            Known {
                counted,
                version: self.version,
                host: self.host.clone(),
            },
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
        let place = Place::of(record);
        let console =
            ConsoleLog::open(&record.console_log).map_err(|error| unresponsive(record, error))?;
        let instance = Instance::new(record.clone(), process, console, MachineState::Running);
        // A machine whose output cannot be drained still runs, and its guest loses nothing.
        let counted = Readers::open(&place)
            .map(|readers| readers.drain_into(&instance))
            .unwrap_or_default();
        FirecrackerMachine::adopted(instance, place, counted, self.host.clone())
            .await
            .map(|machine| Box::new(machine) as Box<dyn Machine>)
            .map_err(|source| unresponsive(record, source))
    }
}

/// Where this process finds the kernel of a machine: in its jail it stays what was booted.
fn kernel_on_host(spec: &MachineSpec, root: Option<&Path>) -> Option<PathBuf> {
    match (root, &spec.restore) {
        (Some(root), None) => Some(root.join(JAILED_KERNEL)),
        _ => Some(spec.boot.kernel.clone()).filter(|path| !path.as_os_str().is_empty()),
    }
}

/// Ends a VMM whose machine could not come to be.
async fn undone(process: &VmmProcess, record: MachineRecord, error: SpawnError) -> SpawnError {
    // The cause is what counts; what is left is found again by its names.
    let _ = process.end(std::time::Duration::ZERO).await;
    let _ = Place::of(&record).files().remove();
    let _ = sweep(record.jail).await;
    error
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
    fn make(place: &Place, made: &mut MadeFiles) -> Result<Self, SpawnError> {
        Ok(Self {
            console: made.make(place.console(), make_fifo)?,
            own: {
                // Firecracker opens this one by itself.
                made.make(place.metrics(), make_fifo)?;
                made.make(place.output(), make_fifo)?
            },
        })
    }
}

/// This side's ends.
struct Readers {
    console: AsyncFd<OwnedFd>,
    own: AsyncFd<OwnedFd>,
    metrics: AsyncFd<OwnedFd>,
}

impl Readers {
    fn open(place: &Place) -> std::io::Result<Self> {
        let reader = |path: PathBuf| open_fifo(&path).and_then(readable_fd);
        Ok(Self {
            console: reader(place.console())?,
            own: reader(place.output())?,
            metrics: reader(place.metrics())?,
        })
    }

    fn drain_into(self, instance: &Instance) -> Counted {
        let process = instance.process();
        let console = Sink::Console(instance.console().clone());
        instance.drain(drain_fifo(self.console, process.clone(), console));
        let own = Sink::Output(instance.output().clone());
        instance.drain(drain_fifo(self.own, process.clone(), own));
        let counted = Counted::default();
        instance.drain(count(self.metrics, process.clone(), counted.clone()));
        counted
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
