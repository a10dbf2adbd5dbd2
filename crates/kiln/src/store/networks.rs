//! Rows of named networks and of their members.

use std::collections::BTreeSet;

use kiln_net::MemberRecord;
use kiln_net::subnet::InterfaceName;
use rusqlite::{OptionalExtension, Row, Transaction, params};

use super::StoreError;
use super::sandboxes::{json, parse};
use crate::network::NamedSpec;

/// Everything that is stored of a named network.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct NetworkRow {
    pub(crate) name: String,
    pub(crate) spec: NamedSpec,
    pub(crate) created_at_ms: u64,
}

/// The tables, within a transaction.
pub(crate) struct NamedNetworks<'t>(pub(crate) &'t Transaction<'t>);

impl NamedNetworks<'_> {
    /// Adds a row. The schema holds that no two have a name, a subnet, a tunnel or a routing table
    /// in common.
    pub(crate) fn insert(&self, row: &NetworkRow) -> Result<(), StoreError> {
        let tunnel = row.spec.tunnel.as_ref();
        let added = self.0.execute(
            "INSERT INTO networks (name, subnet, tunnel, routing_table, spec, created_at_ms)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
            params![
                row.name,
                row.spec.subnet.cidr().to_string(),
                tunnel.map(|tunnel| tunnel.interface.to_string()),
                tunnel.map(|tunnel| tunnel.table),
                json(&row.spec)?,
                row.created_at_ms,
            ],
        );
        added.map(drop).map_err(taken)
    }

    /// One row.
    pub(crate) fn get(&self, name: &str) -> Result<Option<NetworkRow>, StoreError> {
        let mut statement = self
            .0
            .prepare_cached("SELECT * FROM networks WHERE name = ?1")?;
        let found = statement
            .query_row([name], |row| Ok(read(row)))
            .optional()?;
        found.transpose()
    }

    /// Every row, by name.
    pub(crate) fn all(&self) -> Result<Vec<NetworkRow>, StoreError> {
        let mut statement = self.0.prepare("SELECT * FROM networks ORDER BY name")?;
        let mut rows = statement.query([])?;
        let mut all = Vec::new();
        while let Some(row) = rows.next()? {
            all.push(read(row)?);
        }
        Ok(all)
    }

    /// Stores another policy.
    pub(crate) fn update(&self, name: &str, spec: &NamedSpec) -> Result<(), StoreError> {
        self.0.execute(
            "UPDATE networks SET spec = ?2 WHERE name = ?1",
            params![name, json(spec)?],
        )?;
        Ok(())
    }

    /// Deletes a row; one that is not there is no error. The schema refuses while a sandbox's spec
    /// names it.
    pub(crate) fn delete(&self, name: &str) -> Result<(), StoreError> {
        let deleted = self
            .0
            .execute("DELETE FROM networks WHERE name = ?1", [name]);
        deleted
            .map(drop)
            .map_err(|error| match is_reference(&error) {
                true => StoreError::NetworkInUse,
                false => error.into(),
            })
    }

    /// The sandboxes whose spec names it.
    pub(crate) fn users(&self, name: &str) -> Result<Vec<String>, StoreError> {
        let mut statement = self
            .0
            .prepare("SELECT id FROM sandboxes WHERE network = ?1 ORDER BY id")?;
        let ids = statement.query_map([name], |row| row.get(0))?;
        Ok(ids.collect::<Result<_, _>>()?)
    }

    /// Writes a member down, in place of what it was before.
    pub(crate) fn put_member(
        &self,
        network: &str,
        sandbox: &str,
        record: &MemberRecord,
    ) -> Result<(), StoreError> {
        self.0.execute(
            "INSERT OR REPLACE INTO network_members (sandbox, network, address, record)
             VALUES (?1, ?2, ?3, ?4)",
            params![sandbox, network, record.address.to_string(), json(record)?],
        )?;
        Ok(())
    }

    /// Forgets a member; one that is none is no error.
    pub(crate) fn remove_member(&self, sandbox: &str) -> Result<(), StoreError> {
        let sql = "DELETE FROM network_members WHERE sandbox = ?1";
        self.0.execute(sql, [sandbox])?;
        Ok(())
    }

    /// What a sandbox is a member as.
    pub(crate) fn member(&self, sandbox: &str) -> Result<Option<MemberRecord>, StoreError> {
        let sql = "SELECT record FROM network_members WHERE sandbox = ?1";
        let found: Option<String> = self
            .0
            .query_row(sql, [sandbox], |row| row.get(0))
            .optional()?;
        found.map(parse).transpose()
    }

    /// The members of a network, with their sandboxes.
    pub(crate) fn members(&self, name: &str) -> Result<Vec<(String, MemberRecord)>, StoreError> {
        let mut statement = self.0.prepare(
            "SELECT sandbox, record FROM network_members WHERE network = ?1 ORDER BY sandbox",
        )?;
        let mut rows = statement.query([name])?;
        let mut members = Vec::new();
        while let Some(row) = rows.next()? {
            members.push((row.get(0)?, parse(row.get(1)?)?));
        }
        Ok(members)
    }

    /// The interfaces of members and of tunnels.
    pub(crate) fn interfaces(&self) -> Result<BTreeSet<InterfaceName>, StoreError> {
        let mut interfaces = BTreeSet::new();
        for row in self.all()? {
            let members = self.members(&row.name)?;
            interfaces.extend(members.into_iter().map(|(_, record)| record.tap));
            interfaces.extend(row.spec.tunnel.map(|tunnel| tunnel.interface));
        }
        Ok(interfaces)
    }

    /// Forgets every member but these sandboxes.
    pub(crate) fn retain_members(&self, sandboxes: &[String]) -> Result<(), StoreError> {
        let mut statement = self.0.prepare("SELECT sandbox FROM network_members")?;
        let all = statement.query_map([], |row| row.get::<_, String>(0))?;
        for sandbox in all {
            let sandbox = sandbox?;
            if !sandboxes.contains(&sandbox) {
                self.remove_member(&sandbox)?;
            }
        }
        Ok(())
    }
}

