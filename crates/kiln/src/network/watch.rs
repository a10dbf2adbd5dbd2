//! Puts back what others remove: a restart of `nftables.service` flushes everybody's tables.
//! Until then sandboxes reach nothing.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kiln_net::HostNetwork;
use tokio::task::JoinHandle;
use tracing::warn;

use super::attachment::{Attachment, WeakAttachment};
use super::firewalls::Firewalls;
use super::host::blocking;
use super::named::Registry;
use crate::error::Error;

/// How long sandboxes may be without what somebody flushed. A look costs a few netlink messages.
const INTERVAL: Duration = Duration::from_secs(5);

/// Other firewalls are reloaded now and then; a look lists all their rules.
const TURNS_OF_FIREWALLS: u32 = 12;

/// The networks of this process that are in use.
#[derive(Clone, Default)]
pub(super) struct Watched(Arc<Mutex<Vec<WeakAttachment>>>);

impl Watched {
    pub(super) fn add(&self, attachment: &Attachment) {
        let mut all = lock(&self.0);
        all.retain(|known| known.upgrade().is_some());
        all.push(attachment.downgrade());
    }

    fn all(&self) -> Vec<Attachment> {
        lock(&self.0)
            .iter()
            .filter_map(WeakAttachment::upgrade)
            .collect()
    }
}

/// Looks until it is dropped; nothing is put back after that.
pub(super) struct Watch {
    task: JoinHandle<()>,
    /// Held while something is put back.
    going_on: Arc<Mutex<bool>>,
}

impl Watch {
    pub(super) fn begin(
        host: HostNetwork,
        watched: Watched,
        named: Arc<Registry>,
        firewalls: Firewalls,
    ) -> Self {
        let going_on = Arc::new(Mutex::new(true));
        let task = tokio::spawn(look_often(
            host,
            watched,
            named,
            firewalls,
            Arc::clone(&going_on),
        ));
        Self { task, going_on }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        *lock(&self.going_on) = false;
        self.task.abort();
    }
}

async fn look_often(
    host: HostNetwork,
    watched: Watched,
    named: Arc<Registry>,
    firewalls: Firewalls,
    going_on: Arc<Mutex<bool>>,
) {
    for turn in 1_u32.. {
        tokio::time::sleep(INTERVAL).await;
        if turn.is_multiple_of(TURNS_OF_FIREWALLS) {
            firewalls.pass(&host).await;
        }
        for bridge in named.bridges().await {
            if let Err(error) = bridge.mend().await {
                let name = bridge.name();
                warn!(error = %error.message(), name, "a tunnel cannot be used again");
            }
        }
        match look(host.clone(), Arc::clone(&going_on)).await {
            Ok(false) => {}
            Ok(true) => restore(&watched, &named).await,
            Err(error) => {
                warn!(error = %error.message(), "the host's network cannot be looked after")
            }
        }
    }
}

/// Whether the host's part was missing; it is back then.
async fn look(host: HostNetwork, going_on: Arc<Mutex<bool>>) -> Result<bool, Error> {
    blocking(move || {
        let going_on = lock(&going_on);
        Ok(*going_on && host.ensure()?)
    })
    .await
}

async fn restore(watched: &Watched, named: &Registry) {
    let all = watched.all();
    warn!(
        networks = all.len(),
        "somebody removed the host's network; it is put back"
    );
    for bridge in named.bridges().await {
        if let Err(error) = bridge.ensure().await {
            let name = bridge.name();
            warn!(error = %error.message(), name, "a network cannot be put back");
        }
    }
    for attachment in all {
        if let Err(error) = attachment.ensure().await {
            warn!(error = %error.message(), "a sandbox's network cannot be put back");
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
