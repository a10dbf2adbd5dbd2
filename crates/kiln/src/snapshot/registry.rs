//! Which snapshots there are: the store's rows, at hand for those who cannot wait for it.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

use crate::error::{Error, ErrorCode};
use crate::store::{SnapshotRow, SnapshotStage, Snapshots as Table, Store};

/// The snapshots of a host.
pub(crate) struct Snapshots {
    store: Store,
    /// By id, half-made ones too: their files are somebody's.
    rows: RwLock<HashMap<String, Arc<SnapshotRow>>>,
}

impl Snapshots {
    pub(crate) fn new(store: Store) -> Self {
        Self {
            store,
            rows: RwLock::default(),
        }
    }

    /// Writes down that one is about to be made.
    pub(crate) async fn begin(&self, row: SnapshotRow) -> Result<(), Error> {
        let stored = row.clone();
        self.store
            .write(move |tx| Table(tx).insert(&stored))
            .await?;
        self.hold(row);
        Ok(())
    }

    /// One that was begun is whole.
    pub(crate) async fn publish(&self, row: SnapshotRow) -> Result<(), Error> {
        let row = SnapshotRow {
            stage: SnapshotStage::Ready,
            ..row
        };
        let stored = row.clone();
        self.store
            .write(move |tx| Table(tx).update(&stored))
            .await?;
        self.hold(row);
        Ok(())
    }

    /// From now on nobody can begin from it.
    pub(super) async fn begin_removal(&self, id: &str) -> Result<(), Error> {
        let key = id.to_owned();
        self.store
            .write(move |tx| Table(tx).begin_removal(&key))
            .await?;
        let removing = self.row(id).map(|row| SnapshotRow {
            stage: SnapshotStage::Removing,
            ..(*row).clone()
        });
        removing.into_iter().for_each(|row| self.hold(row));
        Ok(())
    }

    pub(super) async fn forget(&self, id: &str) -> Result<(), Error> {
        let key = id.to_owned();
        self.store.write(move |tx| Table(tx).delete(&key)).await?;
        let mut rows = self.rows.write().unwrap_or_else(PoisonError::into_inner);
        rows.remove(id);
        Ok(())
    }

    pub(super) fn hold(&self, row: SnapshotRow) {
        let mut rows = self.rows.write().unwrap_or_else(PoisonError::into_inner);
        rows.insert(row.id.clone(), Arc::new(row));
    }

    pub(crate) fn row(&self, id: &str) -> Option<Arc<SnapshotRow>> {
        let rows = self.rows.read().unwrap_or_else(PoisonError::into_inner);
        rows.get(id).cloned()
    }

    /// Whole ones, newest first.
    pub(super) fn all(&self) -> Vec<Arc<SnapshotRow>> {
        let rows = self.rows.read().unwrap_or_else(PoisonError::into_inner);
        let whole = rows
            .values()
            .filter(|row| row.stage == SnapshotStage::Ready);
        let mut all: Vec<_> = whole.cloned().collect();
        all.sort_by(|a, b| (b.created_at_ms, &a.id).cmp(&(a.created_at_ms, &b.id)));
        all
    }

    /// By id, by name, then by unique prefix of an id.
    pub(crate) fn find(&self, key: &str) -> Result<Arc<SnapshotRow>, Error> {
        let all = self.all();
        let exact = all.iter().find(|row| row.id == key);
        let named = || all.iter().find(|row| row.name.as_deref() == Some(key));
        if let Some(row) = exact.or_else(named) {
            return Ok(Arc::clone(row));
        }
        let mut fitting = all
            .iter()
            .filter(|row| !key.is_empty() && row.id.starts_with(key));
        match (fitting.next(), fitting.next()) {
            (Some(row), None) => Ok(Arc::clone(row)),
            (Some(_), Some(_)) => {
                let message = format!("several snapshots begin with {key:?}");
                Err(Error::new(ErrorCode::Ambiguous, message)
                    .with_hint("give more characters of the id"))
            }
            (None, _) => {
                let message = format!("no snapshot has the id or name {key:?}");
                Err(Error::new(ErrorCode::SnapshotNotFound, message)
                    .with_hint("`kiln snapshot ls` lists them"))
            }
        }
    }

    /// Whether one lies upon this block image.
    pub(crate) fn uses_image(&self, id: &str) -> bool {
        let rows = self.rows.read().unwrap_or_else(PoisonError::into_inner);
        rows.values()
            .any(|row| row.record.image_id.as_deref() == Some(id))
    }

    /// Whether a directory, finished or not, is of one of them.
    pub(crate) fn owns(&self, name: &str) -> bool {
        let rows = self.rows.read().unwrap_or_else(PoisonError::into_inner);
        rows.contains_key(name.strip_suffix(".partial").unwrap_or(name))
    }
}
