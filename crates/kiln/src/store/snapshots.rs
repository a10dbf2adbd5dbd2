//! Rows of snapshots.

use rusqlite::{Row, Transaction, named_params};

use super::StoreError;
use super::sandboxes::{json, parse};
use crate::snapshot::SnapshotRecord;

/// How far a snapshot has come. What is not ready is an open intent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SnapshotStage {
    /// Being made: after a crash it is removed.
    Making,
    /// Whole; it never changes.
    Ready,
    /// Being removed: after a crash the removal is finished.
    Removing,
}

impl SnapshotStage {
    fn as_str(self) -> &'static str {
        match self {
            Self::Making => "making",
            Self::Ready => "ready",
            Self::Removing => "removing",
        }
    }

    fn parse(word: &str) -> Result<Self, StoreError> {
        [Self::Making, Self::Ready, Self::Removing]
            .into_iter()
            .find(|stage| stage.as_str() == word)
            .ok_or_else(|| StoreError::Corrupt(format!("stage {word:?}")))
    }
}

/// Everything that is stored of a snapshot.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct SnapshotRow {
    pub(crate) id: String,
    pub(crate) name: Option<String>,
    pub(crate) stage: SnapshotStage,
    /// The sandbox that it was made of.
    pub(crate) sandbox: String,
    pub(crate) record: SnapshotRecord,
    pub(crate) created_at_ms: u64,
}

/// The table, within a transaction.
pub(crate) struct Snapshots<'t>(pub(crate) &'t Transaction<'t>);

impl Snapshots<'_> {
    pub(crate) fn insert(&self, row: &SnapshotRow) -> Result<(), StoreError> {
        let sql = "INSERT INTO snapshots (id, name, stage, sandbox, record, created_at_ms)
                   VALUES (:id, :name, :stage, :sandbox, :record, :created_at_ms)";
        self.bind(sql, row).map_err(name_taken)
    }

    pub(crate) fn update(&self, row: &SnapshotRow) -> Result<(), StoreError> {
        let sql = "UPDATE snapshots SET name = :name, stage = :stage, sandbox = :sandbox,
                       record = :record, created_at_ms = :created_at_ms WHERE id = :id";
        self.bind(sql, row)
    }

    /// Deletes a row; one that is not there is no error.
    pub(crate) fn delete(&self, id: &str) -> Result<(), StoreError> {
        self.0
            .execute("DELETE FROM snapshots WHERE id = ?1", [id])?;
        Ok(())
    }

    /// Marks one as going that no sandbox needs: its name is free then.
    pub(crate) fn begin_removal(&self, id: &str) -> Result<(), StoreError> {
        let users = self.users(id)?;
        if !users.is_empty() {
            return Err(StoreError::SnapshotInUse(users.join(", ")));
        }
        let sql = "UPDATE snapshots SET stage = 'removing', name = NULL WHERE id = ?1";
        match self.0.execute(sql, [id])? {
            0 => Err(StoreError::NoSuchSnapshot),
            _ => Ok(()),
        }
    }

    /// Refuses one from which no sandbox can begin.
    pub(crate) fn expect_ready(&self, id: &str) -> Result<(), StoreError> {
        let sql = "SELECT count(*) FROM snapshots WHERE id = ?1 AND stage = 'ready'";
        let found: u32 = self.0.query_row(sql, [id], |row| row.get(0))?;
        match found {
            0 => Err(StoreError::NoSuchSnapshot),
            _ => Ok(()),
        }
    }

    /// Every row.
    pub(crate) fn all(&self) -> Result<Vec<SnapshotRow>, StoreError> {
        let mut statement = self.0.prepare("SELECT * FROM snapshots ORDER BY id")?;
        let mut rows = statement.query([])?;
        let mut all = Vec::new();
        while let Some(row) = rows.next()? {
            all.push(read(row)?);
        }
        Ok(all)
    }

    /// The sandboxes that run from it, or will.
    fn users(&self, id: &str) -> Result<Vec<String>, StoreError> {
        let sql = "SELECT id FROM sandboxes WHERE snapshot = ?1 ORDER BY id";
        let mut statement = self.0.prepare(sql)?;
        let ids = statement.query_map([id], |row| row.get(0))?;
        Ok(ids.collect::<Result<_, _>>()?)
    }

    fn bind(&self, sql: &str, row: &SnapshotRow) -> Result<(), StoreError> {
        self.0.prepare_cached(sql)?.execute(named_params! {
            ":id": row.id,
            ":name": row.name,
            ":stage": row.stage.as_str(),
            ":sandbox": row.sandbox,
            ":record": json(&row.record)?,
            ":created_at_ms": row.created_at_ms,
        })?;
        Ok(())
    }
}

