//! Rows of sandboxes.

use kiln_image::oci::ImageConfig;
use kiln_vmm::{EngineKind, MachineRecord};
#[cfg(test)]
use rusqlite::OptionalExtension;
use rusqlite::{Row, Transaction, named_params};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::StoreError;
use super::networks::is_reference;
use super::snapshots::Snapshots;
use crate::exec::ExecExit;
use crate::sandbox::{SandboxSpec, SandboxState, Timings};

/// A multi-step operation that was begun and must be finished or undone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Intent {
    /// Launching: after a crash the half-made machine is undone.
    Start,
    /// Stopping: after a crash the machine is ended.
    Stop,
    /// Removing: after a crash the removal is finished.
    Remove,
}

impl Intent {
    fn as_str(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Stop => "stop",
            Self::Remove => "remove",
        }
    }

    fn parse(word: &str) -> Option<Self> {
        [Self::Start, Self::Stop, Self::Remove]
            .into_iter()
            .find(|intent| intent.as_str() == word)
    }
}

/// Everything that is stored of a sandbox.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct SandboxRow {
    pub(crate) id: String,
    pub(crate) spec: SandboxSpec,
    pub(crate) image: String,
    pub(crate) image_id: Option<String>,
    pub(crate) image_config: Option<ImageConfig>,
    pub(crate) state: SandboxState,
    pub(crate) intent: Option<Intent>,
    pub(crate) engine: Option<EngineKind>,
    pub(crate) machine: Option<MachineRecord>,
    pub(crate) reason: Option<String>,
    pub(crate) warnings: Vec<String>,
    pub(crate) timings: Option<Timings>,
    pub(crate) created_at_ms: u64,
    pub(crate) started_at_ms: Option<u64>,
    /// When its time-out ends it; only while it has a machine.
    pub(crate) expires_at_ms: Option<u64>,
    /// Restarts by its policy, in all.
    pub(crate) restarts: u32,
    /// Of these, how many in a row, none of which ran for long.
    pub(crate) restart_streak: u32,
    /// Whether it is meant to run: what a restart policy goes by when the daemon opens.
    pub(crate) wants_running: bool,
    /// Session of its main command.
    pub(crate) main_session: Option<u64>,
    /// How its main command ended last.
    pub(crate) main_exit: Option<ExecExit>,
    /// Whose memory its machine maps, or will when it starts; without, it boots.
    pub(crate) snapshot: Option<String>,
}

impl SandboxRow {
    /// The row of a sandbox that is just being created.
    pub(crate) fn new(id: String, spec: SandboxSpec, image: String) -> Self {
        Self {
            id,
            spec,
            image,
            image_id: None,
            image_config: None,
            state: SandboxState::Created,
            intent: None,
            engine: None,
            machine: None,
            reason: None,
            warnings: Vec::new(),
            timings: None,
            created_at_ms: crate::clock::now_ms(),
            started_at_ms: None,
            expires_at_ms: None,
            restarts: 0,
            restart_streak: 0,
            wants_running: false,
            main_session: None,
            main_exit: None,
            snapshot: None,
        }
    }
}

/// The table, within a transaction.
pub(crate) struct Sandboxes<'t>(pub(crate) &'t Transaction<'t>);

