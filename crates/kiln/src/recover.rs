//! After a crash: compare what is stored with what exists; adopt, finish or undo.

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use kiln_vmm::{AdoptError, MachineRecord, MachineState};
use tracing::{info, warn};

use crate::error::{Error, ErrorCode};
use crate::gc;
use crate::host::Shared;
use crate::network;
use crate::orphans;
use crate::sandbox::driver::{self, Live};
use crate::sandbox::{RestartPolicy, SandboxState, launch};
use crate::snapshot;
use crate::store::{Intent, SandboxRow, Sandboxes};

/// Brings every stored sandbox to a state that is true, and starts its driver.
pub(crate) async fn recover(shared: &Arc<Shared>) -> Result<(), Error> {
    let interrupted = snapshot::recover(shared).await?;
    let rows = shared.store.write(|tx| Sandboxes(tx).all()).await?;
    let known: HashSet<String> = rows.iter().map(|row| row.id.clone()).collect();
    let mut adopted = Vec::new();
    for row in rows {
        let halted = interrupted.contains(&row.id);
        adopted.extend(recover_one(shared, row, halted).await?);
    }
    let lives = known.clone();
    shared
        .materials
        .retain_pins(move |id| lives.contains(id))
        .await?;
    shared.networks.sweep(adopted).await?;
    for dir in [
        shared.directories.machines(),
        shared.directories.sandboxes(),
    ] {
        sweep_unknown(&dir, &known)?;
    }
    gc::sweep_machines(shared).await
}

/// Returns its id if its machine was adopted. One that may be halted only for a snapshot that broke
/// off goes on.
async fn recover_one(
    shared: &Arc<Shared>,
    mut row: SandboxRow,
    halted: bool,
) -> Result<Option<String>, Error> {
    if row.spec.ephemeral {
        row.intent = Some(Intent::Remove);
    }
    if matches!(row.state, SandboxState::Running | SandboxState::Paused)
        && row.intent.is_none()
        && let Some(live) = adopted(shared, &row).await
    {
        info!(id = %row.id, "adopted");
        if halted && row.state == SandboxState::Running {
            go_on(&row, &live).await;
        }
        // Paused and not written down, or the other way round: the machine knows.
        row.state = match live.machine.state() {
            MachineState::Paused => SandboxState::Paused,
            _ => SandboxState::Running,
        };
        let id = row.id.clone();
        shared.adopt_driver(driver::spawn(Arc::clone(shared), row, Some(live)));
        return Ok(Some(id));
    }
    match &row.machine {
        Some(record) => end(record).await?,
        None if may_have_a_machine(&row) => orphans::end(shared, &row.id).await?,
        None => {}
    }
    if row.intent == Some(Intent::Remove) || goes_with_its_machine(&row) {
        finish_removal(shared, &row).await?;
        return Ok(None);
    }
    settle(&mut row);
    remove_runtime(&shared.directories.machine(&row.id))?;
    let stored = row.clone();
    shared
        .store
        .write(move |tx| Sandboxes(tx).update(&stored))
        .await?;
    shared.adopt_driver(driver::spawn(Arc::clone(shared), row, None));
    Ok(None)
}

/// Lets a machine go on that nobody wanted paused.
async fn go_on(row: &SandboxRow, live: &Live) {
    if live.machine.state() == MachineState::Paused
        && let Err(error) = live.machine.resume().await
    {
        warn!(id = %row.id, %error, "a machine that was halted for a snapshot stays so");
    }
}

