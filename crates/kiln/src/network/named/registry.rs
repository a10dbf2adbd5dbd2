//! Which networks have names, and which of them are up. One change at a time.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;

use kiln_net::policy::PolicySpec;
use kiln_net::subnet::{InterfaceName, Subnet};
use kiln_net::{BridgeRecord, HostNetwork, MemberRecord};
use tokio::sync::{Mutex, MutexGuard};
use tracing::{info, warn};

use super::bridge::{Bridge, Plan};
use super::info::NamedNetwork;
use super::new::{Checked, NamedSpec, NewNetwork, check_policy};
use super::secrets::Secrets;
use crate::error::{Error, ErrorCode};
use crate::failpoint;
use crate::network::host::{Networks, blocking};
use crate::store::{Leases, NamedNetworks, NetworkRow, Owner, Store};

/// Where subnets come from that nobody chose (A1.6); the third number counts.
const OWN_SUBNETS: &str = "172.30";

/// The networks with names.
pub(in crate::network) struct Registry {
    store: Store,
    secrets: Secrets,
    up: Mutex<Up>,
}

type Up = HashMap<String, Arc<Bridge>>;

impl Registry {
    pub(in crate::network) fn new(directory: PathBuf, store: Store) -> Self {
        Self {
            store,
            secrets: Secrets(directory),
            up: Mutex::default(),
        }
    }

    /// The bridges that are up.
    pub(in crate::network) async fn bridges(&self) -> Vec<Arc<Bridge>> {
        self.up.lock().await.values().map(Arc::clone).collect()
    }

    /// The network of this name; raised if it is down.
    pub(in crate::network) async fn bridge(
        &self,
        networks: &Networks,
        name: &str,
    ) -> Result<Arc<Bridge>, Error> {
        let mut up = self.up.lock().await;
        if let Some(bridge) = up.get(name) {
            return Ok(Arc::clone(bridge));
        }
        let row = self.row(name).await?;
        let host = networks.host().await?;
        let bridge = self.raise(host, row).await?;
        up.insert(name.to_owned(), Arc::clone(&bridge));
        Ok(bridge)
    }

    /// The network of this name as an earlier owner left it, with all its members.
    pub(in crate::network) async fn adopt(
        &self,
        networks: &Networks,
        name: &str,
    ) -> Result<Arc<Bridge>, Error> {
        let mut up = self.up.lock().await;
        if let Some(bridge) = up.get(name) {
            return Ok(Arc::clone(bridge));
        }
        let row = self.row(name).await?;
        let owned = name.to_owned();
        let left = self.store.write(move |tx| {
            let lease = Leases(tx).of::<BridgeRecord>(Owner::Network(&owned))?;
            Ok((lease, NamedNetworks(tx).members(&owned)?))
        });
        let (lease, members) = left.await?;
        let record = lease.ok_or_else(|| {
            Error::new(
                ErrorCode::BridgeFailed,
                format!("nothing of network {name} is left"),
            )
        })?;
        let host = networks.host().await?;
        let plan = self.plan(host, row, record).await?;
        let members: Vec<MemberRecord> = members.into_iter().map(|(_, record)| record).collect();
        let store = self.store.clone();
        let bridge = blocking(move || Bridge::adopt(plan, members, store)).await?;
        let bridge = Arc::new(bridge);
        // Rules that were missing are of a new generation now.
        bridge.keep(bridge.record().await?).await?;
        up.insert(name.to_owned(), Arc::clone(&bridge));
        Ok(bridge)
    }