impl Sandboxes<'_> {
    /// Adds a row.
    pub(crate) fn insert(&self, row: &SandboxRow) -> Result<(), StoreError> {
        if let Some(snapshot) = &row.snapshot {
            Snapshots(self.0).expect_ready(snapshot)?;
        }
        let sql = "INSERT INTO sandboxes (id, name, spec, image, image_id, state, intent, engine,
                       machine, reason, warnings, timings, created_at_ms, started_at_ms, image_config,
                       expires_at_ms, restarts, wants_running, main_session, snapshot,
                       restart_streak, main_exit)
                   VALUES (:id, :name, :spec, :image, :image_id, :state, :intent, :engine,
                       :machine, :reason, :warnings, :timings, :created_at_ms, :started_at_ms,
                       :image_config, :expires_at_ms, :restarts, :wants_running, :main_session,
                       :snapshot, :restart_streak, :main_exit)";
        self.bind(sql, row).map_err(name_taken)
    }

    /// Writes every column of an existing row.
    pub(crate) fn update(&self, row: &SandboxRow) -> Result<(), StoreError> {
        let sql = "UPDATE sandboxes SET name = :name, spec = :spec, image = :image,
                       image_id = :image_id, state = :state, intent = :intent, engine = :engine,
                       machine = :machine, reason = :reason, warnings = :warnings,
                       timings = :timings, created_at_ms = :created_at_ms,
                       started_at_ms = :started_at_ms, image_config = :image_config,
                       expires_at_ms = :expires_at_ms, restarts = :restarts,
                       wants_running = :wants_running, main_session = :main_session,
                       snapshot = :snapshot,
                       restart_streak = :restart_streak, main_exit = :main_exit
                   WHERE id = :id";
        self.bind(sql, row).map_err(name_taken)
    }

    /// Deletes a row; one that is not there is no error.
    pub(crate) fn delete(&self, id: &str) -> Result<(), StoreError> {
        self.0
            .execute("DELETE FROM sandboxes WHERE id = ?1", [id])?;
        Ok(())
    }

    /// Every row, newest first.
    pub(crate) fn all(&self) -> Result<Vec<SandboxRow>, StoreError> {
        let mut statement = self
            .0
            .prepare_cached("SELECT * FROM sandboxes ORDER BY created_at_ms DESC, id")?;
        let mut rows = statement.query([])?;
        let mut all = Vec::new();
        while let Some(row) = rows.next()? {
            all.push(read(row)?);
        }
        Ok(all)
    }

    /// One row.
    #[cfg(test)]
    pub(crate) fn get(&self, id: &str) -> Result<Option<SandboxRow>, StoreError> {
        let mut statement = self
            .0
            .prepare_cached("SELECT * FROM sandboxes WHERE id = ?1")?;
        let found = statement.query_row([id], |row| Ok(read(row))).optional()?;
        found.transpose()
    }

    fn bind(&self, sql: &str, row: &SandboxRow) -> Result<(), StoreError> {
        self.0.prepare_cached(sql)?.execute(named_params! {
            ":id": row.id,
            ":name": row.spec.name,
            ":spec": json(&row.spec)?,
            ":image": row.image,
            ":image_id": row.image_id,
            ":state": row.state.as_str(),
            ":intent": row.intent.map(Intent::as_str),
            ":engine": row.engine.as_ref().map(json).transpose()?,
            ":machine": row.machine.as_ref().map(json).transpose()?,
            ":reason": row.reason,
            ":warnings": json(&row.warnings)?,
            ":timings": row.timings.as_ref().map(json).transpose()?,
            ":created_at_ms": row.created_at_ms,
            ":started_at_ms": row.started_at_ms,
            ":image_config": row.image_config.as_ref().map(json).transpose()?,
            ":expires_at_ms": row.expires_at_ms,
            ":restarts": row.restarts,
            ":wants_running": row.wants_running,
            ":main_session": row.main_session,
            ":restart_streak": row.restart_streak,
            ":main_exit": row.main_exit.as_ref().map(json).transpose()?,
            ":snapshot": row.snapshot,
        })?;
        Ok(())
    }
}

fn name_taken(error: StoreError) -> StoreError {
    match &error {
        StoreError::Sqlite(sqlite) if is_reference(sqlite) => StoreError::NoSuchNetwork,
        StoreError::Sqlite(sqlite)
            if sqlite.sqlite_error_code() == Some(rusqlite::ErrorCode::ConstraintViolation)
                && sqlite.to_string().contains("sandboxes.name") =>
        {
            StoreError::NameTaken
        }
        _ => error,
    }
}

fn read(row: &Row<'_>) -> Result<SandboxRow, StoreError> {
    let state: String = row.get("state")?;
    let intent: Option<String> = row.get("intent")?;
    Ok(SandboxRow {
        id: row.get("id")?,
        spec: parse(row.get("spec")?)?,
        image: row.get("image")?,
        image_id: row.get("image_id")?,
        image_config: optional(row.get("image_config")?)?,
        state: SandboxState::parse(&state)
            .ok_or_else(|| StoreError::Corrupt(format!("state {state:?}")))?,
        intent: intent
            .map(|word| {
                Intent::parse(&word).ok_or_else(|| StoreError::Corrupt(format!("intent {word:?}")))
            })
            .transpose()?,
        engine: optional(row.get("engine")?)?,
        machine: optional(row.get("machine")?)?,
        reason: row.get("reason")?,
        warnings: parse(row.get("warnings")?)?,
        timings: optional(row.get("timings")?)?,
        created_at_ms: row.get("created_at_ms")?,
        started_at_ms: row.get("started_at_ms")?,
        expires_at_ms: row.get("expires_at_ms")?,
        restarts: row.get("restarts")?,
        wants_running: row.get("wants_running")?,
        main_session: row.get("main_session")?,
        restart_streak: row.get("restart_streak")?,
        main_exit: optional(row.get("main_exit")?)?,
        snapshot: row.get("snapshot")?,
    })
}

