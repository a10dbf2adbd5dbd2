//! Snapshots of sandboxes: a guest's memory, the state of its machine and its scratch disk, all of
//! one moment, under a name. New sandboxes begin where it ends.
//!
//! Owns the directory of each snapshot, which ones there are ([`registry`]), whether one fits a
//! machine that is about to start ([`restoring`]), what may be asked of a sandbox that begins from
//! one ([`asked`]), and what a crash left half-made ([`recover`]). Making one is the driver's work:
//! it holds the machine. A snapshot never changes once it is there.

mod asked;
mod contents;
mod error;
mod recover;
mod registry;
mod restoring;

use kiln_image::oci::ImageConfig;
use kiln_vmm::EngineKind;
use serde::{Deserialize, Serialize};

pub(crate) use asked::resolved;
pub(crate) use contents::{capture_disk, complete, discard, room_for};
pub(crate) use error::{failed as making_failed, unsupported};
pub(crate) use recover::recover;
pub(crate) use registry::Snapshots;
pub(crate) use restoring::{MainGoesOn, Restoring};

use crate::error::{Error, ErrorCode};
use crate::failpoint;
use crate::host::Host;
use crate::sandbox::SandboxSpec;
use crate::sandbox::driver::Command;
use crate::store::SnapshotRow;

/// A snapshot to make.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NewSnapshot {
    /// A name, unique among snapshots: 1 to 63 of `[a-z0-9-]`, a letter or digit at both ends.
    pub name: Option<String>,
    /// What becomes of its sandbox.
    pub then: AfterSnapshot,
}

/// What becomes of a sandbox of which a snapshot was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AfterSnapshot {
    /// It is as before: one that ran goes on.
    #[default]
    Resume,
    /// It stays paused.
    StayPaused,
    /// It is stopped, without being asked: all that it had is in the snapshot.
    Stop,
}

/// A snapshot as its owner sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotInfo {
    /// 12 characters of `[a-z0-9]`.
    pub id: String,
    /// Its name, if it was given one.
    pub name: Option<String>,
    /// Id of the sandbox that it was made of, which may be gone.
    pub sandbox: String,
    /// That sandbox's name then.
    pub sandbox_name: Option<String>,
    /// What that sandbox's root filesystem was made from.
    pub image: String,
    /// The only engine that can restore it.
    pub engine: EngineKind,
    /// Its version then.
    pub engine_version: String,
    /// Virtual processors.
    pub vcpus: u8,
    /// Memory in MiB.
    pub mem_mib: u32,
    /// Scratch disk in MiB; 0 when the guest's writes were in its memory.
    pub disk_mib: u64,
    /// What it takes of the host's disk.
    pub bytes: u64,
    /// When it was made, in ms since 1970.
    pub created_at_ms: u64,
    /// Ids of the sandboxes that need it: they run from its memory, or will.
    pub used_by: Vec<String>,
}

/// What is stored of a snapshot beside its names: of what it was made.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct SnapshotRecord {
    pub(crate) sandbox_name: Option<String>,
    pub(crate) spec: SandboxSpec,
    pub(crate) image: String,
    pub(crate) image_id: Option<String>,
    pub(crate) image_config: Option<ImageConfig>,
    pub(crate) engine: EngineKind,
    pub(crate) engine_version: String,
    /// Whether the guest has a network card.
    pub(crate) has_card: bool,
    /// Session of the main command, which goes on in every guest that is restored.
    pub(crate) main_session: Option<u64>,
    /// Digest of the scratch disk's data, where there is one.
    pub(crate) disk_sha256: Option<String>,
    pub(crate) bytes: u64,
}

impl Host {
    /// Makes a snapshot of a sandbox that runs or is paused. Goes on when the caller leaves; on
    /// failure nothing of it is left, and the sandbox is as before.
    ///
    /// # Errors
    /// [`ErrorCode::InvalidState`] without a machine, [`ErrorCode::NameTaken`],
    /// [`ErrorCode::SnapshotUnsupported`] for what a snapshot cannot hold, [`ErrorCode::DiskFull`],
    /// [`ErrorCode::SnapshotFailed`].
    pub async fn create_snapshot(
        &self,
        key: &str,
        wanted: NewSnapshot,
    ) -> Result<SnapshotInfo, Error> {
        if let Some(name) = &wanted.name {
            asked::check_name(name)?;
        }
        let made = self
            .ask(key, |reply| Command::Snapshot { wanted, reply })
            .await?;
        self.snapshot(&made).await
    }

    /// Every snapshot, newest first.
    ///
    /// # Errors
    /// None at present.
    pub async fn snapshots(&self) -> Result<Vec<SnapshotInfo>, Error> {
        let rows = self.shared.snapshots.all();
        Ok(rows.iter().map(|row| self.told(row)).collect())
    }

    /// One snapshot, by id, unique prefix of an id, or name.
    ///
    /// # Errors
    /// [`ErrorCode::SnapshotNotFound`], [`ErrorCode::Ambiguous`].
    pub async fn snapshot(&self, key: &str) -> Result<SnapshotInfo, Error> {
        Ok(self.told(&*self.shared.snapshots.find(key)?))
    }

    /// Removes a snapshot that no sandbox needs.
    ///
    /// # Errors
    /// [`ErrorCode::SnapshotNotFound`], [`ErrorCode::Ambiguous`], [`ErrorCode::SnapshotInUse`].
    pub async fn remove_snapshot(&self, key: &str) -> Result<(), Error> {
        let id = self.shared.snapshots.find(key)?.id.clone();
        // Goes on when the caller leaves.
        let shared = std::sync::Arc::clone(&self.shared);
        let removal = tokio::spawn(async move {
            shared.snapshots.begin_removal(&id).await?;
            failpoint::reach("snapshot.removing");
            discard(&shared, &id).await
        });
        removal.await.unwrap_or_else(|died| {
            let message = "the removal of a snapshot broke off";
            Err(Error::new(ErrorCode::Host, message).with_source(died))
        })
    }

    fn told(&self, row: &SnapshotRow) -> SnapshotInfo {
        let views = self.shared.views();
        let needs = views
            .iter()
            .filter(|view| view.row.snapshot.as_ref() == Some(&row.id));
        let mut used_by: Vec<String> = needs.map(|view| view.row.id.clone()).collect();
        used_by.sort();
        SnapshotInfo {
            used_by,
            ..SnapshotInfo::from(row)
        }
    }
}

impl From<&SnapshotRow> for SnapshotInfo {
    fn from(row: &SnapshotRow) -> Self {
        let (record, spec) = (&row.record, &row.record.spec);
        Self {
            id: row.id.clone(),
            name: row.name.clone(),
            sandbox: row.sandbox.clone(),
            sandbox_name: record.sandbox_name.clone(),
            image: record.image.clone(),
            engine: record.engine,
            engine_version: record.engine_version.clone(),
            vcpus: spec.vcpus,
            mem_mib: spec.mem_mib,
            disk_mib: if spec.tmpfs { 0 } else { spec.disk_mib },
            bytes: record.bytes,
            created_at_ms: row.created_at_ms,
            used_by: Vec::new(),
        }
    }
}
