//! `cargo xtask lab -- COMMAND`: a QEMU machine with emulated SVM, for what this host cannot do.
//!
//! Owns the machine from its root filesystem to the exit code of the command. Inside, `/dev/kvm`
//! is real (though slow), so Firecracker boots true guests, and modules for networking are loaded.
//! It knows nothing of Kiln but the binary and the files that it copies in.

mod clock;
mod image;
mod kernel;
mod machine;
mod programs;
mod scenarios;
mod tree;

pub(crate) use scenarios::{SCENARIOS, Verdict};

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;

use crate::kiln;
use crate::setup::{self, Purpose, SetupError};
use crate::step::StepError;
use crate::workspace;
use image::{Artefact, ImageError};
use kernel::{KernelError, LabKernel};
use machine::{Machine, MachineError};

/// How the lab machine is made and what it runs.
#[derive(Debug, Clone, Args)]
pub(crate) struct Options {
    /// Memory of the lab machine; the guests inside have to fit in as well.
    #[arg(long = "mem", default_value_t = 1536, value_name = "MIB")]
    mem_mib: u32,
    /// Virtual CPUs of the lab machine.
    #[arg(long, default_value_t = 1)]
    cpus: u32,
    /// Free space on the lab machine's disk.
    #[arg(long = "disk", default_value_t = 4096, value_name = "MIB")]
    disk_mib: u64,
    /// The machine is killed when the command has not ended by then.
    #[arg(long = "timeout", default_value_t = 600, value_name = "SECONDS")]
    timeout_s: u64,
    /// Another file or directory to put in; where, if not at the same path.
    #[arg(long, value_name = "HOST[:GUEST]")]
    add: Vec<String>,
    /// Take the `kiln` that was built last instead of building it.
    #[arg(long)]
    no_build: bool,
    /// Leave Kiln's kernels and images out, which saves the time to copy them.
    #[arg(long)]
    no_data: bool,
    /// The command and its arguments.
    #[arg(last = true, required = true)]
    command: Vec<String>,
}

/// Why the lab gave no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LabError {
    #[error(transparent)]
    Setup(#[from] SetupError),
    #[error(transparent)]
    Build(#[from] StepError),
    #[error("no kernel for the lab")]
    Kernel(#[from] KernelError),
    #[error("the lab's disk cannot be made")]
    Image(#[from] ImageError),
    #[error("cargo built no tests of {file}")]
    NoTests { file: String },
    #[error(transparent)]
    Machine(#[from] MachineError),
    #[error("cannot work in {path}")]
    Directory {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
}

pub(crate) fn run(options: &Options) -> Result<ExitCode, LabError> {
    if !options.no_build {
        kiln::build()?;
    }
    let (code, ..) = run_with(options, std::io::stdout(), std::io::stderr())?;
    Ok(ExitCode::from(code))
}

/// Runs the command in a lab of its own; its two outputs go to the writers, which are returned.
fn run_with<O, E>(options: &Options, stdout: O, stderr: E) -> Result<(u8, O, E), LabError>
where
    O: Write + Send + 'static,
    E: Write + Send + 'static,
{
    setup::ensure(Purpose::Lab)?;
    let home = workspace::target().join("lab");
    let kernel = LabKernel::prepare(&home.join("kernel"))?;
    let run_dir = RunDir::create(&home)?;
    let disk = image::disk(run_dir.path(), &kernel, &artefacts(options), options)?;
    let initrd = image::initrd(run_dir.path(), &kernel)?;
    let machine = Machine {
        kernel: kernel.image.clone(),
        initrd,
        disk,
        mem_mib: options.mem_mib,
        cpus: options.cpus,
        timeout: Duration::from_secs(options.timeout_s),
        console: run_dir.path().join("console.log"),
    };
    Ok(machine.run(stdout, stderr)?)
}

/// What goes in besides programs of the host: Kiln, Firecracker where there is one, `--add`.
fn artefacts(options: &Options) -> Vec<Artefact> {
    let mut artefacts = Vec::new();
    let mut program = |host: PathBuf, name: &str| {
        if host.is_file() {
            artefacts.push(Artefact {
                host,
                guest: Path::new("usr/local/bin").join(name),
            });
        }
    };
    program(workspace::release_kiln(), "kiln");
    for (variable, name) in [
        ("KILN_FIRECRACKER", "firecracker"),
        ("KILN_JAILER", "jailer"),
    ] {
        if let Some(host) = std::env::var_os(variable) {
            program(PathBuf::from(host), name);
        }
    }
    if !options.no_data {
        artefacts.extend(kiln_data());
    }
    artefacts.extend(
        options
            .add
            .iter()
            .map(|added| Artefact::from_argument(added)),
    );
    artefacts
}

/// What Kiln fetched and built once and a sandbox needs; the lab has no network to fetch it again.
const KILN_DATA: &[&str] = &[
    "images/images",
    "images/memo",
    "kernels/bundles",
    "kernels/sources",
    "cache/initramfs",
];

/// Where the data directory of root's Kiln is in the lab.
const LAB_DATA_DIR: &str = "var/lib/kiln";

/// Kernels and images of `KILN_DATA_DIR`, or of the demo.
fn kiln_data() -> Vec<Artefact> {
    let data_dir = std::env::var_os("KILN_DATA_DIR")
        .map_or_else(|| workspace::target().join("demo"), PathBuf::from);
    let present = KILN_DATA.iter().filter(|part| data_dir.join(part).is_dir());
    present
        .map(|part| Artefact {
            host: data_dir.join(part),
            guest: Path::new(LAB_DATA_DIR).join(part),
        })
        .collect()
}

/// A directory for one run, removed afterwards. One whose process is gone is removed by the next
/// run: a signal ends us without clean-up.
#[derive(Debug)]
struct RunDir(PathBuf);

impl RunDir {
    fn create(home: &Path) -> Result<Self, LabError> {
        let runs = home.join("runs");
        let path = runs.join(std::process::id().to_string());
        let make = || {
            std::fs::create_dir_all(&path)?;
            for entry in runs.read_dir()?.flatten() {
                if !Path::new("/proc").join(entry.file_name()).exists() {
                    std::fs::remove_dir_all(entry.path())?;
                }
            }
            Ok(())
        };
        make().map_err(|source| LabError::Directory {
            path: path.clone(),
            source,
        })?;
        Ok(Self(path))
    }

    fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for RunDir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
