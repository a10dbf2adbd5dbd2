//! Making a snapshot of the sandbox's machine: halted, captured, and going on before the rest is done.

use std::path::PathBuf;
use std::time::Duration;

use kiln_vmm::{EngineKind, MachineState, SnapshotKind, SnapshotTarget};
use tracing::{info, warn};

use super::driver::{Driver, Live};
use super::{SandboxState, random_id};
use crate::error::{Error, ErrorCode};
use crate::events::EventKind;
use crate::failpoint;
use crate::gc::allocated;
use crate::hooks::{HookCall, HookPoint};
use crate::snapshot::{
    self, AfterSnapshot, NewSnapshot, SnapshotInfo, SnapshotRecord, making_failed, unsupported,
};
use crate::store::{SandboxRow, SnapshotRow, SnapshotStage};

impl Driver {
    /// The new snapshot's id. What fails leaves the sandbox as it was, and nothing else.
    pub(super) async fn snapshot(&mut self, wanted: &NewSnapshot) -> Result<String, Error> {
        let draft = self.draft(wanted)?;
        self.ask_hooks(HookPoint::BeforeSnapshot).await?;
        self.shared.snapshots.begin(draft.clone()).await?;
        failpoint::reach("snapshot.intended");
        let id = draft.id.clone();
        let was_running = self.row.state == SandboxState::Running;
        match self.capture(&id).await {
            Ok(version) if wanted.then == AfterSnapshot::Stop => {
                // It has its memory until that is safe.
                let made = self.publish_snapshot(draft, version).await;
                let then = made.as_ref().map(|()| AfterSnapshot::Stop);
                let went_on = self.go_on(then.unwrap_or_default(), was_running).await;
                made.and(went_on)?;
            }
            Ok(version) => {
                let went_on = self.go_on(wanted.then, was_running).await;
                failpoint::reach("snapshot.resumed");
                let made = self.publish_snapshot(draft, version).await;
                made.and(went_on)?;
            }
            Err(failure) => {
                if let Err(error) = self.go_on(AfterSnapshot::Resume, was_running).await {
                    warn!(error = %error.message(), "a machine that was halted stays so");
                }
                self.abandon(&id, &failure).await;
                return Err(failure);
            }
        }
        Ok(id)
    }

    /// All that can be refused before anything is touched.
    fn draft(&self, wanted: &NewSnapshot) -> Result<SnapshotRow, Error> {
        let live = match (&self.live, self.row.state) {
            (Some(live), SandboxState::Running | SandboxState::Paused) => live,
            _ => return Err(self.not_now("make a snapshot of")),
        };
        check_supported(&self.row, live)?;
        self.check_room()?;
        Ok(SnapshotRow {
            id: random_id()?,
            name: wanted.name.clone(),
            stage: SnapshotStage::Making,
            sandbox: self.row.id.clone(),
            record: record(&self.row, live),
            created_at_ms: crate::clock::now_ms(),
        })
    }

    fn check_room(&self) -> Result<(), Error> {
        let scratch = self.scratch();
        if let Some(scratch) = &scratch
            && !scratch.exists()
        {
            let message = format!("the scratch disk {} is gone", scratch.display());
            return Err(Error::new(ErrorCode::SnapshotFailed, message));
        }
        let memory = u64::from(self.row.spec.mem_mib) << 20;
        let most = memory + scratch.as_deref().map_or(0, allocated);
        snapshot::room_for(&self.shared.directories.snapshots(), most)
    }

    /// `None` where the guest's writes are in its memory.
    fn scratch(&self) -> Option<PathBuf> {
        let scratch = || self.shared.directories.scratch(&self.row.id);
        (!self.row.spec.tmpfs).then(scratch)
    }

    /// Memory, state and disk of one moment; the machine is halted then. The engine's version.
    async fn capture(&self, id: &str) -> Result<String, Error> {
        let Some(live) = &self.live else {
            return Err(self.not_now("make a snapshot of"));
        };
        if live.machine.state() == MachineState::Running {
            live.machine.pause().await.map_err(making_failed)?;
        }
        failpoint::reach("snapshot.paused");
        let target = SnapshotTarget {
            dir: self.shared.directories.snapshot(id),
            kind: SnapshotKind::Full,
        };
        let captured = live.machine.snapshot(&target).await;
        let manifest = captured.map_err(making_failed)?;
        failpoint::reach("snapshot.memory");
        if let Some(scratch) = self.scratch() {
            let copy = self.shared.directories.snapshot_disk(id);
            snapshot::capture_disk(scratch, copy).await?;
        }
        failpoint::reach("snapshot.disk");
        Ok(manifest.host.engine_version)
    }

