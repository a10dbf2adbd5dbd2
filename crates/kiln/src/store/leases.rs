//! Leases of network slots, and whether this data directory has anything in the host's network.

use kiln_net::NetworkRecord;
use rusqlite::{OptionalExtension, Transaction, params};

use super::StoreError;
use super::numbers::{Numbers, lowest_free};

const TAKEN: Numbers = Numbers {
    table: "network_leases",
    column: "slot",
};

/// The tables, within a transaction.
pub(crate) struct Leases<'t>(pub(crate) &'t Transaction<'t>);

impl Leases<'_> {
    /// Leases the lowest free slot below `slots` and stores what `name` makes of it. The schema
    /// holds that no slot has two owners, and no sandbox two slots.
    pub(crate) fn take<E>(
        &self,
        sandbox: &str,
        slots: u32,
        name: impl Fn(u32) -> Result<NetworkRecord, E>,
    ) -> Result<Result<NetworkRecord, E>, StoreError> {
        // The first slot that does not exist is refused by `name`, which knows the pool.
        let slot = lowest_free(self.0, TAKEN, &(0..slots))?.unwrap_or(slots);
        let record = match name(slot) {
            Ok(record) => record,
            Err(refused) => return Ok(Err(refused)),
        };
        self.0.execute(
            "INSERT INTO network_leases (slot, sandbox, record) VALUES (?1, ?2, ?3)",
            params![slot, sandbox, json(&record)?],
        )?;
        Ok(Ok(record))
    }

    /// What a sandbox has leased.
    pub(crate) fn of(&self, sandbox: &str) -> Result<Option<NetworkRecord>, StoreError> {
        let mut statement = self
            .0
            .prepare_cached("SELECT record FROM network_leases WHERE sandbox = ?1")?;
        let found: Option<String> = statement
            .query_row([sandbox], |row| row.get(0))
            .optional()?;
        found.map(|text| parse(&text)).transpose()
    }

    /// Stores a changed record.
    pub(crate) fn update(&self, sandbox: &str, record: &NetworkRecord) -> Result<(), StoreError> {
        self.0.execute(
            "UPDATE network_leases SET record = ?2 WHERE sandbox = ?1",
            params![sandbox, json(record)?],
        )?;
        Ok(())
    }

    /// Gives a lease back; one that is not there is no error.
    pub(crate) fn release(&self, sandbox: &str) -> Result<(), StoreError> {
        self.0
            .execute("DELETE FROM network_leases WHERE sandbox = ?1", [sandbox])?;
        Ok(())
    }

    /// Gives back every lease but those of these sandboxes; what stays.
    pub(crate) fn retain(&self, sandboxes: &[String]) -> Result<Vec<NetworkRecord>, StoreError> {
        let mut statement = self
            .0
            .prepare("SELECT sandbox, record FROM network_leases")?;
        let all = statement.query_map([], |row| {
            Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?))
        })?;
        let mut kept = Vec::new();
        for lease in all {
            let (sandbox, record) = lease?;
            if sandboxes.contains(&sandbox) {
                kept.push(parse(&record)?);
            } else {
                self.release(&sandbox)?;
            }
        }
        Ok(kept)
    }

    /// Whether anybody has a lease.
    pub(crate) fn any(&self) -> Result<bool, StoreError> {
        let sql = "SELECT EXISTS (SELECT 1 FROM network_leases)";
        Ok(self.0.query_row(sql, [], |row| row.get(0))?)
    }

    /// Notes that there is, or will be, something in the host's network; the pool chosen before.
    pub(crate) fn begin_host(&self) -> Result<Option<String>, StoreError> {
        self.0
            .execute("INSERT OR IGNORE INTO network_host (id) VALUES (1)", [])?;
        let sql = "SELECT pool FROM network_host";
        Ok(self.0.query_row(sql, [], |row| row.get(0))?)
    }

    /// Remembers the pool.
    pub(crate) fn keep_pool(&self, pool: &str) -> Result<(), StoreError> {
        self.0
            .execute("UPDATE network_host SET pool = ?1", [pool])?;
        Ok(())
    }

    /// Whether there may be something in the host's network.
    pub(crate) fn host_is_there(&self) -> Result<bool, StoreError> {
        let sql = "SELECT EXISTS (SELECT 1 FROM network_host)";
        Ok(self.0.query_row(sql, [], |row| row.get(0))?)
    }

    /// Nothing is there any more.
    pub(crate) fn end_host(&self) -> Result<(), StoreError> {
        self.0.execute("DELETE FROM network_host", [])?;
        Ok(())
    }
}

