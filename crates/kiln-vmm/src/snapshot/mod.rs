//! Snapshots of machines: a directory with the guest's memory, the state of everything else, and
//! a manifest that says what it fits.
//!
//! Disks are the caller's business: it copies them while the machine is paused. A snapshot never
//! changes once it is there; machines map its memory as long as they live.

mod digest;
mod manifest;
mod publish;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use self::digest::known_data_sha256;
pub use self::manifest::{DiskFacts, FileFacts, HostFacts, Manifest, Mismatch, NicFacts};
pub use self::publish::seal;
pub(crate) use self::publish::{Partial, clone_file, copy_data};
use crate::error::MachineError;
use crate::machine::{Engine, EngineKind, MachineSpec};

/// Names in the directory of a snapshot.
pub(crate) const MEMORY: &str = "memory";
pub(crate) const STATE: &str = "vmstate";
const MANIFEST: &str = "manifest.json";

/// What a snapshot holds, and what becomes of its machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SnapshotKind {
    /// All memory; the machine can go on.
    Full,
    /// All memory too, but only what changed since the machine's last snapshot is written by the
    /// VMM; needs [`MachineOptions::track_dirty_pages`](crate::MachineOptions) and an engine that
    /// can.
    Diff,
    /// The machine's very memory: the fastest, and its machine's end. Needs
    /// [`MachineOptions::memory_file`](crate::MachineOptions) and an engine that keeps memory so.
    Template,
}

/// Where and how a snapshot is made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotTarget {
    /// Directory that comes to be; it must not exist, its parent must.
    pub dir: PathBuf,
    /// What it holds.
    pub kind: SnapshotKind,
}

/// Begins a machine from a snapshot instead of a kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Restore {
    /// Directory of the snapshot.
    pub dir: PathBuf,
    /// Whether the guest stays paused.
    pub paused: bool,
    /// Serves memory page by page from another process, where the engine can.
    pub uffd: Option<UffdHandler>,
    /// Steps the guest's clock to the host's, where the engine can.
    pub step_clock: bool,
}

/// The program that serves page faults: it has to call
/// [`uffd::serve`](crate::uffd::serve), and outlives whoever starts it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UffdHandler {
    /// Its path.
    pub program: PathBuf,
    /// Its arguments.
    pub args: Vec<String>,
}

impl UffdHandler {
    /// The program that calls this, by its command [`uffd::COMMAND`](crate::uffd::COMMAND): the
    /// file that runs, even when another was installed in its place meanwhile, and whoever may
    /// look at the directory that it is in.
    #[must_use]
    pub fn this_program() -> Self {
        Self {
            program: "/proc/self/exe".into(),
            args: vec![crate::uffd::COMMAND.to_owned()],
        }
    }
}

/// Why there is no snapshot, or none that can be used.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// Something of it cannot be written or read.
    #[error("cannot {step} {path}")]
    File {
        /// What was being done.
        step: &'static str,
        /// With what.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Its manifest is not one.
    #[error("{path} is no manifest of a snapshot")]
    Manifest {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// It does not fit the host, the engine or the machine.
    #[error("the snapshot does not fit: {}", list(.0))]
    Mismatch(Vec<Mismatch>),
    /// There is no earlier snapshot of this machine that a difference could be to.
    #[error("there is no snapshot that a difference could be to: make a full one")]
    NoBase,
    /// The engine cannot do that with this machine.
    #[error("{0}")]
    Unsupported(&'static str),
}

fn list(mismatches: &[Mismatch]) -> String {
    let words: Vec<String> = mismatches.iter().map(ToString::to_string).collect();
    words.join("; ")
}

/// Reads the manifest of the snapshot that `spec` begins from, and holds it against the machine,
/// the host and the engine. Of large files only those are read whose digests are known, and only
/// the first time.
pub(crate) fn checked(
    spec: &MachineSpec,
    restore: &Restore,
    engine: EngineKind,
    host: &HostFacts,
) -> Result<Manifest, SnapshotError> {
    let manifest = Manifest::read(&restore.dir)?;
    let mut mismatches = manifest.mismatches(engine, host);
    mismatches.extend(manifest.mismatches_of_machine(spec));
    mismatches.extend(manifest.mismatches_of_kernel(&spec.boot.kernel)?);
    mismatches.extend(manifest.mismatches_of_files(&restore.dir)?);
    if mismatches.is_empty() {
        Ok(manifest)
    } else {
        Err(SnapshotError::Mismatch(mismatches))
    }
}

/// Reads the manifest of the snapshot in `dir` and holds it and its files against the engine and this
/// host. Blocks, for long the first time when it was [sealed](seal).
///
/// # Errors
/// [`SnapshotError::Mismatch`] with all that does not fit; files that cannot be read.
pub fn fitting(dir: &std::path::Path, engine: &dyn Engine) -> Result<Manifest, SnapshotError> {
    let manifest = Manifest::read(dir)?;
    let mut mismatches = manifest.mismatches(engine.kind(), engine.host_facts());
    if mismatches.is_empty() {
        mismatches.extend(manifest.mismatches_of_files(dir)?);
    }
    if mismatches.is_empty() {
        Ok(manifest)
    } else {
        Err(SnapshotError::Mismatch(mismatches))
    }
}

fn file(step: &'static str, path: &std::path::Path) -> impl Fn(std::io::Error) -> SnapshotError {
    let path = path.to_owned();
    move |source| SnapshotError::File {
        step,
        path: path.clone(),
        source,
    }
}

/// Does what blocks elsewhere.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, SnapshotError> + Send + 'static,
) -> Result<T, MachineError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(outcome) => outcome.map_err(MachineError::Snapshot),
        Err(error) => Err(MachineError::Control {
            call: "make a snapshot".to_owned(),
            source: error.into(),
        }),
    }
}