/// The machine of a row, if the very process that was recorded still runs and answers.
async fn adopted(shared: &Shared, row: &SandboxRow) -> Option<Live> {
    let machine = match shared.engines.adopt(row.machine.as_ref()?).await {
        Ok(machine) => machine,
        Err(AdoptError::Gone { .. }) => return None,
        Err(error) => {
            warn!(id = %row.id, %error, "a machine cannot be adopted and is ended");
            return None;
        }
    };
    // Ended rather than left with rules that nobody looks after.
    let network = network::adopt(&shared.networks, row, machine.record().process.pid).await;
    let network = network
        .inspect_err(
            |error| warn!(id = %row.id, error = %error.message(), "a machine's network is gone"),
        )
        .ok()?;
    let link = launch::open_link(row, machine.as_ref());
    let claimed = link.and_then(|link| Ok((link, shared.volumes.claim(row)?)));
    claimed
        .inspect_err(|error| warn!(id = %row.id, %error, "a machine is no use and is ended"))
        .ok()
        .map(|(link, volumes)| Live::new(machine, link, network, volumes))
}

/// One that was on its way up, or is on its way out, has a machine that may not be written down.
fn may_have_a_machine(row: &SandboxRow) -> bool {
    row.intent.is_some() || row.state.is_live()
}

/// Ends what is left of a row's machine: by its recorded identity, so never a stranger.
async fn end(record: &MachineRecord) -> Result<(), Error> {
    kiln_vmm::discard(record, Duration::ZERO)
        .await
        .map(drop)
        .map_err(|source| {
            Error::new(ErrorCode::Host, "cannot end a left-over machine").with_source(source)
        })
}

/// One that is removed when it stops, and has.
fn goes_with_its_machine(row: &SandboxRow) -> bool {
    row.spec.remove_on_stop && row.started_at_ms.is_some()
}

/// What a row says once its machine, if any, has been ended.
fn settle(row: &mut SandboxRow) {
    let (state, reason) = match (row.intent, row.state) {
        (Some(Intent::Start), _) | (None, SandboxState::Starting) => (
            SandboxState::Error,
            Some("the daemon died while it started the sandbox"),
        ),
        (Some(Intent::Stop), _) | (None, SandboxState::Stopping) => {
            row.wants_running = false;
            (SandboxState::Stopped, None)
        }
        (_, SandboxState::Running | SandboxState::Paused) => (
            SandboxState::Stopped,
            Some("the machine ended while no daemon ran"),
        ),
        (_, rest) => (rest, None),
    };
    if state == SandboxState::Stopped {
        // It was more than on its way up: what was in its memory is gone.
        row.snapshot = None;
    }
    row.state = state;
    row.intent = None;
    row.machine = None;
    row.expires_at_ms = None;
    row.main_session = None;
    row.main_exit = None;
    row.wants_running &= row.spec.restart != RestartPolicy::No;
    if let Some(reason) = reason {
        row.reason = Some(reason.to_owned());
    }
}

async fn finish_removal(shared: &Shared, row: &SandboxRow) -> Result<(), Error> {
    shared.delete_files(&row.id).await?;
    let id = row.id.clone();
    shared
        .store
        .write(move |tx| Sandboxes(tx).delete(&id))
        .await?;
    info!(id = %row.id, "finished a removal that was begun");
    Ok(())
}

/// Directories named by ids that no row has: what a crash left between files and row.
fn sweep_unknown(dir: &Path, known: &HashSet<String>) -> Result<(), Error> {
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(unreadable(dir, error)),
    };
    for entry in entries {
        let entry = entry.map_err(|error| unreadable(dir, error))?;
        let name = entry.file_name();
        if name.to_str().is_some_and(|name| known.contains(name)) {
            continue;
        }
        info!(path = %entry.path().display(), "removing what no sandbox owns");
        remove_runtime(&entry.path())?;
    }
    Ok(())
}

fn remove_runtime(path: &Path) -> Result<(), Error> {
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            let message = format!("cannot remove {}", path.display());
            Err(Error::new(ErrorCode::Host, message).with_source(error))
        }
        _ => Ok(()),
    }
}

fn unreadable(dir: &Path, error: std::io::Error) -> Error {
    Error::new(ErrorCode::Host, format!("cannot read {}", dir.display())).with_source(error)
}