fn read(row: &Row<'_>) -> Result<NetworkRow, StoreError> {
    Ok(NetworkRow {
        name: row.get("name")?,
        spec: parse(row.get("spec")?)?,
        created_at_ms: row.get("created_at_ms")?,
    })
}

fn taken(error: rusqlite::Error) -> StoreError {
    let text = error.to_string();
    let columns = ["name", "subnet", "tunnel", "routing_table"];
    let column = columns
        .into_iter()
        .find(|column| text.contains(&format!("networks.{column}")));
    match column {
        Some(column) => StoreError::NetworkTaken(column),
        None => error.into(),
    }
}

/// Whether a row is named that is not there, or that others name.
pub(super) fn is_reference(error: &rusqlite::Error) -> bool {
    let code = error.sqlite_error().map(|error| error.extended_code);
    code == Some(rusqlite::ffi::SQLITE_CONSTRAINT_FOREIGNKEY)
}

#[cfg(test)]
mod tests {
    use super::super::{Leases, Owner, Store};
    use super::*;

    fn row(name: &str, subnet: &str) -> NetworkRow {
        NetworkRow {
            name: name.to_owned(),
            spec: NamedSpec {
                subnet: subnet.parse().expect("subnet"),
                policy: kiln_net::policy::PolicySpec::default(),
                members_talk: true,
                tunnel: None,
            },
            created_at_ms: 1,
        }
    }

    fn member(last: u8) -> MemberRecord {
        MemberRecord {
            tap: kiln_net::subnet::InterfaceName::new(format!("klnt{last}")).expect("name"),
            mac: kiln_net::subnet::MacAddr([2, 0, 0, 0, 0, last]),
            address: [172, 30, 0, last].into(),
            publish: Vec::new(),
            bandwidth: kiln_net::policy::Bandwidth::default(),
        }
    }

    fn sandbox(tx: &Transaction<'_>, id: &str, network: &str) -> Result<usize, rusqlite::Error> {
        tx.execute(
            "INSERT INTO sandboxes (id, spec, image, state, created_at_ms)
             VALUES (?1, json_object('network', json_object('name', ?2)), '', 'created', 1)",
            [id, network],
        )
    }

