//! Snapshots of one Firecracker: loaded at its start, made while it is paused.

use std::path::{Path, PathBuf};
use std::sync::{MutexGuard, PoisonError};

use serde_json::Value;

use super::{FirecrackerMachine, boxed, call_error, promise, send};
use crate::error::MachineError;
use crate::firecracker::api::Client;
use crate::firecracker::config::{
    CONFIGURE, FirecrackerVersion, Metadata, SnapshotCreate, SnapshotType,
};
use crate::firecracker::snapshot::{Load, Written};
use crate::firecracker::version::diff_corrupts;
use crate::instance::{CallError, FIRST_CALL};
use crate::jail::{Filtered, give_to};
use crate::machine::{MachineSpec, MachineState};
use crate::snapshot::{
    DiskFacts, FileFacts, MEMORY, Manifest, Partial, STATE, SnapshotError, SnapshotKind,
    SnapshotTarget, blocking, clone_file,
};

impl FirecrackerMachine {
    /// Nothing may be configured before a load, or it is refused.
    pub(super) async fn load_guest(
        &self,
        client: &Client,
        spec: &MachineSpec,
        load: &Load,
    ) -> Result<MachineState, MachineError> {
        let asked = async {
            let version = client.get::<FirecrackerVersion>("/version", CONFIGURE);
            version.await.map_err(call_error)
        };
        self.instance.call(FIRST_CALL, "starting", asked).await?;
        self.instance.verify(promise(Filtered::One)).await?;
        let loaded = send(client, &load.request);
        self.instance
            .call("load the snapshot", "loading a snapshot", boxed(loaded))
            .await?;
        // The service's configuration is in the snapshot, what it tells is not.
        let content = spec.options.metadata.as_ref();
        if let Some(content) = content.and_then(|options| options.content.as_ref()) {
            let content = Metadata(content.clone());
            let told = send(client, &content);
            self.instance
                .call("set metadata", "setting metadata", boxed(told))
                .await?;
        }
        Ok(if load.paused {
            MachineState::Paused
        } else {
            MachineState::Running
        })
    }

    /// Makes one of a machine that is paused.
    pub(super) async fn make_snapshot(
        &self,
        target: &SnapshotTarget,
    ) -> Result<Manifest, MachineError> {
        let call = "make a snapshot";
        let _one_at_a_time = self.lifecycle.lock().await;
        self.instance.require(MachineState::Paused, call)?;
        let client = self.client(call)?;
        let disks = self.disks_now(&client).await?;
        let partial = self.write_snapshot(&client, target).await?;
        let (record, host) = (self.instance.record().clone(), self.known.host.clone());
        let kind = target.kind;
        let manifest = blocking(move || {
            let memory = FileFacts::sized(&partial.memory())?;
            let state = FileFacts::digested(&partial.state())?;
            let manifest = Manifest::of(&record, kind, disks, host, (memory, state));
            partial.publish(&manifest)?;
            Ok(manifest)
        })
        .await?;
        *self.last_snapshot() = Some(target.dir.clone());
        Ok(manifest)
    }

    /// Makes Firecracker tell the guest, when it goes on, that its connections are gone.
    ///
    /// It does so whenever it saves the state of its devices, and only then lets connections live
    /// on in the versions where a plain resume would hang them. The state is saved before it is
    /// written, so a snapshot that cannot be written is all that it takes.
    pub(super) async fn reset_connections(&self) -> Result<(), MachineError> {
        let call = "resume";
        let _one_at_a_time = self.lifecycle.lock().await;
        self.instance.require(MachineState::Paused, call)?;
        let client = self.client(call)?;
        let nowhere = Path::new("/nonexistent");
        let request = SnapshotCreate {
            mem_file_path: nowhere.join(MEMORY),
            snapshot_path: nowhere.join(STATE),
            snapshot_type: Some(SnapshotType::Full),
            mem_mib: 0,
        };
        let asked = async {
            match send(&client, &request).await {
                Ok(()) | Err(CallError::Refused { .. }) => Ok(()),
                Err(error) => Err(error),
            }
        };
        self.instance.call(call, "resuming", asked).await
    }

