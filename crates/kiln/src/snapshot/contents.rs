//! The files of a snapshot: what the engine wrote, and the scratch disk beside it.
//!
//! They hold whatever the guest had in its memory, secrets too: the directory is its owner's alone.

use std::fs::{File, Permissions};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use kiln_image::{clone_file, free_space};
use kiln_vmm::snapshot::{known_data_sha256, seal};

use super::SnapshotRecord;
use crate::error::{Error, ErrorCode};
use crate::failpoint;
use crate::gc::allocated;
use crate::host::Shared;
use crate::material::blocking;

/// Left free on the disk: what guests write to a full one is lost without their being told.
const RESERVE: u64 = 64 << 20;

/// Refuses what would fill the disk. `bytes` is the most that is written into `dir`.
pub(crate) fn room_for(dir: &Path, bytes: u64) -> Result<(), Error> {
    let free = free_space(dir).map_err(|source| {
        let message = format!("cannot ask for the room in {}", dir.display());
        Error::new(ErrorCode::Host, message).with_source(source)
    })?;
    if free >= bytes.saturating_add(RESERVE) {
        return Ok(());
    }
    let (needed, free) = (bytes >> 20, free >> 20);
    let message = format!("a snapshot may take {needed} MiB, and {free} MiB are free");
    Err(Error::new(ErrorCode::DiskFull, message)
        .with_hint("`kiln snapshot ls` tells what snapshots take; `kiln image prune` frees more"))
}

/// Copies the scratch disk of a machine that is paused.
pub(crate) async fn capture_disk(from: PathBuf, to: PathBuf) -> Result<(), Error> {
    copied(from, to, true).await
}

/// Copies the scratch disk of a snapshot for a sandbox.
pub(super) async fn restore_disk(from: PathBuf, to: PathBuf) -> Result<(), Error> {
    copied(from, to, false).await
}

async fn copied(from: PathBuf, to: PathBuf, durable: bool) -> Result<(), Error> {
    blocking(move || {
        let copy = || {
            let source = File::open(&from)?;
            let mut options = File::options();
            let made = options.read(true).write(true).create_new(true).mode(0o600);
            let copy = made.open(&to)?;
            clone_file(&source, &copy)?;
            if durable {
                copy.sync_all()?;
            }
            Ok(())
        };
        copy().map_err(|source: std::io::Error| {
            let code = match source.kind() {
                std::io::ErrorKind::StorageFull => ErrorCode::DiskFull,
                std::io::ErrorKind::NotFound => ErrorCode::SnapshotDamaged,
                _ => ErrorCode::SnapshotFailed,
            };
            let message = format!("cannot copy the disk {}", from.display());
            Error::new(code, message).with_source(source)
        })
    })
    .await
}

/// Makes what was captured fit to be checked: digests of memory and disk, and no way in for others.
pub(crate) async fn complete(
    dir: PathBuf,
    disk: Option<PathBuf>,
    record: SnapshotRecord,
) -> Result<SnapshotRecord, Error> {
    blocking(move || {
        seal(&dir)?;
        let digest = |disk: PathBuf| {
            std::fs::set_permissions(&disk, Permissions::from_mode(0o400)).map_err(|source| {
                let message = format!("cannot protect {}", disk.display());
                Error::new(ErrorCode::SnapshotFailed, message).with_source(source)
            })?;
            Ok::<_, Error>(known_data_sha256(&disk)?)
        };
        Ok(SnapshotRecord {
            disk_sha256: disk.map(digest).transpose()?,
            bytes: allocated(&dir),
            ..record
        })
    })
    .await
}

/// Deletes the files of a snapshot, whole or half-made, and forgets it.
pub(crate) async fn discard(shared: &Shared, id: &str) -> Result<(), Error> {
    let dir = shared.directories.snapshot(id);
    shared.engines.forget_snapshot(&dir).await;
    for path in [partial(&dir), dir] {
        match tokio::fs::remove_dir_all(&path).await {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                let message = format!("cannot remove {}", path.display());
                return Err(Error::new(ErrorCode::Host, message).with_source(error));
            }
            _ => {}
        }
    }
    failpoint::reach("snapshot.deleted");
    shared.snapshots.forget(id).await
}

/// Where an engine writes before it publishes.
fn partial(dir: &Path) -> PathBuf {
    let mut name = dir.as_os_str().to_owned();
    name.push(".partial");
    name.into()
}
