//! What a crash left half-made or half-removed.

use std::collections::HashSet;

use tracing::info;

use super::contents::discard;
use crate::error::{Error, ErrorCode};
use crate::host::Shared;
use crate::store::{SnapshotStage, Snapshots as Table};

/// Takes up the snapshots that are whole and removes the others. The sandboxes whose snapshot broke
/// off, which may be halted because of that.
pub(crate) async fn recover(shared: &Shared) -> Result<HashSet<String>, Error> {
    let rows = shared.store.write(|tx| Table(tx).all()).await?;
    let mut interrupted = HashSet::new();
    for row in rows {
        let (id, stage) = (row.id.clone(), row.stage);
        if stage == SnapshotStage::Making {
            interrupted.insert(row.sandbox.clone());
        }
        shared.snapshots.hold(row);
        if stage != SnapshotStage::Ready {
            discard(shared, &id).await?;
            info!(snapshot = id, "removed a snapshot that was never whole");
        }
    }
    sweep(shared)?;
    Ok(interrupted)
}

/// Directories that no row has.
fn sweep(shared: &Shared) -> Result<(), Error> {
    let dir = shared.directories.snapshots();
    let failed = |error: std::io::Error| {
        let message = format!("cannot sweep {}", dir.display());
        Error::new(ErrorCode::Host, message).with_source(error)
    };
    for entry in std::fs::read_dir(&dir).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let name = entry.file_name();
        if name
            .to_str()
            .is_none_or(|name| !shared.snapshots.owns(name))
        {
            std::fs::remove_dir_all(entry.path()).map_err(failed)?;
        }
    }
    Ok(())
}
