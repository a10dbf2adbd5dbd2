//! Making and loading snapshots.

use std::borrow::Cow;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::request::{Request, Verb};
use crate::firecracker::version::Feature;

/// Slowest disk that a snapshot is waited for.
const SLOWEST_MIB_PER_S: u64 = 50;
/// What a snapshot may take besides its memory.
const CREATE: Duration = Duration::from_secs(30);
/// How long a load from a file may take: it maps the memory and reads none of it.
const LOAD: Duration = Duration::from_secs(30);

/// `PUT /snapshot/create`, of a paused machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SnapshotCreate {
    /// File for the guest's memory.
    pub mem_file_path: PathBuf,
    /// File for everything else.
    pub snapshot_path: PathBuf,
    /// Whole or since the last one; whole when unset.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub snapshot_type: Option<SnapshotType>,
    /// Size of the memory, which decides how long it may take.
    #[serde(skip)]
    pub mem_mib: u32,
}

/// How much of the memory is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SnapshotType {
    /// All of it.
    Full,
    /// What has changed since the last one, into a sparse file.
    Diff,
}

impl Request for SnapshotCreate {
    fn verb(&self) -> Verb {
        Verb::Put
    }

    fn path(&self) -> Cow<'static, str> {
        "/snapshot/create".into()
    }

    fn needs(&self) -> Vec<Feature> {
        Vec::new()
    }

    fn deadline(&self) -> Duration {
        CREATE + Duration::from_secs(u64::from(self.mem_mib) / SLOWEST_MIB_PER_S)
    }
}

/// `PUT /snapshot/load`, into a Firecracker that was told nothing else.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SnapshotLoad {
    /// File with everything but the memory.
    pub snapshot_path: PathBuf,
    /// Where the memory is.
    pub mem_backend: MemoryBackend,
    /// Whether diff snapshots can be made cheaply of what is loaded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub track_dirty_pages: Option<bool>,
    /// The same in versions that do not know the other.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub enable_diff_snapshots: Option<bool>,
    /// Whether the guest runs at once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resume_vm: Option<bool>,
    /// Other TAPs than those of the snapshot.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub network_overrides: Vec<NetworkOverride>,
    /// Another socket than the snapshot's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vsock_override: Option<VsockOverride>,
    /// Whether the guest's clock is stepped to the host's (x86-64, hosts since Linux 5.16).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clock_realtime: Option<bool>,
}

impl SnapshotLoad {
    /// With nothing but the two files.
    #[must_use]
    pub fn of(snapshot_path: PathBuf, mem_backend: MemoryBackend) -> Self {
        Self {
            snapshot_path,
            mem_backend,
            track_dirty_pages: None,
            enable_diff_snapshots: None,
            resume_vm: None,
            network_overrides: Vec::new(),
            vsock_override: None,
            clock_realtime: None,
        }
    }
}

impl Request for SnapshotLoad {
    fn verb(&self) -> Verb {
        Verb::Put
    }

    fn path(&self) -> Cow<'static, str> {
        "/snapshot/load".into()
    }

    fn needs(&self) -> Vec<Feature> {
        [
            (
                self.track_dirty_pages.is_some(),
                Feature::TrackDirtyPagesOnLoad,
            ),
            (
                !self.network_overrides.is_empty(),
                Feature::NetworkOverrides,
            ),
            (self.vsock_override.is_some(), Feature::VsockOverride),
            (self.clock_realtime.is_some(), Feature::ClockRealtime),
        ]
        .into_iter()
        .filter_map(|(used, feature)| used.then_some(feature))
        .collect()
    }

    fn deadline(&self) -> Duration {
        LOAD
    }
}

/// Where a snapshot's memory is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct MemoryBackend {
    /// A file that is mapped, or a process that serves page faults.
    pub backend_type: MemoryBackendType,
    /// The file, or the socket of the process.
    pub backend_path: PathBuf,
}

/// Kind of a [`MemoryBackend`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum MemoryBackendType {
    /// A file that is mapped privately; it must not change as long as the machine lives.
    File,
    /// A process that serves page faults.
    Uffd,
}

/// Another TAP for an interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct NetworkOverride {
    /// Name of the interface.
    pub iface_id: String,
    /// The TAP.
    pub host_dev_name: String,
}

/// Another socket for the vsock.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct VsockOverride {
    /// Its path.
    pub uds_path: PathBuf,
}
