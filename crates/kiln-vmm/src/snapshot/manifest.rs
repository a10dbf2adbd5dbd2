//! What is written down of a snapshot, and whether it fits.

use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::digest::{known_data_sha256, known_sha256, sha256};
use super::{MANIFEST, MEMORY, STATE, SnapshotError, SnapshotKind, file};
use crate::machine::{EngineKind, MachineRecord, MachineSpec};
use crate::nic::MacAddress;

/// The form of the manifest itself.
const FORMAT: u32 = 1;
/// Nobody's manifest is longer.
const MAX_MANIFEST_BYTES: u64 = 1024 * 1024;
/// How far two clocks may differ that were measured on the same processor.
const TSC_TOLERANCE: u64 = 1000;

/// What is written down of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Form of this manifest.
    pub format: u32,
    /// What it holds.
    pub kind: SnapshotKind,
    /// Engine that made it.
    pub engine: EngineKind,
    /// Host and engine that made it.
    pub host: HostFacts,
    /// Virtual processors.
    pub vcpus: u8,
    /// Guest memory.
    pub mem_mib: u32,
    /// Whether the machine was jailed: paths in the state are those in the jail then.
    pub jailed: bool,
    /// Whether the guest has a channel for its agent.
    pub agent: bool,
    /// Its disks, in order.
    pub disks: Vec<DiskFacts>,
    /// Its interfaces, in order.
    pub nics: Vec<NicFacts>,
    /// SHA-256 in hex of the kernel that it booted, where that was still there.
    #[serde(default)]
    pub kernel_sha256: Option<String>,
    /// The guest's memory.
    pub memory: FileFacts,
    /// Everything else.
    pub state: FileFacts,
}

/// Host and engine, as far as a snapshot depends on them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostFacts {
    /// Version of the engine.
    pub engine_version: String,
    /// Version of the engine's form of snapshots.
    pub state_format: String,
    /// `x86_64`
    pub arch: String,
    /// Who made the processor.
    pub cpu_vendor: String,
    /// Which one it is.
    pub cpu_model: String,
    /// Release of the host's kernel.
    pub kernel: String,
    /// Rate of the time stamp counter, where the guest was told it.
    pub tsc_khz: Option<u64>,
}

/// A disk of the machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskFacts {
    /// Its name.
    pub id: String,
    /// Whether the guest may only read it.
    pub read_only: bool,
    /// Where the VMM finds it.
    pub path: PathBuf,
}

/// An interface of the machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NicFacts {
    /// Its name.
    pub id: String,
    /// Its TAP then.
    pub tap: String,
    /// The guest's address.
    pub mac: MacAddress,
}

/// A file of the snapshot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileFacts {
    /// Its size.
    pub bytes: u64,
    /// SHA-256 in hex; of the memory only when it was [sealed](super::seal), since it is large, and
    /// of what is not zero, with where it is.
    pub sha256: Option<String>,
}

impl FileFacts {
    /// Of a small file: size and digest.
    pub(crate) fn digested(path: &Path) -> Result<Self, SnapshotError> {
        let bytes = std::fs::metadata(path)
            .map_err(file("examine", path))?
            .len();
        Ok(Self {
            bytes,
            sha256: Some(sha256(path)?),
        })
    }

    /// Of a large one: its size.
    pub(crate) fn sized(path: &Path) -> Result<Self, SnapshotError> {
        let bytes = std::fs::metadata(path)
            .map_err(file("examine", path))?
            .len();
        Ok(Self {
            bytes,
            sha256: None,
        })
    }
}

/// Something that does not fit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mismatch {
    /// A fact that has to be the same.
    Differs {
        /// Which.
        what: &'static str,
        /// In the snapshot.
        snapshot: String,
        /// Here.
        here: String,
    },
    /// A file that is not what the manifest says.
    File {
        /// Which.
        name: &'static str,
        /// What is wrong with it.
        problem: &'static str,
    },
}

