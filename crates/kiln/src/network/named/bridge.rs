//! A network with a name that is up, and a sandbox's place in it.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kiln_net::policy::Policy;
use kiln_net::verify::Verification;
use kiln_net::wireguard::Egress;
use kiln_net::{
    BridgeNetwork, BridgeRecord, BridgeSpec, GuestFacts, HostNetwork, Joined, Label, MemberRecord,
    MemberSpec, NetNamespace,
};

use super::new::NamedSpec;
use super::tunnel::Secret;
use crate::error::{Error, ErrorCode};
use crate::network::host::blocking;
use crate::store::{Leases, NetworkRow, Owner, Store};

/// A bridge that is up. Dropped, it stays on the host for the next owner, as machines do;
/// [`Bridge::close`] takes it down.
pub(in crate::network) struct Bridge {
    name: String,
    store: Store,
    held: Mutex<Option<Held>>,
}

struct Held {
    network: BridgeNetwork,
    tunnel: Option<Arc<Egress>>,
}

impl Held {
    fn detach(self) {
        self.network.detach();
        if let Some(tunnel) = self.tunnel {
            tunnel.detach();
        }
    }
}

impl Drop for Bridge {
    fn drop(&mut self) {
        if let Some(held) = self.lock().take() {
            held.detach();
        }
    }
}

/// What a bridge is raised from.
pub(super) struct Plan {
    pub(super) host: HostNetwork,
    pub(super) row: NetworkRow,
    pub(super) record: BridgeRecord,
    /// The text of a tunnel of ours.
    pub(super) secret: Option<Secret>,
}

impl Plan {
    fn spec(&self) -> Result<(BridgeSpec, Option<Arc<Egress>>), Error> {
        let NamedSpec {
            subnet,
            policy,
            members_talk,
            tunnel,
        } = &self.row.spec;
        let policy = policy
            .check()
            .map_err(|error| Error::new(ErrorCode::InvalidNetworkPolicy, error.to_string()))?;
        let tunnel = match tunnel {
            Some(tunnel) => Some(Egress::up(
                &self.host,
                tunnel.egress(self.secret.as_ref())?,
            )?),
            None => None,
        };
        let spec = BridgeSpec {
            label: Label::new(&self.row.name),
            subnet: *subnet,
            policy,
            members_talk: *members_talk,
            via: tunnel.clone(),
        };
        Ok((spec, tunnel))
    }
}

impl Bridge {
    /// Makes it. Blocks.
    pub(super) fn create(plan: Plan, store: Store) -> Result<Self, Error> {
        let (spec, tunnel) = plan.spec()?;
        let network = BridgeNetwork::create(&plan.host, plan.record, spec)?;
        Ok(Self::of(plan.row.name, store, network, tunnel))
    }

    /// Takes over what an earlier owner left, with its members. Blocks.
    pub(super) fn adopt(
        plan: Plan,
        members: Vec<MemberRecord>,
        store: Store,
    ) -> Result<Self, Error> {
        let (spec, tunnel) = plan.spec()?;
        let network = BridgeNetwork::adopt(&plan.host, plan.record, spec, members)?;
        Ok(Self::of(plan.row.name, store, network, tunnel))
    }

    fn of(name: String, store: Store, network: BridgeNetwork, tunnel: Option<Arc<Egress>>) -> Self {
        Self {
            name,
            store,
            held: Mutex::new(Some(Held { network, tunnel })),
        }
    }

    pub(in crate::network) fn name(&self) -> &str {
        &self.name
    }

    fn lock(&self) -> MutexGuard<'_, Option<Held>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is on the host: the bridge and, if it is ours, the tunnel.
    pub(super) async fn record(self: &Arc<Self>) -> Result<BridgeRecord, Error> {
        self.with(|network| Ok(network.record())).await
    }

    pub(super) async fn member_count(self: &Arc<Self>) -> usize {
        self.with(|network| Ok(network.members()))
            .await
            .unwrap_or(0)
    }

    /// Takes it down, and the tunnel with it. One that is down is a success.
    pub(super) async fn close(self: &Arc<Self>) -> Result<(), Error> {
        let this = Arc::clone(self);
        blocking(move || match this.lock().take() {
            Some(Held { network, tunnel }) => {
                let closed = network.close();
                drop(tunnel);
                Ok(closed?)
            }
            None => Ok(()),
        })
        .await
    }

