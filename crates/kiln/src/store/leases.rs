//! Leases of network slots, and whether this data directory has anything in the host's network.

use std::collections::BTreeSet;

use kiln_net::subnet::InterfaceName;
use kiln_net::{BridgeRecord, NetworkRecord};
use rusqlite::{OptionalExtension, Transaction, params};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::StoreError;
use super::numbers::{Numbers, lowest_free};
use super::sandboxes::{json, parse};

const TAKEN: Numbers = Numbers {
    table: "network_leases",
    column: "slot",
};

/// The tables, within a transaction.
pub(crate) struct Leases<'t>(pub(crate) &'t Transaction<'t>);

/// Whose lease: one list of slots is for sandboxes' own networks and for those with a name.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Owner<'o> {
    Sandbox(&'o str),
    Network(&'o str),
}

impl Owner<'_> {
    fn column(self) -> &'static str {
        match self {
            Self::Sandbox(_) => "sandbox",
            Self::Network(_) => "network",
        }
    }

    fn key(&self) -> &str {
        match self {
            Self::Sandbox(key) | Self::Network(key) => key,
        }
    }
}

impl Leases<'_> {
    /// Leases the lowest free slot below `slots` and stores what `name` makes of it. The schema
    /// holds that no slot has two owners, and no owner two slots.
    pub(crate) fn take<R: Serialize, E>(
        &self,
        owner: Owner<'_>,
        slots: u32,
        name: impl Fn(u32) -> Result<R, E>,
    ) -> Result<Result<R, E>, StoreError> {
        // The first slot that does not exist is refused by `name`, which knows the pool.
        let slot = lowest_free(self.0, TAKEN, &(0..slots))?.unwrap_or(slots);
        let record = match name(slot) {
            Ok(record) => record,
            Err(refused) => return Ok(Err(refused)),
        };
        let column = owner.column();
        self.0.execute(
            &format!("INSERT INTO network_leases (slot, {column}, record) VALUES (?1, ?2, ?3)"),
            params![slot, owner.key(), json(&record)?],
        )?;
        Ok(Ok(record))
    }

    /// What somebody has leased.
    pub(crate) fn of<R: DeserializeOwned>(
        &self,
        owner: Owner<'_>,
    ) -> Result<Option<R>, StoreError> {
        let column = owner.column();
        let sql = format!("SELECT record FROM network_leases WHERE {column} = ?1");
        let found: Option<String> = self
            .0
            .prepare_cached(&sql)?
            .query_row([owner.key()], |row| row.get(0))
            .optional()?;
        found.map(parse).transpose()
    }

    /// Stores a changed record.
    pub(crate) fn update<R: Serialize>(
        &self,
        owner: Owner<'_>,
        record: &R,
    ) -> Result<(), StoreError> {
        let column = owner.column();
        self.0.execute(
            &format!("UPDATE network_leases SET record = ?2 WHERE {column} = ?1"),
            params![owner.key(), json(record)?],
        )?;
        Ok(())
    }

    /// Gives a lease back; one that is not there is no error.
    pub(crate) fn release(&self, owner: Owner<'_>) -> Result<(), StoreError> {
        let column = owner.column();
        let sql = format!("DELETE FROM network_leases WHERE {column} = ?1");
        self.0.execute(&sql, [owner.key()])?;
        Ok(())
    }

    /// Gives back every lease of sandboxes but these; what stays.
    pub(crate) fn retain(&self, sandboxes: &[String]) -> Result<Vec<NetworkRecord>, StoreError> {
        let mut kept = Vec::new();
        for (sandbox, record) in self.all("sandbox")? {
            if sandboxes.contains(&sandbox) {
                kept.push(parse(record)?);
            } else {
                self.release(Owner::Sandbox(&sandbox))?;
            }
        }
        Ok(kept)
    }

    /// The interfaces of all that have a lease.
    pub(crate) fn interfaces(&self) -> Result<BTreeSet<InterfaceName>, StoreError> {
        let mut interfaces = BTreeSet::new();
        for (_, record) in self.all("sandbox")? {
            interfaces.insert(parse::<NetworkRecord>(record)?.interface);
        }
        for (_, record) in self.all("network")? {
            interfaces.insert(parse::<BridgeRecord>(record)?.interface);
        }
        Ok(interfaces)
    }

    /// Gives back every lease of networks but these.
    pub(crate) fn retain_networks(&self, names: &[String]) -> Result<(), StoreError> {
        for (name, _) in self.all("network")? {
            if !names.contains(&name) {
                self.release(Owner::Network(&name))?;
            }
        }
        Ok(())
    }

    fn all(&self, column: &str) -> Result<Vec<(String, String)>, StoreError> {
        let sql = format!("SELECT {column}, record FROM network_leases WHERE {column} IS NOT NULL");
        let mut statement = self.0.prepare(&sql)?;
        let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
        Ok(rows.collect::<Result<_, _>>()?)
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
            .write(move |tx| Leases(tx).take(Owner::Sandbox(id), SLOTS, named))
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
        let released = store
            .write(|tx| Leases(tx).release(Owner::Sandbox("a")))
            .await;
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
        let of = |id: &'static str| {
            store.write(move |tx| Leases(tx).of::<NetworkRecord>(Owner::Sandbox(id)))
        };
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