impl fmt::Display for Mismatch {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Differs {
                what,
                snapshot,
                here,
            } => write!(formatter, "{what}: {snapshot} in the snapshot, {here} here"),
            Self::File { name, problem } => write!(formatter, "its {name} {problem}"),
        }
    }
}

impl Manifest {
    /// Of a machine; its disks are where the VMM sees them.
    pub(crate) fn of(
        record: &MachineRecord,
        kind: SnapshotKind,
        disks: Vec<DiskFacts>,
        host: HostFacts,
        (memory, state): (FileFacts, FileFacts),
    ) -> Self {
        let shape = &record.shape;
        Self {
            format: FORMAT,
            kind,
            engine: record.engine,
            host,
            vcpus: shape.vcpus,
            mem_mib: shape.mem_mib,
            jailed: record.jail.is_some(),
            agent: shape.agent,
            disks,
            nics: shape.nics.clone(),
            kernel_sha256: shape.kernel.as_deref().and_then(kernel_sha256),
            memory,
            state,
        }
    }

    /// Reads the manifest of the snapshot in `dir`.
    ///
    /// # Errors
    /// There is none, or it is none.
    pub fn read(dir: &Path) -> Result<Self, SnapshotError> {
        let path = dir.join(MANIFEST);
        let mut text = Vec::new();
        File::open(&path)
            .and_then(|opened| opened.take(MAX_MANIFEST_BYTES).read_to_end(&mut text))
            .map_err(file("read", &path))?;
        serde_json::from_slice(&text).map_err(|source| SnapshotError::Manifest { path, source })
    }

    pub(super) fn write(&self, path: &Path) -> Result<(), SnapshotError> {
        let text = serde_json::to_vec_pretty(self).map_err(|source| SnapshotError::Manifest {
            path: path.to_owned(),
            source,
        })?;
        std::fs::write(path, text).map_err(file("write", path))
    }

    /// What of host and engine does not fit. The host's kernel may differ: newer ones run what
    /// older ones saved.
    pub(crate) fn mismatches(&self, engine: EngineKind, here: &HostFacts) -> Vec<Mismatch> {
        let mut found = Found::default();
        let theirs = &self.host;
        found.differs("form of the manifest", self.format, FORMAT);
        found.differs(
            "engine",
            format!("{:?}", self.engine),
            format!("{engine:?}"),
        );
        found.differs(
            "form of the engine's snapshots",
            &theirs.state_format,
            &here.state_format,
        );
        found.differs("architecture", &theirs.arch, &here.arch);
        found.differs(
            "maker of the processor",
            &theirs.cpu_vendor,
            &here.cpu_vendor,
        );
        found.differs("model of the processor", &theirs.cpu_model, &here.cpu_model);
        if let (Some(theirs), Some(here)) = (theirs.tsc_khz, here.tsc_khz)
            && theirs.abs_diff(here) > theirs / TSC_TOLERANCE
        {
            found.differs("rate of the processor's clock", theirs, here);
        }
        found.0
    }

    /// What of the machine does not fit.
    pub(crate) fn mismatches_of_machine(&self, spec: &MachineSpec) -> Vec<Mismatch> {
        let mut found = Found::default();
        found.differs("vCPUs", self.vcpus, spec.vcpus);
        found.differs("MiB of memory", self.mem_mib, spec.mem_mib);
        found.differs("jail", self.jailed, spec.jail.is_some());
        found.differs("agent's channel", self.agent, spec.agent);
        let disks = |id: &str, read_only| format!("{id}{}", if read_only { " (ro)" } else { "" });
        found.differs(
            "disks",
            words(
                self.disks
                    .iter()
                    .map(|disk| disks(&disk.id, disk.read_only)),
            ),
            words(
                spec.disks
                    .iter()
                    .map(|disk| disks(&disk.id, disk.read_only)),
            ),
        );
        found.differs(
            "interfaces",
            words(self.nics.iter().map(|nic| nic.id.clone())),
            words(spec.nics.iter().map(|nic| nic.id.clone())),
        );
        found.0
    }

