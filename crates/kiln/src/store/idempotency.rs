//! Which request made which sandbox.

use rusqlite::{OptionalExtension, Transaction, params};
use sha2::{Digest, Sha256};

use super::{SandboxRow, Sandboxes, StoreError};

/// What became of a request with a key.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Created {
    /// Its sandbox is made now.
    Now,
    /// This one was made by the same request before.
    Before(String),
    /// The key belongs to another request.
    KeyOfAnother,
}

/// The table, within a transaction.
pub(crate) struct Idempotency<'t>(pub(crate) &'t Transaction<'t>);

impl Idempotency<'_> {
    /// Inserts `row` unless a request with this key has made a sandbox already. The key goes with
    /// the sandbox.
    pub(crate) fn create(&self, key: &str, row: &SandboxRow) -> Result<Created, StoreError> {
        let request = digest(row)?;
        if let Some((of, sandbox)) = self.find(key)? {
            let same = of == request;
            return Ok(if same {
                Created::Before(sandbox)
            } else {
                Created::KeyOfAnother
            });
        }
        Sandboxes(self.0).insert(row)?;
        self.0.execute(
            "INSERT INTO idempotency_keys (key, request, sandbox) VALUES (?1, ?2, ?3)",
            params![key, request, row.id],
        )?;
        Ok(Created::Now)
    }

    fn find(&self, key: &str) -> Result<Option<(String, String)>, StoreError> {
        let sql = "SELECT request, sandbox FROM idempotency_keys WHERE key = ?1";
        let found = self
            .0
            .query_row(sql, [key], |row| Ok((row.get(0)?, row.get(1)?)));
        Ok(found.optional()?)
    }
}

/// What the request asked for, in few bytes.
fn digest(row: &SandboxRow) -> Result<String, StoreError> {
    let spec = serde_json::to_vec(&row.spec).map_err(|it| StoreError::Corrupt(it.to_string()))?;
    let hex = Sha256::digest(&spec)
        .iter()
        .fold(String::new(), |hex, byte| hex + &format!("{byte:02x}"));
    Ok(hex)
}

#[cfg(test)]
mod tests {
    use super::super::Store;
    use super::*;
    use crate::sandbox::SandboxSpec;

    fn row(id: &str, vcpus: u8) -> SandboxRow {
        let spec = SandboxSpec {
            vcpus,
            ..SandboxSpec::default()
        };
        SandboxRow::new(id.into(), spec, "debian".into())
    }

    #[tokio::test]
    async fn a_key_makes_one_sandbox_and_goes_with_it() {
        let dir = tempfile::tempdir().expect("dir");
        let store = Store::open(&dir.path().join("kiln.db")).expect("store");
        let create = async |id: &str, vcpus: u8| {
            let row = row(id, vcpus);
            let work = store.write(move |tx| Idempotency(tx).create("key", &row));
            work.await.expect("create")
        };
        assert_eq!(create("a", 1).await, Created::Now);
        assert_eq!(create("b", 1).await, Created::Before("a".into()));
        assert_eq!(create("c", 2).await, Created::KeyOfAnother);
        let removed = store.write(|tx| Sandboxes(tx).delete("a")).await;
        removed.expect("remove");
        assert_eq!(create("d", 2).await, Created::Now);
    }
}
