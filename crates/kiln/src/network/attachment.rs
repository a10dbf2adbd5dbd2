//! A sandbox's hold on its network.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use kiln_net::policy::Policy;
use kiln_net::verify::Verification;
use kiln_net::{GuestFacts, Network, NetworkRecord};

use super::host::blocking;
use crate::error::{Error, ErrorCode};
use crate::store::{Leases, Store};

/// A sandbox's network and its lease; clones share it. When the last one is dropped the network
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
    network: Mutex<Option<Network>>,
}

impl Drop for Held {
    fn drop(&mut self) {
        if let Some(network) = self.lock().take() {
            network.detach();
        }
    }
}

impl Held {
    fn lock(&self) -> MutexGuard<'_, Option<Network>> {
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
        *self.held.lock() = Some(network);
    }

    /// Takes the network down and gives its lease back. One that is gone is a success. What
    /// could not be taken down keeps its lease: nobody else gets the address until it is swept.
    pub(crate) async fn release(&self) -> Result<(), Error> {
        let held = Arc::clone(&self.held);
        blocking(move || {
            let network = held.lock().take();
            network.map_or(Ok(()), |network| Ok(network.close()?))
        })
        .await?;
        let sandbox = self.held.sandbox.clone();
        self.held
            .store
            .write(move |tx| Leases(tx).release(&sandbox))
            .await?;
        Ok(())
    }

    /// Exchanges the policy of the running network, then writes down which one is in force.
    pub(crate) async fn update(&self, policy: Policy) -> Result<(), Error> {
        let record = self
            .with(move |network| {
                network.update(policy)?;
                Ok(network.record())
            })
            .await?;
        self.keep(record).await
    }

    /// Puts back what somebody removed. One that was released meanwhile needs nothing.
    pub(super) async fn ensure(&self) -> Result<(), Error> {
        let held = Arc::clone(&self.held);
        let changed = blocking(move || match held.lock().as_mut() {
            Some(network) => Ok(network.ensure()?.then(|| network.record())),
            None => Ok(None),
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
            .write(move |tx| Leases(tx).update(&sandbox, &record))
            .await?;
        Ok(())
    }

    /// What there is on the host, and what the guest was told.
    pub(crate) async fn facts(
        &self,
    ) -> Result<(NetworkRecord, std::net::Ipv4Addr, GuestFacts), Error> {
        self.with(|network| Ok((network.record(), network.address(), network.guest())))
            .await
    }

    /// The questions that prove the policy.
    pub(super) async fn verification(&self) -> Result<Verification, Error> {
        self.with(|network| Ok(network.verification()?)).await
    }

    async fn with<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Network) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let held = Arc::clone(&self.held);
        blocking(move || match held.lock().as_mut() {
            Some(network) => work(network),
            None => Err(Error::new(
                ErrorCode::InvalidState,
                format!("sandbox {} has no network now", held.sandbox),
            )),
        })
        .await
    }
}