    /// Whether a machine that is said to have booted `kernel` booted another one.
    pub(crate) fn mismatches_of_kernel(
        &self,
        kernel: &Path,
    ) -> Result<Vec<Mismatch>, SnapshotError> {
        let mut found = Found::default();
        if let Some(theirs) = &self.kernel_sha256
            && !kernel.as_os_str().is_empty()
        {
            found.differs("kernel of the guest", theirs, &known_sha256(kernel)?);
        }
        Ok(found.0)
    }

    /// Which files in `dir` are not those of the manifest. The memory's content is read where its
    /// digest is known: the first time, and when the file was written to.
    pub(crate) fn mismatches_of_files(&self, dir: &Path) -> Result<Vec<Mismatch>, SnapshotError> {
        let mut mismatches = Vec::new();
        let mut wrong = |name, problem| mismatches.push(Mismatch::File { name, problem });
        let memory = FileFacts::sized(&dir.join(MEMORY))?;
        if memory.bytes != self.memory.bytes {
            wrong(MEMORY, "has another size than was written");
        } else if let Some(expected) = &self.memory.sha256
            && known_data_sha256(&dir.join(MEMORY))? != *expected
        {
            wrong(MEMORY, "has another content than was written");
        }
        let state = FileFacts::digested(&dir.join(STATE))?;
        if state.bytes != self.state.bytes {
            wrong(STATE, "has another size than was written");
        } else if self.state.sha256.is_some() && state.sha256 != self.state.sha256 {
            wrong(STATE, "has another content than was written");
        }
        Ok(mismatches)
    }
}

/// A kernel that is gone by now cannot be told.
fn kernel_sha256(kernel: &Path) -> Option<String> {
    known_sha256(kernel)
        .inspect_err(|error| tracing::warn!(%error, "a snapshot does not name its kernel"))
        .ok()
}

impl HostFacts {
    /// Of this host, for an engine.
    pub(crate) fn here(engine_version: &str, state_format: String, tsc_khz: Option<u64>) -> Self {
        let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let field = |name: &str| {
            let line = cpuinfo.lines().find(|line| line.starts_with(name));
            let value = line.and_then(|line| line.split_once(':'));
            value.map_or_else(String::new, |(_, value)| value.trim().to_owned())
        };
        let numbers: Vec<String> = ["cpu family", "model\t", "stepping"].map(field).into();
        Self {
            engine_version: engine_version.to_owned(),
            state_format,
            arch: std::env::consts::ARCH.to_owned(),
            cpu_vendor: field("vendor_id"),
            cpu_model: numbers.join("/"),
            kernel: rustix::system::uname()
                .release()
                .to_string_lossy()
                .into_owned(),
            tsc_khz,
        }
    }
}

#[derive(Default)]
struct Found(Vec<Mismatch>);

impl Found {
    fn differs<T: ToString>(&mut self, what: &'static str, snapshot: T, here: T) {
        let (snapshot, here) = (snapshot.to_string(), here.to_string());
        if snapshot != here {
            self.0.push(Mismatch::Differs {
                what,
                snapshot,
                here,
            });
        }
    }
}