    fn last_snapshot(&self) -> MutexGuard<'_, Option<PathBuf>> {
        self.last_snapshot
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// What a difference would be written into: a copy of the last snapshot's memory.
    fn base(&self, kind: SnapshotKind) -> Result<Option<PathBuf>, SnapshotError> {
        let record = self.instance.record();
        match kind {
            SnapshotKind::Full => Ok(None),
            SnapshotKind::Template => Err(SnapshotError::Unsupported(
                "Firecracker's memory is no file that could be taken over: make a full snapshot",
            )),
            SnapshotKind::Diff if !record.shape.tracks_dirty_pages => {
                Err(SnapshotError::Unsupported(
                    "the machine was not made to track its changes: make a full snapshot",
                ))
            }
            SnapshotKind::Diff if diff_corrupts(self.known.version, record.shape.mem_mib) => {
                Err(SnapshotError::Unsupported(
                    "this version of Firecracker corrupts diff snapshots of so much memory",
                ))
            }
            SnapshotKind::Diff => match &*self.last_snapshot() {
                Some(dir) => Ok(Some(dir.join(MEMORY))),
                None => Err(SnapshotError::NoBase),
            },
        }
    }

    /// Has the files of a snapshot written and takes them over.
    async fn write_snapshot(
        &self,
        client: &Client,
        target: &SnapshotTarget,
    ) -> Result<Partial, MachineError> {
        let base = self.base(target.kind)?;
        // Whatever happens from here on, Firecracker may have forgotten what has changed.
        *self.last_snapshot() = None;
        let dir = target.dir.clone();
        let partial = blocking(move || Partial::begin(&dir)).await?;
        let jail = self.instance.record().jail.clone();
        let written = Written::new(&self.place, jail.is_some(), &partial);
        if let Some(base) = &base {
            let (base, memory) = (base.clone(), written.memory.clone());
            blocking(move || clone_file(&base, &memory)).await?;
            if let Some(jail) = &jail {
                give_to(&written.memory, jail.uid, jail.gid)?;
            }
        }
        let request = SnapshotCreate {
            mem_file_path: written.inside_memory.clone(),
            snapshot_path: written.inside_state.clone(),
            snapshot_type: Some(match target.kind {
                SnapshotKind::Diff => SnapshotType::Diff,
                SnapshotKind::Full | SnapshotKind::Template => SnapshotType::Full,
            }),
            mem_mib: self.instance.record().shape.mem_mib,
        };
        let create = send(client, &request);
        let created = self
            .instance
            .call("make a snapshot", "making a snapshot", boxed(create))
            .await;
        if let Err(error) = created {
            written.remove();
            return Err(error);
        }
        if jail.is_none() {
            return Ok(partial);
        }
        let taken = blocking(move || {
            partial.take(&written.memory, MEMORY)?;
            partial.take(&written.state, STATE)?;
            Ok(partial)
        });
        taken.await
    }

    /// Where Firecracker has its disks now: they may have changed since it was started.
    async fn disks_now(&self, client: &Client) -> Result<Vec<DiskFacts>, MachineError> {
        let read = async {
            let config = client.get::<Value>("/vm/config", CONFIGURE);
            config.await.map_err(call_error)
        };
        let config = self
            .instance
            .call("tell its disks", "answering", read)
            .await?;
        let mut disks = self.instance.record().shape.disks.clone();
        for disk in &mut disks {
            let drives = config["drives"].as_array().into_iter().flatten();
            let path = drives
                .filter(|drive| drive["drive_id"] == *disk.id)
                .find_map(|drive| drive["path_on_host"].as_str());
            if let Some(path) = path {
                disk.path = path.into();
            }
        }
        Ok(disks)
    }
}