    /// Makes a network, and brings it up: what cannot be is told at once. Nothing is left then.
    pub(in crate::network) async fn create(
        &self,
        networks: &Networks,
        new: NewNetwork,
    ) -> Result<NamedNetwork, Error> {
        let checked = new.check()?;
        let host = networks.host().await?;
        let mut up = self.up.lock().await;
        let row = self.insert(&host, &new, &checked).await?;
        failpoint::reach("network.stored");
        let made = async {
            let text = checked
                .tunnel
                .as_ref()
                .and_then(|tunnel| tunnel.text.as_ref());
            if let Some(text) = text {
                self.keep_secret(&row.name, text.clone()).await?;
            }
            self.raise(host, row.clone()).await
        };
        match made.await {
            Ok(bridge) => {
                failpoint::reach("network.raised");
                info!(name = %row.name, subnet = %row.spec.subnet.cidr(), "a network is made");
                up.insert(row.name.clone(), bridge);
            }
            Err(error) => {
                self.forget(&row.name).await?;
                return Err(error);
            }
        }
        self.told(&up, row).await
    }

    /// All networks, by name.
    pub(in crate::network) async fn list(&self) -> Result<Vec<NamedNetwork>, Error> {
        let up = self.up.lock().await;
        let rows = self.store.write(|tx| NamedNetworks(tx).all()).await?;
        let mut all = Vec::new();
        for row in rows {
            all.push(self.told(&up, row).await?);
        }
        Ok(all)
    }

    /// One network.
    pub(in crate::network) async fn get(&self, name: &str) -> Result<NamedNetwork, Error> {
        let up = self.up.lock().await;
        let row = self.row(name).await?;
        self.told(&up, row).await
    }

    /// Exchanges the policy: at once and whole if it is up. Stored first: after a crash in between,
    /// whoever adopts the network applies it.
    pub(in crate::network) async fn update(
        &self,
        name: &str,
        policy: PolicySpec,
    ) -> Result<NamedNetwork, Error> {
        let up = self.up.lock().await;
        // First of all whether there is one: who asks may mean a sandbox, with other rules.
        let before = self.row(name).await?;
        let mut faults = Vec::new();
        let checked = check_policy(&policy, &mut faults);
        let Some(checked) = checked.filter(|_| faults.is_empty()) else {
            let told: Vec<String> = faults.into_iter().map(|(_, fault)| fault).collect();
            return Err(Error::new(ErrorCode::InvalidNetworkPolicy, told.join("; "))
                .with_hint("correct the named fields; nothing was changed"));
        };
        let mut row = before.clone();
        row.spec.policy = policy;
        self.save(&row).await?;
        if let Some(bridge) = up.get(name)
            && let Err(error) = bridge.update(checked).await
        {
            self.save(&before).await?;
            return Err(error);
        }
        self.told(&up, row).await
    }

    /// Removes a network that no sandbox names.
    pub(in crate::network) async fn remove(&self, name: &str) -> Result<(), Error> {
        let mut up = self.up.lock().await;
        self.row(name).await?;
        let owned = name.to_owned();
        // The row first: nobody can join any more. Its lease goes with it.
        let deleted = self.store.write(move |tx| {
            let users = NamedNetworks(tx).users(&owned)?;
            Ok((NamedNetworks(tx).delete(&owned), users))
        });
        let (deleted, users) = deleted.await?;
        if let Err(error) = deleted {
            let who = format!("sandboxes that have it: {}", users.join(", "));
            return Err(Error::from(error).with_details(who));
        }
        failpoint::reach("network.forgotten");
        let closed = match up.remove(name) {
            Some(bridge) => bridge.close().await,
            None => Ok(()),
        };
        failpoint::reach("network.closed");
        self.forget_secret(name).await?;
        closed
    }