fn words(words: impl Iterator<Item = String>) -> String {
    words.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn facts() -> HostFacts {
        HostFacts {
            engine_version: "1.16.1".into(),
            state_format: "10.0.0".into(),
            arch: "x86_64".into(),
            cpu_vendor: "V".into(),
            cpu_model: "6/1/2".into(),
            kernel: "6.1".into(),
            tsc_khz: Some(2_000_000),
        }
    }

    fn manifest() -> Manifest {
        Manifest {
            format: FORMAT,
            kind: SnapshotKind::Full,
            engine: EngineKind::Firecracker,
            host: facts(),
            vcpus: 1,
            mem_mib: 64,
            jailed: true,
            agent: true,
            disks: vec![],
            nics: vec![],
            kernel_sha256: None,
            memory: FileFacts {
                bytes: 3,
                sha256: None,
            },
            state: FileFacts {
                bytes: 2,
                sha256: Some("x".into()),
            },
        }
    }

    #[test]
    fn each_fact_that_matters_is_named() {
        let manifest = manifest();
        let mut here = facts();
        here.kernel = "6.2".into();
        here.tsc_khz = Some(2_000_100);
        assert_eq!(manifest.mismatches(EngineKind::Firecracker, &here), []);
        here.state_format = "11.0.0".into();
        here.cpu_model = "6/1/3".into();
        here.tsc_khz = Some(2_100_000);
        let found = manifest.mismatches(EngineKind::Qemu, &here);
        let words: Vec<String> = found.iter().map(ToString::to_string).collect();
        assert_eq!(words.len(), 4, "{words:?}");
        assert_eq!(
            words[1],
            "form of the engine's snapshots: 10.0.0 in the snapshot, 11.0.0 here"
        );
    }

    #[test]
    fn a_file_that_was_changed_is_named() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(MEMORY), "abc").unwrap();
        std::fs::write(dir.path().join(STATE), "de").unwrap();
        let mut manifest = manifest();
        manifest.state = FileFacts::digested(&dir.path().join(STATE)).unwrap();
        manifest.write(&dir.path().join(MANIFEST)).unwrap();
        let manifest = Manifest::read(dir.path()).unwrap();
        assert_eq!(manifest.mismatches_of_files(dir.path()).unwrap(), []);
        std::fs::write(dir.path().join(STATE), "dx").unwrap();
        std::fs::write(dir.path().join(MEMORY), "abcd").unwrap();
        assert_eq!(manifest.mismatches_of_files(dir.path()).unwrap().len(), 2);
        std::fs::remove_file(dir.path().join(STATE)).unwrap();
        assert!(manifest.mismatches_of_files(dir.path()).is_err());
    }

    #[test]
    fn a_sealed_memory_and_a_kernel_are_held_against_their_digests() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        std::fs::write(at(MEMORY), "abc").unwrap();
        std::fs::write(at(STATE), "de").unwrap();
        std::fs::write(at("vmlinux"), "kernel").unwrap();
        let mut manifest = manifest();
        manifest.state = FileFacts::digested(&at(STATE)).unwrap();
        manifest.kernel_sha256 = kernel_sha256(&at("vmlinux"));
        manifest.write(&at(MANIFEST)).unwrap();
        assert_eq!(manifest.mismatches_of_kernel(&at("vmlinux")).unwrap(), []);
        assert_eq!(manifest.mismatches_of_kernel(Path::new("")).unwrap(), []);
        std::fs::write(at("vmlinux"), "another").unwrap();
        let found = manifest.mismatches_of_kernel(&at("vmlinux")).unwrap();
        assert!(found[0].to_string().starts_with("kernel of the guest: "));

        // As long as nobody has sealed it, the content of the memory is not looked at.
        std::fs::write(at(MEMORY), "abd").unwrap();
        assert_eq!(manifest.mismatches_of_files(dir.path()).unwrap(), []);
        let sealed = crate::snapshot::seal(dir.path()).unwrap();
        assert_eq!(Manifest::read(dir.path()).unwrap(), sealed);
        assert_eq!(sealed.mismatches_of_files(dir.path()).unwrap(), []);
        std::fs::write(at(MEMORY), "xyz").unwrap();
        let found = sealed.mismatches_of_files(dir.path()).unwrap();
        assert_eq!(
            found[0].to_string(),
            "its memory has another content than was written"
        );
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let dir = tempfile::tempdir().unwrap();
            std::fs::write(dir.path().join(MANIFEST), bytes).unwrap();
            let _ = Manifest::read(dir.path());
        }
    }
}