fn name_taken(error: StoreError) -> StoreError {
    match &error {
        StoreError::Sqlite(sqlite) if sqlite.to_string().contains("snapshots.name") => {
            StoreError::SnapshotNameTaken
        }
        _ => error,
    }
}

fn read(row: &Row<'_>) -> Result<SnapshotRow, StoreError> {
    let stage: String = row.get("stage")?;
    Ok(SnapshotRow {
        id: row.get("id")?,
        name: row.get("name")?,
        stage: SnapshotStage::parse(&stage)?,
        sandbox: row.get("sandbox")?,
        record: parse(row.get("record")?)?,
        created_at_ms: row.get("created_at_ms")?,
    })
}

#[cfg(test)]
pub(crate) mod tests {
    use super::super::{SandboxRow, Sandboxes, Store};
    use super::*;
    use crate::sandbox::SandboxSpec;

    pub(crate) fn snapshot_row(id: &str, name: Option<&str>) -> SnapshotRow {
        SnapshotRow {
            id: id.into(),
            name: name.map(Into::into),
            stage: SnapshotStage::Ready,
            sandbox: "source".into(),
            record: SnapshotRecord {
                sandbox_name: None,
                spec: SandboxSpec::default(),
                image: "debian".into(),
                image_id: None,
                image_config: None,
                engine: kiln_vmm::EngineKind::Qemu,
                engine_version: "7.2".into(),
                has_card: false,
                main_session: Some(1),
                disk_sha256: Some("ab".into()),
                bytes: 7,
            },
            created_at_ms: 5,
        }
    }

    fn restored(id: &str, snapshot: &str) -> SandboxRow {
        SandboxRow {
            snapshot: Some(snapshot.into()),
            ..SandboxRow::new(id.into(), SandboxSpec::default(), "debian".into())
        }
    }

    #[tokio::test]
    async fn b6_1_one_that_a_sandbox_needs_stays_and_its_name_is_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("kiln.db")).unwrap();
        let done = store.write(|tx| {
            let (snapshots, sandboxes) = (Snapshots(tx), Sandboxes(tx));
            let golden = snapshot_row("a", Some("golden"));
            snapshots.insert(&golden)?;
            assert_eq!(snapshots.all()?, [golden]);
            let taken = snapshots.insert(&snapshot_row("b", Some("golden")));
            assert!(matches!(taken, Err(StoreError::SnapshotNameTaken)));
            let unknown = sandboxes.insert(&restored("y", "b"));
            assert!(matches!(unknown, Err(StoreError::NoSuchSnapshot)));

            sandboxes.insert(&restored("x", "a"))?;
            let used = snapshots.begin_removal("a");
            assert!(matches!(used, Err(StoreError::SnapshotInUse(by)) if by == "x"));
            assert!(snapshots.delete("a").is_err(), "the key holds it too");
            sandboxes.delete("x")?;
            snapshots.begin_removal("a")?;
            let going = sandboxes.insert(&restored("z", "a"));
            assert!(matches!(going, Err(StoreError::NoSuchSnapshot)));
            snapshots.insert(&snapshot_row("b", Some("golden")))?;
            snapshots.delete("a")
        });
        done.await.unwrap();
    }
}