    /// After every machine was adopted or ended: puts out members that are gone, and gives back what
    /// networks had that nobody adopted. What stays on the host.
    pub(in crate::network) async fn settle(
        &self,
        adopted: &[String],
    ) -> Result<BTreeSet<InterfaceName>, Error> {
        let up = self.up.lock().await;
        let mut keep = BTreeSet::new();
        for (name, bridge) in up.iter() {
            let owned = name.clone();
            let (row, members) = self
                .store
                .write(move |tx| {
                    let networks = NamedNetworks(tx);
                    Ok((networks.get(&owned)?, networks.members(&owned)?))
                })
                .await?;
            for (sandbox, record) in members {
                if adopted.contains(&sandbox) {
                    keep.insert(record.tap);
                } else if let Err(error) = bridge.expel(record).await {
                    warn!(error = %error.message(), sandbox, "a member was not put out whole");
                }
            }
            keep.insert(bridge.record().await?.interface);
            keep.extend(row.and_then(|row| Some(row.spec.tunnel?.interface)));
        }
        let (names, adopted): (Vec<String>, _) = (up.keys().cloned().collect(), adopted.to_vec());
        let known = self
            .store
            .write(move |tx| {
                NamedNetworks(tx).retain_members(&adopted)?;
                Leases(tx).retain_networks(&names)?;
                NamedNetworks(tx).all()
            })
            .await?;
        let known: HashSet<String> = known.into_iter().map(|row| row.name).collect();
        let secrets = self.secrets.clone();
        blocking(move || secrets.retain(&known)).await?;
        Ok(keep)
    }

    /// The owner leaves: bridges without members go, the others stay for the next owner.
    pub(in crate::network) async fn close(&self) {
        for (name, bridge) in std::mem::take(&mut *self.up.lock().await) {
            if bridge.member_count().await > 0 {
                continue;
            }
            if let Err(error) = bridge.close().await {
                warn!(name, error = %error.message(), "a network was not taken down whole");
            }
            let released = self
                .store
                .write(move |tx| Leases(tx).release(Owner::Network(&name)));
            if let Err(error) = released.await {
                warn!(%error, "the lease of a network was not given back");
            }
        }
    }

    async fn row(&self, name: &str) -> Result<NetworkRow, Error> {
        let owned = name.to_owned();
        let found = self.store.write(move |tx| NamedNetworks(tx).get(&owned));
        found.await?.ok_or_else(|| not_found(name))
    }

    async fn save(&self, row: &NetworkRow) -> Result<(), Error> {
        let row = row.clone();
        let saved = self
            .store
            .write(move |tx| NamedNetworks(tx).update(&row.name, &row.spec));
        Ok(saved.await?)
    }

    /// Chooses what was not asked for, and writes the network down.
    async fn insert(
        &self,
        host: &HostNetwork,
        new: &NewNetwork,
        checked: &Checked,
    ) -> Result<NetworkRow, Error> {
        let others = self.store.write(|tx| NamedNetworks(tx).all()).await?;
        let subnet = choose_subnet(host, checked.subnet, &others).await?;
        let tables: Vec<u32> = others
            .iter()
            .filter_map(|row| Some(row.spec.tunnel.as_ref()?.table))
            .collect();
        let row = NetworkRow {
            name: new.name.clone(),
            spec: NamedSpec {
                subnet,
                policy: new.policy.clone(),
                members_talk: new.members_talk,
                tunnel: checked.tunnel.as_ref().map(|tunnel| tunnel.spec(&tables)),
            },
            created_at_ms: crate::clock::now_ms(),
        };
        let stored = row.clone();
        self.store
            .write(move |tx| NamedNetworks(tx).insert(&stored))
            .await?;
        Ok(row)
    }

    /// The lease is written down, names and all, before anything of the network exists.
    async fn raise(&self, host: HostNetwork, row: NetworkRow) -> Result<Arc<Bridge>, Error> {
        let (name, naming) = (row.name.clone(), host.clone());
        let taken = self.store.write(move |tx| {
            let (owner, slots) = (Owner::Network(&name), naming.slots());
            Leases(tx).take(owner, slots, |slot| naming.reserve_bridge(slot))
        });
        let record = taken.await??;
        let name = row.name.clone();
        let raised = async {
            let plan = self.plan(host, row, record).await?;
            let store = self.store.clone();
            let bridge = blocking(move || Bridge::create(plan, store)).await?;
            let bridge = Arc::new(bridge);
            bridge.keep(bridge.record().await?).await?;
            Ok(bridge)
        };
        let raised: Result<_, Error> = raised.await;
        if raised.is_err() {
            let released = self
                .store
                .write(move |tx| Leases(tx).release(Owner::Network(&name)));
            released.await?;
        }
        raised
    }

