//! The schema and its history. A step, once released, never changes.

use rusqlite::Connection;

use super::StoreError;

/// Step N brings a store from schema N to N + 1 (`PRAGMA user_version`).
const STEPS: &[&str] = &[
    "
    CREATE TABLE sandboxes (
        id            TEXT PRIMARY KEY NOT NULL,
        name          TEXT UNIQUE,
        spec          TEXT NOT NULL,
        image         TEXT NOT NULL,
        image_id      TEXT,
        state         TEXT NOT NULL,
        intent        TEXT,
        engine        TEXT,
        machine       TEXT,
        reason        TEXT,
        warnings      TEXT NOT NULL DEFAULT '[]',
        timings       TEXT,
        created_at_ms INTEGER NOT NULL,
        started_at_ms INTEGER
    ) STRICT;
    CREATE INDEX sandboxes_by_age ON sandboxes (created_at_ms DESC, id);
",
    "
    CREATE TABLE uid_leases (
        sandbox TEXT PRIMARY KEY NOT NULL REFERENCES sandboxes (id) ON DELETE CASCADE,
        uid     INTEGER NOT NULL UNIQUE
    ) STRICT;
",
    // How the image that a sandbox began with wants to be run, as JSON.
    "ALTER TABLE sandboxes ADD COLUMN image_config TEXT;",
    NETWORKS,
];

/// Who has which slot of the address pool; and one row while there may be something of this data
/// directory in the host's network.
const NETWORKS: &str = "
    CREATE TABLE network_leases (
        slot    INTEGER PRIMARY KEY NOT NULL,
        sandbox TEXT NOT NULL UNIQUE REFERENCES sandboxes (id) ON DELETE CASCADE,
        record  TEXT NOT NULL
    ) STRICT;
    CREATE TABLE network_host (
        id   INTEGER PRIMARY KEY NOT NULL CHECK (id = 1),
        pool TEXT
    ) STRICT;
";

pub(super) fn migrate(connection: &mut Connection) -> Result<(), StoreError> {
    let known = u32::try_from(STEPS.len()).unwrap_or(u32::MAX);
    let found: u32 = connection.pragma_query_value(None, "user_version", |row| row.get(0))?;
    if found > known {
        return Err(StoreError::TooNew { found, known });
    }
    for (version, step) in (1u32..).zip(STEPS.iter().copied()).skip(found as usize) {
        let transaction = connection.transaction()?;
        transaction.execute_batch(step)?;
        transaction.pragma_update(None, "user_version", version)?;
        transaction.commit()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_store_gets_every_step_and_a_second_open_none() {
        let mut connection = Connection::open_in_memory().expect("sqlite");
        migrate(&mut connection).expect("first");
        migrate(&mut connection).expect("second");
        let version: u32 = connection
            .pragma_query_value(None, "user_version", |row| row.get(0))
            .expect("version");
        assert_eq!(version as usize, STEPS.len());
    }

    #[test]
    fn a_store_from_the_future_is_refused_untouched() {
        let mut connection = Connection::open_in_memory().expect("sqlite");
        connection
            .pragma_update(None, "user_version", 99)
            .expect("set");
        assert!(matches!(
            migrate(&mut connection),
            Err(StoreError::TooNew { found: 99, .. })
        ));
    }
}