fn json(record: &NetworkRecord) -> Result<String, StoreError> {
    serde_json::to_string(record).map_err(|error| StoreError::Corrupt(error.to_string()))
}

fn parse(text: &str) -> Result<NetworkRecord, StoreError> {
    serde_json::from_str(text).map_err(|error| StoreError::Corrupt(format!("{error}: {text}")))
}

#[cfg(test)]
mod tests {
    use super::super::Store;
    use super::*;

    const SLOTS: u32 = 3;

    fn named(slot: u32) -> Result<NetworkRecord, &'static str> {
        if slot >= SLOTS {
            return Err("exhausted");
        }
        Ok(NetworkRecord {
            interface: kiln_net::subnet::InterfaceName::new(format!("kln{slot}")).expect("name"),
            slot,
            generation: 1,
            policy: 0,
        })
    }

    /// A store with these sandboxes in it.
    async fn store(ids: &[&str]) -> (tempfile::TempDir, Store) {
        let dir = tempfile::tempdir().expect("dir");
        let store = Store::open(&dir.path().join("kiln.db")).expect("store");
        for id in ids {
            let id = (*id).to_owned();
            store
                .write(move |tx| {
                    tx.execute(
                        "INSERT INTO sandboxes (id, spec, image, state, created_at_ms)
                         VALUES (?1, '{}', '', 'created', 1)",
                        [id],
                    )?;
                    Ok(())
                })
                .await
                .expect("row");
        }
        (dir, store)
    }

    async fn take(store: &Store, id: &'static str) -> Result<u32, String> {
        let leased = store
            .write(move |tx| Leases(tx).take(id, SLOTS, named))
            .await
            .map_err(|error| error.to_string())?;
        leased.map(|record| record.slot).map_err(str::to_owned)
    }

    #[tokio::test]
    async fn the_lowest_free_slot_is_leased_once() {
        let (_dir, store) = store(&["a", "b", "c", "d"]).await;
        assert_eq!(take(&store, "a").await, Ok(0));
        assert_eq!(take(&store, "b").await, Ok(1));
        take(&store, "b").await.expect_err("one lease each");
        let released = store.write(|tx| Leases(tx).release("a")).await;
        released.expect("release");
        assert_eq!(take(&store, "c").await, Ok(0));
        assert_eq!(take(&store, "d").await, Ok(2));
        assert_eq!(take(&store, "a").await, Err("exhausted".to_owned()));
    }

    #[tokio::test]
    async fn no_slot_has_two_owners_whatever_the_code_does() {
        let (_dir, store) = store(&["a", "b"]).await;
        take(&store, "a").await.expect("lease");
        let twice = store
            .write(|tx| {
                let sql = "INSERT INTO network_leases (slot, sandbox, record) VALUES (0, 'b', '')";
                tx.execute(sql, [])?;
                Ok(())
            })
            .await;
        assert!(matches!(twice, Err(StoreError::Sqlite(_))), "{twice:?}");
    }

    #[tokio::test]
    async fn a_lease_goes_with_its_sandbox_or_with_a_sweep() {
        let (_dir, store) = store(&["a", "b", "c"]).await;
        for id in ["a", "b", "c"] {
            take(&store, id).await.expect("lease");
        }
        let kept = store
            .write(|tx| {
                tx.execute("DELETE FROM sandboxes WHERE id = 'a'", [])?;
                Leases(tx).retain(&["b".to_owned()])
            })
            .await
            .expect("retain");
        assert_eq!(kept.iter().map(|it| it.slot).collect::<Vec<_>>(), [1]);
        let of = |id: &'static str| store.write(move |tx| Leases(tx).of(id));
        assert_eq!(of("a").await.expect("of"), None);
        assert_eq!(of("c").await.expect("of"), None);
        assert!(of("b").await.expect("of").is_some());
    }

    #[tokio::test]
    async fn the_host_is_remembered_with_its_pool() {
        let (_dir, store) = store(&[]).await;
        let there = || store.write(|tx| Leases(tx).host_is_there());
        assert!(!there().await.expect("read"));
        let pool = store.write(|tx| Leases(tx).begin_host()).await;
        assert_eq!(pool.expect("begin"), None);
        let kept = store.write(|tx| Leases(tx).keep_pool("10.0.0.0/16")).await;
        kept.expect("keep");
        let pool = store.write(|tx| Leases(tx).begin_host()).await;
        assert_eq!(pool.expect("begin").as_deref(), Some("10.0.0.0/16"));
        store.write(|tx| Leases(tx).end_host()).await.expect("end");
        assert!(!there().await.expect("read"));
    }
}