    async fn plan(
        &self,
        host: HostNetwork,
        row: NetworkRow,
        record: BridgeRecord,
    ) -> Result<Plan, Error> {
        let managed = row.spec.tunnel.as_ref().is_some_and(|it| it.managed);
        let secret = if managed {
            let (secrets, name) = (self.secrets.clone(), row.name.clone());
            Some(blocking(move || secrets.read(&name)).await?)
        } else {
            None
        };
        Ok(Plan {
            host,
            row,
            record,
            secret,
        })
    }

    async fn keep_secret(&self, name: &str, text: super::Secret) -> Result<(), Error> {
        let (secrets, name) = (self.secrets.clone(), name.to_owned());
        blocking(move || secrets.keep(&name, &text)).await
    }

    async fn forget_secret(&self, name: &str) -> Result<(), Error> {
        let (secrets, name) = (self.secrets.clone(), name.to_owned());
        blocking(move || secrets.forget(&name)).await
    }

    /// Of a network that was not made.
    async fn forget(&self, name: &str) -> Result<(), Error> {
        let owned = name.to_owned();
        self.store
            .write(move |tx| NamedNetworks(tx).delete(&owned))
            .await?;
        self.forget_secret(name).await
    }

    async fn told(&self, up: &MutexGuard<'_, Up>, row: NetworkRow) -> Result<NamedNetwork, Error> {
        let bridge = up.get(&row.name).cloned();
        let name = row.name.clone();
        let (members, users) = self
            .store
            .write(move |tx| {
                let networks = NamedNetworks(tx);
                Ok((networks.members(&name)?, networks.users(&name)?))
            })
            .await?;
        let interface = match bridge {
            Some(bridge) => Some(bridge.record().await?.interface.to_string()),
            None => None,
        };
        Ok(NamedNetwork {
            interface,
            ..NamedNetwork::of(row, members, users)
        })
    }
}

/// The subnet that was asked for, if no other network has a part of it, or the first that is free.
/// Whether the host has one in use is found out again when the bridge is made.
async fn choose_subnet(
    host: &HostNetwork,
    wanted: Option<Subnet>,
    others: &[NetworkRow],
) -> Result<Subnet, Error> {
    let taken: Vec<Subnet> = others.iter().map(|row| row.spec.subnet).collect();
    let overlaps = |subnet: &Subnet| {
        let overlap = |other: &&Subnet| other.cidr().overlaps(subnet.cidr());
        taken.iter().find(overlap).copied()
    };
    if let Some(wanted) = wanted {
        return match overlaps(&wanted) {
            None => Ok(wanted),
            Some(other) => Err(subnet_taken(&format!(
                "{} overlaps {}, which another network has",
                wanted.cidr(),
                other.cidr()
            ))),
        };
    }
    let free: Vec<Subnet> = own_subnets().filter(|it| overlaps(it).is_none()).collect();
    let host = host.clone();
    let found = blocking(move || Ok(host.first_free(free)?)).await?;
    found.ok_or_else(|| subnet_taken(&format!("no subnet of {OWN_SUBNETS}.0.0/16 is free")))
}

fn own_subnets() -> impl Iterator<Item = Subnet> {
    (0..=u8::MAX).filter_map(|third| format!("{OWN_SUBNETS}.{third}.0/24").parse().ok())
}

fn subnet_taken(message: &str) -> Error {
    Error::new(ErrorCode::InvalidSubnet, message).with_hint("choose another subnet")
}

fn not_found(name: &str) -> Error {
    Error::new(
        ErrorCode::NetworkNotFound,
        format!("no network has the name {name:?}"),
    )
    .with_hint("`kiln network ls` lists them")
}