    /// What becomes of the sandbox, whose machine is halted.
    async fn go_on(&mut self, then: AfterSnapshot, was_running: bool) -> Result<(), Error> {
        match then {
            AfterSnapshot::Stop => {
                self.end(Duration::ZERO, "stopped with a snapshot").await?;
            }
            AfterSnapshot::Resume if was_running => {
                if let Err(failure) = self.resume_halted().await {
                    self.become_state(SandboxState::Paused).await?;
                    return Err(failure);
                }
            }
            AfterSnapshot::StayPaused if was_running => {
                self.become_state(SandboxState::Paused).await?;
            }
            AfterSnapshot::Resume | AfterSnapshot::StayPaused => {}
        }
        Ok(())
    }

    /// Makes it whole, or leaves nothing of it.
    async fn publish_snapshot(&self, draft: SnapshotRow, version: String) -> Result<(), Error> {
        let id = draft.id.clone();
        let made = self.complete_snapshot(draft, version).await;
        if let Err(failure) = &made {
            self.abandon(&id, failure).await;
        }
        made
    }

    /// Digests take long, and the guest runs meanwhile.
    async fn complete_snapshot(
        &self,
        draft: SnapshotRow,
        engine_version: String,
    ) -> Result<(), Error> {
        let directories = &self.shared.directories;
        let dir = directories.snapshot(&draft.id);
        let disk = self.scratch().map(|_| directories.snapshot_disk(&draft.id));
        let record = SnapshotRecord {
            engine_version,
            ..draft.record
        };
        let record = snapshot::complete(dir, disk, record).await?;
        failpoint::reach("snapshot.sealed");
        let row = SnapshotRow { record, ..draft };
        self.shared.snapshots.publish(row.clone()).await?;
        failpoint::reach("snapshot.published");
        info!(snapshot = row.id, "a snapshot was made");
        self.shared.events.publish(&self.row, EventKind::Snapshot);
        let mut call = HookCall::new(HookPoint::AfterSnapshot, self.info());
        call.snapshot = Some(SnapshotInfo::from(&row));
        self.shared.hooks.tell(&call).await;
        Ok(())
    }

    async fn abandon(&self, id: &str, failure: &Error) {
        if let Err(error) = snapshot::discard(&self.shared, id).await {
            warn!(error = %error.message(), "a snapshot that failed left something");
        }
        self.tell_hooks_of("snapshot", failure).await;
    }
}

/// Of what it is made, but for what is not known before it is.
fn record(row: &SandboxRow, live: &Live) -> SnapshotRecord {
    let machine = live.machine.record();
    SnapshotRecord {
        sandbox_name: row.spec.name.clone(),
        spec: row.spec.clone(),
        image: row.image.clone(),
        image_id: row.image_id.clone(),
        image_config: row.image_config.clone(),
        engine: machine.engine,
        engine_version: String::new(),
        has_card: !machine.shape.nics.is_empty(),
        main_session: row.main_session,
        disk_sha256: None,
        bytes: 0,
    }
}

/// Refuses what a snapshot cannot hold.
fn check_supported(row: &SandboxRow, live: &Live) -> Result<(), Error> {
    let machine = live.machine.record();
    if !row.spec.volumes.is_empty() {
        return Err(unsupported(
            "a snapshot does not hold volumes: what they hold would not fit the memory",
        ));
    }
    if let Some(name) = &row.spec.network.name {
        let message = format!(
            "the guest has an address in the network {name}, which a second one could not have too"
        );
        return Err(unsupported(message));
    }
    match machine.engine {
        EngineKind::Firecracker if machine.jail.is_none() => Err(unsupported(
            "without root Firecracker's disks cannot be moved: snapshots take root or QEMU",
        )),
        EngineKind::Qemu if row.snapshot.is_some() => Err(unsupported(
            "QEMU makes no snapshot of memory that is a snapshot's itself",
        )
        .with_hint("stop the sandbox and start it: it boots from its disk then")),
        EngineKind::Qemu if machine.shape.memory_fd.is_none() => Err(unsupported(
            "the machine was started by an older Kiln, which kept its memory otherwise",
        )
        .with_hint("restart the sandbox")),
        _ => Ok(()),
    }
}
