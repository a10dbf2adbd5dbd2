//! Whether a store holds together: asked from outside, also while an owner works with it.

use std::path::Path;

use rusqlite::{Connection, OpenFlags};

use super::{BUSY_TIMEOUT, StoreError, schema};

/// What a look at a store found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Health {
    /// Rows of sandboxes.
    pub(crate) sandboxes: u64,
    /// Addresses, places in shared networks and users that somebody has.
    pub(crate) leases: u64,
    /// Operations that were begun and have not ended.
    pub(crate) intents: u64,
    /// What does not fit together, in words.
    pub(crate) faults: Vec<String>,
}

impl Health {
    /// Looks at the store in this file without changing it; `None` where there is none of this
    /// Kiln's: one of another version is brought up to date, or refused, when it is opened.
    pub(crate) fn of(path: &Path) -> Result<Option<Self>, StoreError> {
        if !path.exists() {
            return Ok(None);
        }
        let connection = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
        connection.busy_timeout(BUSY_TIMEOUT)?;
        let version: usize = connection.pragma_query_value(None, "user_version", |it| it.get(0))?;
        if version != schema::current() {
            return Ok(None);
        }
        // One moment for all of it: an owner may be at work.
        connection.execute_batch("BEGIN")?;
        let count = |sql| connection.query_row(sql, [], |row| row.get(0));
        Ok(Some(Self {
            sandboxes: count("SELECT count(*) FROM sandboxes")?,
            leases: count(
                "SELECT (SELECT count(*) FROM network_leases WHERE sandbox IS NOT NULL)
                     + (SELECT count(*) FROM network_members) + (SELECT count(*) FROM uid_leases)",
            )?,
            intents: count("SELECT count(*) FROM sandboxes WHERE intent IS NOT NULL")?,
            faults: faults(&connection)?,
        }))
    }
}

/// SQLite's own look at the file, then at what its rows refer to: the latter sees leases of nobody.
fn faults(connection: &Connection) -> Result<Vec<String>, StoreError> {
    let mut statement = connection.prepare("PRAGMA integrity_check(10)")?;
    let told = statement.query_map([], |row| row.get(0))?;
    let mut faults = told.collect::<Result<Vec<String>, _>>()?;
    faults.retain(|line| line != "ok");
    let mut statement = connection.prepare("PRAGMA foreign_key_check")?;
    let dangling = statement.query_map([], |row| {
        let (table, of): (String, String) = (row.get(0)?, row.get(2)?);
        Ok(format!("a row of {table} belongs to none of {of}"))
    })?;
    faults.extend(dangling.collect::<Result<Vec<String>, _>>()?);
    Ok(faults)
}

#[cfg(test)]
mod tests {
    use super::super::{Intent, SandboxRow, Sandboxes, Store, Uids};
    use super::*;
    use crate::SandboxSpec;

    #[tokio::test]
    async fn a_lease_of_nobody_is_a_fault_and_one_of_somebody_is_none() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kiln.db");
        assert_eq!(Health::of(&path).unwrap(), None);
        let store = Store::open(&path).unwrap();
        let mut row = SandboxRow::new("a".into(), SandboxSpec::default(), "debian".into());
        row.intent = Some(Intent::Start);
        let write = store.write(move |tx| {
            Sandboxes(tx).insert(&row)?;
            Uids(tx).take("a", 10..20)
        });
        write.await.unwrap();
        let good = Health {
            sandboxes: 1,
            leases: 1,
            intents: 1,
            faults: Vec::new(),
        };
        assert_eq!(Health::of(&path).unwrap(), Some(good), "while it is open");
        let other = Connection::open(&path).unwrap();
        other.pragma_update(None, "foreign_keys", false).unwrap();
        other.execute("DELETE FROM sandboxes", []).unwrap();
        let bad = Health::of(&path).unwrap().unwrap();
        assert_eq!(
            bad.faults,
            ["a row of uid_leases belongs to none of sandboxes"]
        );
    }

    #[test]
    fn one_of_an_older_kiln_is_left_to_who_opens_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kiln.db");
        let old = Connection::open(&path).unwrap();
        old.pragma_update(None, "user_version", 1).unwrap();
        assert_eq!(Health::of(&path).unwrap(), None);
    }

    #[test]
    fn what_is_no_store_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kiln.db");
        std::fs::write(&path, "no store at all, but some text that is long enough").unwrap();
        assert!(Health::of(&path).is_err());
    }
}
