//! The store: one SQLite file, the truth about what exists.
//!
//! Writes take a transaction and run on a blocking thread; constraints of the schema, not code,
//! hold what must be unique. Rooms above see rows as typed values, never SQL.

mod idempotency;
mod leases;
mod networks;
mod numbers;
mod sandboxes;
mod schema;
mod snapshots;
mod uids;

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rusqlite::{Connection, Transaction, TransactionBehavior};

pub(crate) use idempotency::{Created, Idempotency};
pub(crate) use leases::{Leases, Owner};
pub(crate) use networks::{NamedNetworks, NetworkRow};
pub(crate) use sandboxes::{Intent, SandboxRow, Sandboxes};
#[cfg(test)]
pub(crate) use snapshots::tests::snapshot_row;
pub(crate) use snapshots::{SnapshotRow, SnapshotStage, Snapshots};
pub(crate) use uids::Uids;

/// What can go wrong with the store.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StoreError {
    #[error("the store was written by a newer Kiln (schema {found}, this one knows {known})")]
    TooNew { found: u32, known: u32 },
    #[error("that name is taken")]
    NameTaken,
    #[error("there is no network of that name")]
    NoSuchNetwork,
    #[error("a sandbox has that network")]
    NetworkInUse,
    #[error("another network has that {0}")]
    NetworkTaken(&'static str),
    #[error("another snapshot has that name")]
    SnapshotNameTaken,
    #[error("there is no such snapshot")]
    NoSuchSnapshot,
    #[error("sandboxes need the snapshot: {0}")]
    SnapshotInUse(String),
    #[error("the store cannot be read or written")]
    Sqlite(#[from] rusqlite::Error),
    #[error("the store holds what this Kiln cannot read: {0}")]
    Corrupt(String),
}

/// A handle on the store; clones share it.
#[derive(Clone, Debug)]
pub(crate) struct Store {
    connection: Arc<Mutex<Connection>>,
}

/// Other processes (a backup, `sqlite3`) may hold the file for a moment.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

impl Store {
    /// Opens the file, brings its schema up to date.
    pub(crate) fn open(path: &Path) -> Result<Self, StoreError> {
        let mut connection = Connection::open(path)?;
        connection.busy_timeout(BUSY_TIMEOUT)?;
        connection.pragma_update(None, "journal_mode", "wal")?;
        // A power cut may lose the newest rows but never tears one: after a reboot no machine
        // of theirs runs either.
        connection.pragma_update(None, "synchronous", "normal")?;
        connection.pragma_update(None, "foreign_keys", true)?;
        schema::migrate(&mut connection)?;
        Ok(Self {
            connection: Arc::new(Mutex::new(connection)),
        })
    }

    /// Runs `work` in one transaction: all of it is kept, or nothing.
    pub(crate) async fn write<T, F>(&self, work: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnOnce(&Transaction<'_>) -> Result<T, StoreError> + Send + 'static,
    {
        self.blocking(move |connection| {
            let transaction =
                connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let value = work(&transaction)?;
            transaction.commit()?;
            Ok(value)
        })
        .await
    }

    async fn blocking<T, F>(&self, work: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnOnce(&mut Connection) -> Result<T, StoreError> + Send + 'static,
    {
        let connection = Arc::clone(&self.connection);
        let run = move || {
            // A panic inside a transaction rolled it back: the connection is still good.
            let mut connection = connection.lock().unwrap_or_else(PoisonError::into_inner);
            work(&mut connection)
        };
        match tokio::task::spawn_blocking(run).await {
            Ok(result) => result,
            Err(error) => Err(StoreError::Corrupt(format!("a store task died: {error}"))),
        }
    }
}

impl From<StoreError> for crate::Error {
    fn from(error: StoreError) -> Self {
        use crate::ErrorCode;
        match error {
            StoreError::NameTaken => Self::new(ErrorCode::NameTaken, error.to_string())
                .with_hint("choose another name, or remove the sandbox that has it"),
            StoreError::TooNew { .. } => Self::new(ErrorCode::DataDirTooNew, error.to_string())
                .with_hint("use that newer Kiln, or another data directory"),
            StoreError::NoSuchNetwork => Self::new(ErrorCode::NetworkNotFound, error.to_string())
                .with_hint("`kiln network ls` lists them; `kiln network create` makes one"),
            StoreError::NetworkInUse => Self::new(ErrorCode::NetworkInUse, error.to_string())
                .with_hint("remove the sandboxes that have it first"),
            StoreError::SnapshotNameTaken => Self::new(ErrorCode::NameTaken, error.to_string())
                .with_hint("choose another name, or remove the snapshot that has it"),
            StoreError::NoSuchSnapshot => Self::new(ErrorCode::SnapshotNotFound, error.to_string())
                .with_hint("`kiln snapshot ls` lists them"),
            StoreError::SnapshotInUse(_) => Self::new(ErrorCode::SnapshotInUse, error.to_string())
                .with_hint("stop or remove these first: they run from its memory, or will"),
            StoreError::NetworkTaken("name") => {
                Self::new(ErrorCode::NameTaken, error.to_string()).with_hint("choose another name")
            }
            StoreError::NetworkTaken("subnet") => {
                Self::new(ErrorCode::InvalidSubnet, error.to_string())
                    .with_hint("choose another subnet, or none: a free one is taken then")
            }
            StoreError::NetworkTaken(_) => {
                Self::new(ErrorCode::InvalidWireGuard, error.to_string())
                    .with_hint("a tunnel and its routing table belong to one network")
            }
            StoreError::Sqlite(_) | StoreError::Corrupt(_) => {
                Self::new(ErrorCode::Host, "the store failed").with_source(error)
            }
        }
    }
}