    fn store() -> (tempfile::TempDir, Store) {
        let dir = tempfile::tempdir().expect("dir");
        let store = Store::open(&dir.path().join("kiln.db")).expect("store");
        (dir, store)
    }

    #[tokio::test]
    async fn a6_1_names_and_subnets_are_taken_once_and_rows_come_back() {
        let (_dir, store) = store();
        let outcome = store.write(|tx| {
            let networks = NamedNetworks(tx);
            networks.insert(&row("lan", "172.30.0.0/24"))?;
            let name = networks.insert(&row("lan", "172.30.1.0/24"));
            assert!(matches!(name, Err(StoreError::NetworkTaken("name"))));
            let subnet = networks.insert(&row("other", "172.30.0.7/24"));
            assert!(matches!(subnet, Err(StoreError::NetworkTaken("subnet"))));
            assert_eq!(networks.all()?, [row("lan", "172.30.0.0/24")]);
            assert_eq!(networks.get("none")?, None);
            Ok(())
        });
        outcome.await.expect("store");
    }

    #[tokio::test]
    async fn a6_6_a_network_that_a_sandbox_names_stays_and_one_that_is_not_there_is_refused() {
        let (_dir, store) = store();
        let outcome = store.write(|tx| {
            let networks = NamedNetworks(tx);
            networks.insert(&row("lan", "172.30.0.0/24"))?;
            let unknown = sandbox(tx, "a", "nowhere").expect_err("no such network");
            assert!(is_reference(&unknown), "{unknown}");
            sandbox(tx, "a", "lan")?;
            assert!(matches!(
                networks.delete("lan"),
                Err(StoreError::NetworkInUse)
            ));
            assert_eq!(networks.users("lan")?, ["a"]);
            tx.execute("DELETE FROM sandboxes", [])?;
            networks.delete("lan")
        });
        outcome.await.expect("store");
    }

    #[tokio::test]
    async fn a6_2_no_address_has_two_members_and_they_go_with_their_sandbox() {
        let (_dir, store) = store();
        let outcome = store.write(|tx| {
            let networks = NamedNetworks(tx);
            networks.insert(&row("lan", "172.30.0.0/24"))?;
            for id in ["a", "b"] {
                sandbox(tx, id, "lan")?;
            }
            networks.put_member("lan", "a", &member(2))?;
            networks.put_member("lan", "b", &member(3))?;
            assert_eq!(networks.member("b")?, Some(member(3)));
            assert_eq!(networks.members("lan")?.len(), 2);
            let twice = tx.execute(
                "UPDATE network_members SET address = '172.30.0.2' WHERE sandbox = 'b'",
                [],
            );
            assert!(twice.is_err(), "one member an address");
            tx.execute("DELETE FROM sandboxes WHERE id = 'a'", [])?;
            assert_eq!(networks.members("lan")?, [("b".to_owned(), member(3))]);
            networks.retain_members(&[])?;
            assert_eq!(networks.members("lan")?, []);
            Ok(())
        });
        outcome.await.expect("store");
    }

    /// Slots of sandboxes and of networks are one list.
    #[tokio::test]
    async fn a6_3_a_network_has_a_slot_that_no_sandbox_has() {
        let (_dir, store) = store();
        let slots = store.write(|tx| {
            NamedNetworks(tx).insert(&row("lan", "172.30.0.0/24"))?;
            sandbox(tx, "a", "lan")?;
            let take = |owner| Leases(tx).take(owner, 9, Ok::<u32, ()>);
            let first = take(Owner::Network("lan"))?;
            let second = take(Owner::Sandbox("a"))?;
            assert_eq!(Leases(tx).of(Owner::Network("lan"))?, Some(0_u32));
            Leases(tx).retain_networks(&[])?;
            assert_eq!(Leases(tx).of::<u32>(Owner::Network("lan"))?, None);
            Ok([first, second])
        });
        assert_eq!(slots.await.expect("store"), [Ok(0), Ok(1)]);
    }
}
