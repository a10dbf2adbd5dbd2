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
    NAMED_NETWORKS,
    LIFECYCLE,
    SNAPSHOTS,
    MAIN_COMMAND,
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

/// Networks that have a name, and slots that are a sandbox's or a network's. What a sandbox's spec
/// names cannot go, and must be there.
const NAMED_NETWORKS: &str = "
    CREATE TABLE networks (
        name          TEXT PRIMARY KEY NOT NULL,
        subnet        TEXT NOT NULL UNIQUE,
        tunnel        TEXT UNIQUE,
        routing_table INTEGER UNIQUE,
        spec          TEXT NOT NULL,
        created_at_ms INTEGER NOT NULL
    ) STRICT;
    ALTER TABLE sandboxes ADD COLUMN network TEXT
        GENERATED ALWAYS AS (json_extract(spec, '$.network.name')) VIRTUAL
        REFERENCES networks (name);
    CREATE INDEX sandboxes_by_network ON sandboxes (network);
    CREATE TABLE network_members (
        sandbox TEXT PRIMARY KEY NOT NULL REFERENCES sandboxes (id) ON DELETE CASCADE,
        network TEXT NOT NULL REFERENCES networks (name),
        address TEXT NOT NULL,
        record  TEXT NOT NULL,
        UNIQUE (network, address)
    ) STRICT;
    ALTER TABLE network_leases RENAME TO leases_of_sandboxes;
    CREATE TABLE network_leases (
        slot    INTEGER PRIMARY KEY NOT NULL,
        sandbox TEXT UNIQUE REFERENCES sandboxes (id) ON DELETE CASCADE,
        network TEXT UNIQUE REFERENCES networks (name) ON DELETE CASCADE,
        record  TEXT NOT NULL,
        CHECK ((sandbox IS NULL) <> (network IS NULL))
    ) STRICT;
    INSERT INTO network_leases (slot, sandbox, record)
        SELECT slot, sandbox, record FROM leases_of_sandboxes;
    DROP TABLE leases_of_sandboxes;
";

/// When a sandbox's time-out ends it and what its restart policy goes by; and which request made
/// which sandbox, so that a request that is repeated makes no second one.
const LIFECYCLE: &str = "
    ALTER TABLE sandboxes ADD COLUMN expires_at_ms INTEGER;
    ALTER TABLE sandboxes ADD COLUMN restarts INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE sandboxes ADD COLUMN wants_running INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE sandboxes ADD COLUMN main_session INTEGER;
    CREATE TABLE idempotency_keys (
        key     TEXT PRIMARY KEY NOT NULL,
        request TEXT NOT NULL,
        sandbox TEXT NOT NULL REFERENCES sandboxes (id) ON DELETE CASCADE
    ) STRICT;
";

/// Snapshots, and which sandbox needs which: its machine maps the snapshot's memory, or will when it
/// starts. A snapshot's own stage is its intent.
const SNAPSHOTS: &str = "
    CREATE TABLE snapshots (
        id            TEXT PRIMARY KEY NOT NULL,
        name          TEXT UNIQUE,
        stage         TEXT NOT NULL,
        sandbox       TEXT NOT NULL,
        record        TEXT NOT NULL,
        created_at_ms INTEGER NOT NULL
    ) STRICT;
    ALTER TABLE sandboxes ADD COLUMN snapshot TEXT REFERENCES snapshots (id);
    CREATE INDEX sandboxes_by_snapshot ON sandboxes (snapshot);
";

/// What a restart policy goes by that follows the main command too.
const MAIN_COMMAND: &str = "
    ALTER TABLE sandboxes ADD COLUMN restart_streak INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE sandboxes ADD COLUMN main_exit TEXT;
";

