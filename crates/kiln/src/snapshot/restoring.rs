//! A sandbox that is about to begin from a snapshot.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use kiln_vmm::snapshot::{fitting, known_data_sha256};
use kiln_vmm::{Engine, EngineKind, Restore};

use super::SnapshotRecord;
use super::contents::{self, room_for};
use super::error::{damaged, unsupported};
use crate::error::{Error, ErrorCode};
use crate::gc::allocated;
use crate::host::Shared;
use crate::material::blocking;
use crate::store::SandboxRow;

/// The snapshot from which a start begins.
#[derive(Clone, Debug)]
pub(crate) struct Restoring {
    dir: PathBuf,
    disk: Option<PathBuf>,
    record: Arc<SnapshotRecord>,
}

/// A main command that runs already, in this session if it has one of its own.
#[derive(Clone, Copy, Debug)]
pub(crate) struct MainGoesOn {
    pub(crate) session: Option<u64>,
}

impl Restoring {
    /// What the next start of a sandbox begins from; `None` when it boots.
    pub(crate) fn of(shared: &Shared, row: &SandboxRow) -> Result<Option<Self>, Error> {
        let Some(id) = &row.snapshot else {
            return Ok(None);
        };
        let snapshot = shared.snapshots.row(id).ok_or_else(|| {
            let message = format!("snapshot {id}, which the sandbox begins from, is gone");
            Error::new(ErrorCode::SnapshotNotFound, message)
        })?;
        let record = Arc::new(snapshot.record.clone());
        Ok(Some(Self {
            dir: shared.directories.snapshot(id),
            disk: (!record.spec.tmpfs).then(|| shared.directories.snapshot_disk(id)),
            record,
        }))
    }

    /// Whether it can be restored here, and is as it was made: before anything is touched.
    pub(crate) async fn check(&self, engine: &Arc<dyn Engine>) -> Result<(), Error> {
        let unjailed = !rustix::process::geteuid().is_root();
        if engine.kind() == EngineKind::Firecracker && unjailed {
            return Err(unsupported(
                "without root Firecracker's disks cannot be moved: snapshots take root or QEMU",
            ));
        }
        let (this, engine) = (self.clone(), Arc::clone(engine));
        blocking(move || {
            fitting(&this.dir, engine.as_ref())?;
            this.check_disk()
        })
        .await
    }

    fn check_disk(&self) -> Result<(), Error> {
        let Some(disk) = &self.disk else {
            return Ok(());
        };
        let digest = known_data_sha256(disk)?;
        if self.record.disk_sha256.as_ref() == Some(&digest) {
            return Ok(());
        }
        Err(damaged(
            "the snapshot's disk has another content than was written",
        ))
    }

    /// Makes the sandbox's own scratch disk. One that is there has writes of an attempt that failed,
    /// which fit no other memory.
    pub(crate) async fn place_disk(&self, at: &Path) -> Result<(), Error> {
        let Some(disk) = &self.disk else {
            return Ok(());
        };
        match std::fs::remove_file(at) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                let message = format!("cannot remove {}", at.display());
                return Err(Error::new(ErrorCode::Host, message).with_source(error));
            }
            _ => {}
        }
        room_for(at.parent().unwrap_or(at), allocated(disk))?;
        contents::restore_disk(disk.clone(), at.to_owned()).await
    }

    /// What the engine is told.
    pub(crate) fn restore(&self) -> Restore {
        Restore {
            dir: self.dir.clone(),
            paused: false,
            uffd: None,
            step_clock: false,
        }
    }

    /// Whether the main command of a sandbox is the one that goes on in its guest.
    pub(crate) fn main_goes_on(&self, row: &SandboxRow) -> Option<MainGoesOn> {
        let session = self.record.main_session;
        (row.spec.command == self.record.spec.command).then_some(MainGoesOn { session })
    }
}
