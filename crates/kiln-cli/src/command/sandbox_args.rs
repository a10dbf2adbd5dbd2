//! What `run` and `create` take alike: the sandbox itself.

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use kiln_api::{CreateSandbox, InitSystem, Protection};

use super::{image::Pull, lifetime::LifetimeArgs, network::RunNetworkArgs, volume::Mount};
use crate::{Failure, cli::Engine, output::size::Mebibytes, place::Paths};

/// The sandbox to make.
#[derive(Debug, Args)]
pub(crate) struct SandboxArgs {
    /// Name to find the sandbox by
    #[arg(long)]
    name: Option<String>,
    /// Virtual processors
    #[arg(long, value_name = "N")]
    cpus: Option<u8>,
    /// Memory: MiB, or with a unit: 512M, 2G
    #[arg(long, short, value_name = "SIZE")]
    memory: Option<Mebibytes>,
    /// Size of the sandbox's own disk: MiB, or with a unit
    #[arg(long, value_name = "SIZE")]
    disk: Option<Mebibytes>,
    /// Keep what the guest writes in its memory instead of on a disk
    #[arg(long, conflicts_with = "disk")]
    tmpfs: bool,
    /// The guest's host name
    #[arg(long)]
    hostname: Option<String>,
    /// Boot this kernel (vmlinux or bzImage)
    #[arg(long, value_name = "FILE")]
    kernel: Option<PathBuf>,
    /// Modules of that kernel
    #[arg(long, value_name = "DIR", requires = "kernel")]
    modules: Option<PathBuf>,
    /// Run although the VMM cannot be confined as it should be
    #[arg(long)]
    allow_insecure_vmm: bool,
    /// Run the VMM without this protection, at every start; all others hold
    #[arg(long, value_enum, value_name = "PROTECTION", value_delimiter = ',')]
    without: Vec<Waived>,
    /// Engine to run it on
    #[arg(long, value_enum, env = "KILN_ENGINE")]
    engine: Option<Engine>,
    #[command(flatten)]
    network: RunNetworkArgs,
    /// A volume, and where the guest has it; of several sandboxes with `:ro`
    #[arg(long, value_name = "NAME:/PATH[:ro]")]
    volume: Vec<Mount>,
    /// When to ask the registry for the image
    #[arg(long, value_enum, value_name = "WHEN")]
    pull: Option<Pull>,
    /// Boot the image of this runtime: base, node22, node24, python3.13, or one of images.json
    #[arg(long, value_name = "NAME")]
    runtime: Option<String>,
    /// Boot a base image, kernel and all: latest, lts, hosted, debian, or the id of one that is here
    #[arg(long, value_name = "PRESET|ID", conflicts_with_all = ["runtime", "kernel"])]
    bundle: Option<String>,
    /// Begin from this snapshot, by id or name, instead of booting: of what the sandbox is made is
    /// the snapshot's
    #[arg(
        long,
        value_name = "SNAPSHOT",
        conflicts_with_all = [
            "runtime", "bundle", "kernel", "cpus", "memory", "disk", "tmpfs", "volume", "pull",
            "platform", "init", "ip",
        ]
    )]
    snapshot: Option<String>,
    /// Which of the image's builds, such as linux/amd64
    #[arg(long, value_name = "OS/ARCH")]
    platform: Option<String>,
    /// Process 1 of the guest: Kiln's agent, or the image's own init, be it systemd or another
    #[arg(long, value_enum, value_name = "WHO")]
    init: Option<Init>,
    #[command(flatten)]
    lifetime: LifetimeArgs,
}

/// Process 1 of a guest.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Init {
    /// Kiln's agent.
    Kiln,
    /// The image's own.
    Systemd,
}

impl From<Init> for InitSystem {
    fn from(init: Init) -> Self {
        match init {
            Init::Kiln => Self::Kiln,
            Init::Systemd => Self::Systemd,
        }
    }
}

/// A protection that can be done without.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Waived {
    /// Filters of system calls.
    Seccomp,
    /// A namespace of processes of its own.
    PidNamespace,
    /// A control group with limits.
    Cgroup,
}

impl From<Waived> for Protection {
    fn from(waived: Waived) -> Self {
        match waived {
            Waived::Seccomp => Self::Seccomp,
            Waived::PidNamespace => Self::PidNamespace,
            Waived::Cgroup => Self::Cgroup,
        }
    }
}

impl SandboxArgs {
    /// Whether a runtime, a base image or a snapshot is named, which takes the image's place.
    pub(super) fn names_image(&self) -> bool {
        self.runtime.is_some() || self.bundle.is_some() || self.snapshot.is_some()
    }

    /// What is asked of the daemon.
    pub(super) fn request(
        self,
        of_image: Option<String>,
        paths: Paths,
    ) -> Result<CreateSandbox, Failure> {
        let host_path = |path: &Path| paths.named(path);
        let request = CreateSandbox {
            name: self.name,
            image: of_image.map(|it| image(it, paths)).transpose()?,
            runtime: self.runtime,
            bundle: self.bundle,
            snapshot: self.snapshot,
            platform: self.platform,
            init: self.init.map(Into::into),
            pull: self.pull.map(Into::into),
            engine: self.engine.map(Into::into),
            vcpus: self.cpus,
            mem_mib: self.memory.map(Mebibytes::as_u32),
            disk_mib: self.disk.map(Mebibytes::as_u64),
            tmpfs: self.tmpfs,
            volumes: self.volume.into_iter().map(Into::into).collect(),
            kernel: self.kernel.as_deref().map(host_path).transpose()?,
            modules: self.modules.as_deref().map(host_path).transpose()?,
            hostname: self.hostname,
            allow_insecure_vmm: self.allow_insecure_vmm,
            without: self.without.into_iter().map(Into::into).collect(),
            network: Some(self.network.request()),
            ..CreateSandbox::default()
        };
        Ok(self.lifetime.apply(request))
    }
}

/// What looks like a path is one, also to the daemon, which stands elsewhere.
fn image(image: String, paths: Paths) -> Result<String, Failure> {
    if paths.is_one(&image) {
        paths.named(Path::new(&image))
    } else {
        Ok(image)
    }
}