    /// Exchanges the policy, in one transaction.
    pub(super) async fn update(self: &Arc<Self>, policy: Policy) -> Result<(), Error> {
        let record = self
            .with(move |network| {
                network.update(policy)?;
                Ok(network.record())
            })
            .await?;
        self.keep(record).await
    }

    /// Puts back what somebody removed. One that was closed meanwhile needs nothing.
    pub(in crate::network) async fn ensure(self: &Arc<Self>) -> Result<(), Error> {
        let this = Arc::clone(self);
        let changed = blocking(move || match this.lock().as_mut() {
            Some(held) => {
                let changed = held.network.ensure()?;
                Ok(changed.then(|| held.network.record()))
            }
            None => Ok(None),
        })
        .await?;
        match changed {
            Some(record) => self.keep(record).await,
            None => Ok(()),
        }
    }

    /// Leads traffic through the tunnel again if that has come back.
    pub(in crate::network) async fn mend(self: &Arc<Self>) -> Result<(), Error> {
        let this = Arc::clone(self);
        blocking(move || match this.lock().as_ref() {
            Some(Held {
                tunnel: Some(tunnel),
                ..
            }) => {
                tunnel.mend()?;
                Ok(())
            }
            _ => Ok(()),
        })
        .await
    }

    pub(super) async fn keep(&self, record: BridgeRecord) -> Result<(), Error> {
        let name = self.name.clone();
        let kept = self
            .store
            .write(move |tx| Leases(tx).update(Owner::Network(&name), &record));
        Ok(kept.await?)
    }

    pub(in crate::network) async fn join(
        self: &Arc<Self>,
        spec: MemberSpec,
    ) -> Result<Membership, Error> {
        let bridge = Arc::clone(self);
        self.with(move |network| {
            let Joined {
                facts,
                record,
                namespace,
            } = network.join(spec)?;
            Ok(Membership {
                bridge,
                record,
                facts,
                namespace: Some(namespace),
            })
        })
        .await
    }

    /// The membership of a sandbox that has been one since before this owner.
    pub(in crate::network) async fn rejoin(
        self: &Arc<Self>,
        record: MemberRecord,
    ) -> Result<Membership, Error> {
        let bridge = Arc::clone(self);
        self.with(move |network| {
            let facts = network.facts(&record, None);
            Ok(Membership {
                bridge,
                record,
                facts,
                namespace: None,
            })
        })
        .await
    }

    /// Puts a member out.
    pub(super) async fn expel(self: &Arc<Self>, record: MemberRecord) -> Result<(), Error> {
        self.with(move |network| Ok(network.leave(&record.tap)?))
            .await
    }

    async fn with<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&mut BridgeNetwork) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let this = Arc::clone(self);
        blocking(move || this.with_now(work)).await
    }

    fn with_now<T>(
        &self,
        work: impl FnOnce(&mut BridgeNetwork) -> Result<T, Error>,
    ) -> Result<T, Error> {
        match self.lock().as_mut() {
            Some(held) => work(&mut held.network),
            None => Err(Error::new(
                ErrorCode::InvalidState,
                format!("network {} is down", self.name),
            )),
        }
    }
}

/// A sandbox's place in a network. Dropped, it stays.
pub(in crate::network) struct Membership {
    bridge: Arc<Bridge>,
    pub(in crate::network) record: MemberRecord,
    pub(in crate::network) facts: GuestFacts,
    /// Where its VMM must run, if that does not run yet.
    namespace: Option<NetNamespace>,
}

impl Membership {
    pub(in crate::network) fn network(&self) -> &str {
        self.bridge.name()
    }

    /// Where its VMM must run; good while this lives.
    pub(in crate::network) fn namespace(&self) -> Option<PathBuf> {
        self.namespace.as_ref().map(NetNamespace::path)
    }

    /// Exchanges what is the sandbox's own: published ports and limits. Blocks.
    pub(in crate::network) fn update(&mut self, policy: &Policy) -> Result<(), Error> {
        let tap = &self.record.tap;
        self.record = self.bridge.with_now(|network| {
            Ok(network.update_member(tap, &policy.publish, policy.bandwidth)?)
        })?;
        Ok(())
    }

    /// Leaves. Blocks.
    pub(in crate::network) fn leave(self) -> Result<(), Error> {
        self.bridge
            .with_now(|network| Ok(network.leave(&self.record.tap)?))
    }

    /// The questions that prove the policy. Blocks.
    pub(in crate::network) fn verification(&self) -> Result<Verification, Error> {
        self.bridge
            .with_now(|network| Ok(network.verification(&self.record)?))
    }
}
