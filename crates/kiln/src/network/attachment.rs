//! A sandbox's hold on its network.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use kiln_net::policy::Policy;
use kiln_net::subnet::InterfaceName;
use kiln_net::verify::Verification;
use kiln_net::{GuestFacts, MemberRecord, Network, NetworkRecord};

use super::host::blocking;
use super::named::Membership;
use crate::error::{Error, ErrorCode};
use crate::store::{Leases, NamedNetworks, Owner, Store};

/// A sandbox's network, its own or a place in a shared one, and its lease; clones share it. When the last one is dropped the network
/// stays, as the machine does; [`Attachment::release`] takes it down.
#[derive(Clone)]
pub(crate) struct Attachment {
    held: Arc<Held>,
}

/// An [`Attachment`] that does not keep it.
pub(super) struct WeakAttachment(Weak<Held>);

impl WeakAttachment {
    pub(super) fn upgrade(&self) -> Option<Attachment> {
        self.0.upgrade().map(|held| Attachment { held })
    }
}

struct Held {
    sandbox: String,
    store: Store,
    network: Mutex<Option<Hold>>,
}

/// What is held.
enum Hold {
    /// One of its own.
    Own(Network),
    /// A place in one that is shared.
    Member(Membership),
}

impl Hold {
    fn close(self) -> Result<(), Error> {
        match self {
            Self::Own(network) => Ok(network.close()?),
            Self::Member(membership) => membership.leave(),
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // A place in a shared network stays by itself.
        if let Some(Hold::Own(network)) = self.lock().take() {
            network.detach();
        }
    }
}

impl Held {
    fn lock(&self) -> MutexGuard<'_, Option<Hold>> {
        self.network.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Attachment {
    /// A hold on nothing yet.
    pub(super) fn of(sandbox: &str, store: &Store) -> Self {
        Self {
            held: Arc::new(Held {
                sandbox: sandbox.to_owned(),
                store: store.clone(),
                network: Mutex::new(None),
            }),
        }
    }

    pub(super) fn hold(&self, network: Network) {
        *self.held.lock() = Some(Hold::Own(network));
    }

    pub(super) fn hold_member(&self, membership: Membership) {
        *self.held.lock() = Some(Hold::Member(membership));
    }

    /// Takes the network down and gives its lease back. One that is gone is a success. What
    /// could not be taken down keeps its lease: nobody else gets the address until it is swept.
    pub(crate) async fn release(&self) -> Result<(), Error> {
        let held = Arc::clone(&self.held);
        blocking(move || {
            let network = held.lock().take();
            network.map_or(Ok(()), Hold::close)
        })
        .await?;
        let sandbox = self.held.sandbox.clone();
        self.held
            .store
            .write(move |tx| {
                NamedNetworks(tx).remove_member(&sandbox)?;
                Leases(tx).release(Owner::Sandbox(&sandbox))
            })
            .await?;
        Ok(())
    }

    /// Exchanges the policy of the running network, then writes down which one is in force.
    pub(crate) async fn update(&self, policy: Policy) -> Result<(), Error> {
        let changed = self
            .with(move |hold| match hold {
                Hold::Own(network) => {
                    network.update(policy)?;
                    Ok(Changed::Own(network.record()))
                }
                Hold::Member(membership) => {
                    membership.update(&policy)?;
                    let network = membership.network().to_owned();
                    Ok(Changed::Member(network, membership.record.clone()))
                }
            })
            .await?;
        match changed {
            Changed::Own(record) => self.keep(record).await,
            Changed::Member(network, record) => self.keep_member(&network, record).await,
        }
    }

    /// Puts back what somebody removed. One that was released meanwhile needs nothing.
    pub(super) async fn ensure(&self) -> Result<(), Error> {
        let held = Arc::clone(&self.held);
        let changed = blocking(move || match held.lock().as_mut() {
            Some(Hold::Own(network)) => Ok(network.ensure()?.then(|| network.record())),
            // A shared network puts back all of its members at once.
            Some(Hold::Member(_)) | None => Ok(None),
        })
        .await?;
        match changed {
            Some(record) => self.keep(record).await,
            None => Ok(()),
        }
    }

    pub(super) fn downgrade(&self) -> WeakAttachment {
        WeakAttachment(Arc::downgrade(&self.held))
    }

    pub(super) async fn keep(&self, record: NetworkRecord) -> Result<(), Error> {
        let sandbox = self.held.sandbox.clone();
        self.held
            .store
            .write(move |tx| Leases(tx).update(Owner::Sandbox(&sandbox), &record))
            .await?;
        Ok(())
    }

    /// Writes down what the sandbox is in a shared network.
    pub(super) async fn keep_member(
        &self,
        network: &str,
        record: MemberRecord,
    ) -> Result<(), Error> {
        let (sandbox, network) = (self.held.sandbox.clone(), network.to_owned());
        let kept = self
            .held
            .store
            .write(move |tx| NamedNetworks(tx).put_member(&network, &sandbox, &record));
        Ok(kept.await?)
    }

    /// What there is on the host, and what the guest was told.
    pub(super) async fn facts(&self) -> Result<Facts, Error> {
        self.with(|hold| {
            Ok(match hold {
                Hold::Own(network) => Facts {
                    interface: network.record().interface,
                    address: network.address(),
                    guest: network.guest(),
                },
                Hold::Member(membership) => Facts {
                    interface: membership.record.tap.clone(),
                    address: membership.record.address,
                    guest: membership.facts.clone(),
                },
            })
        })
        .await
    }

    /// The questions that prove the policy.
    pub(super) async fn verification(&self) -> Result<Verification, Error> {
        self.with(|hold| match hold {
            Hold::Own(network) => Ok(network.verification()?),
            Hold::Member(membership) => membership.verification(),
        })
        .await
    }

    async fn with<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Hold) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let held = Arc::clone(&self.held);
        blocking(move || match held.lock().as_mut() {
            Some(hold) => work(hold),
            None => Err(Error::new(
                ErrorCode::InvalidState,
                format!("sandbox {} has no network now", held.sandbox),
            )),
        })
        .await
    }
}

/// A network that is there.
pub(super) struct Facts {
    /// On the host.
    pub(super) interface: InterfaceName,
    /// Where the host reaches the guest.
    pub(super) address: std::net::Ipv4Addr,
    pub(super) guest: GuestFacts,
}

/// What is to be written down after a change.
enum Changed {
    Own(NetworkRecord),
    /// The network's name, and the place in it.
    Member(String, MemberRecord),
}