pub(super) fn json<T: Serialize>(value: &T) -> Result<String, StoreError> {
    serde_json::to_string(value).map_err(|error| StoreError::Corrupt(error.to_string()))
}

pub(super) fn parse<T: DeserializeOwned>(text: String) -> Result<T, StoreError> {
    serde_json::from_str(&text).map_err(|error| StoreError::Corrupt(format!("{error}: {text}")))
}

fn optional<T: DeserializeOwned>(text: Option<String>) -> Result<Option<T>, StoreError> {
    text.map(parse).transpose()
}

#[cfg(test)]
mod tests {
    use super::super::Store;
    use super::*;

    fn row(id: &str, name: Option<&str>, created_at_ms: u64) -> SandboxRow {
        SandboxRow {
            id: id.into(),
            spec: SandboxSpec {
                name: name.map(Into::into),
                ..SandboxSpec::default()
            },
            image: "debian".into(),
            image_id: None,
            image_config: Some(ImageConfig {
                user: "app".into(),
                ..ImageConfig::default()
            }),
            state: SandboxState::Created,
            intent: Some(Intent::Start),
            engine: Some(EngineKind::Qemu),
            machine: None,
            reason: None,
            warnings: vec!["slow".into()],
            timings: Some(Timings {
                prepare_us: 7,
                ..Timings::default()
            }),
            created_at_ms,
            started_at_ms: Some(3),
            expires_at_ms: Some(9),
            restarts: 2,
            wants_running: true,
            main_session: Some(1),
            restart_streak: 1,
            main_exit: Some(ExecExit::Code(3)),
            snapshot: None,
        }
    }

    async fn store() -> (tempfile::TempDir, Store) {
        let dir = tempfile::tempdir().expect("dir");
        let store = Store::open(&dir.path().join("kiln.db")).expect("store");
        (dir, store)
    }

    #[tokio::test]
    async fn rows_round_trip_newest_first() {
        let (_dir, store) = store().await;
        let (old, new) = (row("a", Some("one"), 1), row("b", None, 2));
        let written = (old.clone(), new.clone());
        store
            .write(move |tx| {
                Sandboxes(tx).insert(&written.0)?;
                Sandboxes(tx).insert(&written.1)
            })
            .await
            .expect("insert");
        let all = store.write(|tx| Sandboxes(tx).all()).await.expect("all");
        assert_eq!(all, vec![new, old]);
    }

    #[tokio::test]
    async fn a_name_is_taken_once_and_the_transaction_is_undone_whole() {
        let (_dir, store) = store().await;
        let error = store
            .write(|tx| {
                Sandboxes(tx).insert(&row("a", Some("web"), 1))?;
                Sandboxes(tx).insert(&row("b", Some("web"), 2))
            })
            .await
            .expect_err("name taken");
        assert!(matches!(error, StoreError::NameTaken), "{error:?}");
        assert!(
            store
                .write(|tx| Sandboxes(tx).all())
                .await
                .expect("all")
                .is_empty()
        );
    }

    #[tokio::test]
    async fn updates_stick_and_deletes_free_the_name() {
        let (_dir, store) = store().await;
        let mut changed = row("a", Some("web"), 1);
        let first = changed.clone();
        store
            .write(move |tx| Sandboxes(tx).insert(&first))
            .await
            .expect("insert");
        changed.state = SandboxState::Running;
        changed.intent = None;
        let second = changed.clone();
        store
            .write(move |tx| Sandboxes(tx).update(&second))
            .await
            .expect("update");
        let read = store.write(|tx| Sandboxes(tx).get("a")).await.expect("get");
        assert_eq!(read, Some(changed));
        store
            .write(|tx| Sandboxes(tx).delete("a"))
            .await
            .expect("delete");
        store
            .write(|tx| Sandboxes(tx).insert(&row("b", Some("web"), 1)))
            .await
            .expect("free");
    }
}