/// The schema of this Kiln.
pub(super) fn current() -> usize {
    STEPS.len()
}

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

    /// A sandbox that runs while Kiln is upgraded keeps its network.
    #[test]
    fn leases_outlive_the_step_that_gives_networks_names() {
        let mut connection = Connection::open_in_memory().expect("sqlite");
        connection
            .pragma_update(None, "foreign_keys", true)
            .expect("pragma");
        let before = STEPS
            .iter()
            .position(|step| *step == NAMED_NETWORKS)
            .expect("the step");
        for step in &STEPS[..before] {
            connection.execute_batch(step).expect("an old schema");
        }
        connection
            .pragma_update(None, "user_version", before as u32)
            .expect("version");
        connection
            .execute_batch(
                "INSERT INTO sandboxes (id, spec, image, state, created_at_ms)
                     VALUES ('a', '{}', '', 'running', 1);
                 INSERT INTO network_leases (slot, sandbox, record) VALUES (7, 'a', '{}');",
            )
            .expect("an old lease");
        migrate(&mut connection).expect("migrated");
        let kept: (u32, String) = connection
            .query_row("SELECT slot, sandbox FROM network_leases", [], |row| {
                Ok((row.get(0)?, row.get(1)?))
            })
            .expect("the lease");
        assert_eq!(kept, (7, "a".to_owned()));
        connection
            .execute("DELETE FROM sandboxes", [])
            .expect("removed");
        let left: u32 = connection
            .query_row("SELECT count(*) FROM network_leases", [], |row| row.get(0))
            .expect("count");
        assert_eq!(left, 0, "it goes with its sandbox");
    }

    /// What a release with that schema wrote for a sandbox that ran; the columns of each step.
    fn written_by(version: usize) -> Connection {
        let connection = Connection::open_in_memory().expect("sqlite");
        connection
            .pragma_update(None, "foreign_keys", true)
            .expect("keys");
        for step in &STEPS[..version] {
            connection.execute_batch(step).expect("step");
        }
        connection
            .pragma_update(None, "user_version", version)
            .expect("version");
        let row = r#"INSERT INTO sandboxes (id, name, spec, image, image_id, state, intent, engine,
                machine, reason, warnings, timings, created_at_ms, started_at_ms)
            VALUES ('abcdefghijkl', 'web', '{"name":"web","image":null,"engine":"auto","vcpus":2,
                "mem_mib":256,"disk_mib":1024,"tmpfs":false,"kernel":null,"modules":null,
                "hostname":null,"ephemeral":false}', 'debian', NULL, 'stopped', NULL, '"qemu"',
                NULL, 'stopped on request', '["slow"]', NULL, 5, 6)"#;
        connection.execute(row, []).expect("row");
        if version > 1 {
            let lease = "INSERT INTO uid_leases (sandbox, uid) VALUES ('abcdefghijkl', 70000)";
            connection.execute(lease, []).expect("lease");
        }
        connection
    }

    #[test]
    fn b2_6_a_store_of_every_older_version_is_brought_up_to_date() {
        for version in 1..STEPS.len() {
            let mut connection = written_by(version);
            migrate(&mut connection).unwrap_or_else(|error| panic!("{version}: {error}"));
            let tx = connection.transaction().expect("transaction");
            let rows = super::super::Sandboxes(&tx).all();
            let rows = rows.unwrap_or_else(|error| panic!("{version}: {error}"));
            let [row] = &rows[..] else {
                panic!("{version}: {rows:?}")
            };
            assert_eq!(row.spec.name.as_deref(), Some("web"));
            assert_eq!((row.spec.vcpus, row.spec.mem_mib), (2, 256));
            assert_eq!(row.state, crate::SandboxState::Stopped);
            assert_eq!((row.restarts, row.wants_running), (0, false));
            assert_eq!((row.expires_at_ms, row.spec.timeout_ms), (None, None));
            assert_eq!((row.restart_streak, row.main_exit), (0, None));
            assert_eq!((&row.snapshot, &row.spec.snapshot), (&None, &None));
            assert_eq!(super::super::Snapshots(&tx).all().expect("none"), []);
            let uids: u32 = tx
                .query_row("SELECT count(*) FROM uid_leases", [], |row| row.get(0))
                .expect("leases");
            assert_eq!(uids, u32::from(version > 1), "leases are kept");
            // And it is as good as a new one: every column can be written.
            super::super::Sandboxes(&tx).update(row).expect("update");
        }
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
