//! The host's network of one data directory: opened when the first sandbox wants one, adopted when
//! an earlier owner left one, removed when the last owner leaves and nobody needs it.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use kiln_net::dns::{DnsOptions, Server, resolvers_of};
use kiln_net::policy::PolicySpec;
use kiln_net::subnet::{Cidr, InterfaceName};
use kiln_net::{HostNetwork, HostOptions, Identity, Trace};
use tokio::sync::Mutex;
use tracing::{info, warn};

use super::error::unavailable;
use super::firewalls::Firewalls;
use super::named::{NamedNetwork, NewNetwork, Registry};
use super::watch::{Watch, Watched};
use crate::error::{Error, ErrorCode};
use crate::store::{Leases, NamedNetworks, Store};

/// The data directory whose networks have the plain names.
const USUAL_DIRECTORY: &str = "/var/lib/kiln";
const TUN: &str = "/dev/net/tun";
/// What networks with names keep, below the data directory.
const NAMED: &str = "networks";
const RESOLVERS: &str = "/etc/resolv.conf";

/// The way to the host's network.
pub(crate) struct Networks {
    data_dir: PathBuf,
    pub(super) store: Store,
    pub(super) watched: Watched,
    pub(super) named: Arc<Registry>,
    pub(super) firewalls: Firewalls,
    opened: Mutex<Option<Opened>>,
}

struct Opened {
    host: HostNetwork,
    /// Answers names until it is dropped.
    _names: Server,
    watch: Watch,
}

impl Networks {
    pub(crate) fn new(data_dir: &Path, store: Store) -> Self {
        let named = Registry::new(data_dir.join(NAMED), store.clone());
        Self {
            data_dir: data_dir.to_owned(),
            store,
            watched: Watched::default(),
            named: Arc::new(named),
            firewalls: Firewalls::default(),
            opened: Mutex::new(None),
        }
    }

    /// Why this host can make no networks, as far as can be told without touching anything.
    pub(crate) fn obstacle(&self) -> Option<String> {
        if !rustix::process::geteuid().is_root() {
            return Some("that takes root".to_owned());
        }
        let tun = std::fs::File::options().read(true).write(true).open(TUN);
        tun.err().map(|error| format!("{TUN}: {error}"))
    }

    /// What is known of the host's network without changing it, for people.
    pub(crate) async fn findings(&self) -> Vec<String> {
        if let Some(reason) = self.obstacle() {
            return vec![format!("network: not usable: {reason}")];
        }
        let host = self.if_open().await;
        let mut findings = vec!["network: usable".to_owned()];
        if let Some(host) = host {
            findings.extend(self.firewalls.look(&host).await);
        }
        findings
    }

    /// The host's network; made now if it is the first time.
    pub(super) async fn host(&self) -> Result<HostNetwork, Error> {
        let mut opened = self.opened.lock().await;
        if let Some(opened) = opened.as_ref() {
            return Ok(opened.host.clone());
        }
        if let Some(reason) = self.obstacle() {
            return Err(unavailable(&reason));
        }
        let now = self.open().await?;
        let host = now.host.clone();
        *opened = Some(now);
        Ok(host)
    }

    /// Written down first that there is something, so that it is found after a crash.
    async fn open(&self) -> Result<Opened, Error> {
        let pool = self.store.write(|tx| Leases(tx).begin_host()).await?;
        let options = HostOptions {
            identity: identity(&self.data_dir),
            pool: pool.as_deref().and_then(|pool| pool.parse::<Cidr>().ok()),
            dns: dns_options(),
        };
        let host = blocking(move || Ok(HostNetwork::open(options)?)).await?;
        let pool = host.pool().to_string();
        self.store
            .write(move |tx| Leases(tx).keep_pool(&pool))
            .await?;
        self.firewalls.pass(&host).await;
        let names = host.gate().serve().await?;
        info!(pool = %host.pool(), table = host.identity().table(), "the host's network is open");
        let watch = Watch::begin(
            host.clone(),
            self.watched.clone(),
            Arc::clone(&self.named),
            self.firewalls.clone(),
        );
        Ok(Opened {
            host,
            _names: names,
            watch,
        })
    }

    /// After every machine was adopted or ended: removes what nobody adopted.
    pub(crate) async fn sweep(&self, adopted: Vec<String>) -> Result<(), Error> {
        let is_there = self.store.write(|tx| Leases(tx).host_is_there()).await?;
        if !is_there {
            return Ok(());
        }
        let host = match self.host().await {
            Ok(host) => host,
            Err(error) => {
                warn!(error = %error.message(), "an earlier network cannot be cleaned up now");
                return Ok(());
            }
        };
        let mut keep: BTreeSet<InterfaceName> = self.named.settle(&adopted).await?;
        let own = self
            .store
            .write(move |tx| Leases(tx).retain(&adopted))
            .await?;
        keep.extend(own.into_iter().map(|record| record.interface));
        let swept = blocking(move || Ok(host.sweep(&keep)?)).await?;
        if swept != kiln_net::Swept::default() {
            info!(?swept, "removed what no sandbox owns");
        }
        Ok(())
    }

    /// What there is on the host of this data directory's and nobody has a lease of. An interface that
    /// is made while this looks has its lease before.
    pub(crate) async fn leftovers(&self) -> Result<Vec<Trace>, Error> {
        let Some(host) = self.if_open().await else {
            return Ok(Vec::new());
        };
        let found = blocking(move || Ok(host.traces()?)).await?;
        let leased = self.store.write(|tx| {
            let mut leased = Leases(tx).interfaces()?;
            leased.extend(NamedNetworks(tx).interfaces()?);
            Ok(leased)
        });
        let leased = leased.await?;
        let nobodys = |trace: &Trace| !leased.contains(&trace.interface);
        Ok(found.into_iter().filter(nobodys).collect())
    }

    pub(crate) async fn remove_leftover(&self, trace: Trace) -> Result<(), Error> {
        let Some(host) = self.if_open().await else {
            return Ok(());
        };
        blocking(move || Ok(host.remove_trace(&trace)?)).await
    }

    async fn if_open(&self) -> Option<HostNetwork> {
        let opened = self.opened.lock().await;
        opened.as_ref().map(|opened| opened.host.clone())
    }

    /// The owner leaves: where no sandbox runs on with a network, nothing stays on the host.
    pub(crate) async fn close(&self) {
        self.named.close().await;
        let Some(opened) = self.opened.lock().await.take() else {
            return;
        };
        if let Err(error) = self.uninstall_unused(opened).await {
            warn!(error = %error.message(), "the host's network was not removed");
        }
    }

    async fn uninstall_unused(&self, opened: Opened) -> Result<(), Error> {
        if self.store.write(|tx| Leases(tx).any()).await? {
            return Ok(());
        }
        let Opened {
            host,
            _names,
            watch,
        } = opened;
        drop((_names, watch));
        blocking(move || Ok(host.uninstall()?)).await?;
        self.store.write(|tx| Leases(tx).end_host()).await?;
        Ok(())
    }
}

/// Networks with names. Changes are made to their end, whoever still waits for them.
impl Networks {
    pub(crate) async fn create_named(
        self: &Arc<Self>,
        new: NewNetwork,
    ) -> Result<NamedNetwork, Error> {
        let this = Arc::clone(self);
        to_the_end(async move { this.named.create(&this, new).await }).await
    }

    pub(crate) async fn list_named(&self) -> Result<Vec<NamedNetwork>, Error> {
        self.named.list().await
    }

    pub(crate) async fn get_named(&self, name: &str) -> Result<NamedNetwork, Error> {
        self.named.get(name).await
    }

    pub(crate) async fn update_named(
        &self,
        name: &str,
        policy: PolicySpec,
    ) -> Result<NamedNetwork, Error> {
        let (named, name) = (Arc::clone(&self.named), name.to_owned());
        to_the_end(async move { named.update(&name, policy).await }).await
    }

    pub(crate) async fn remove_named(&self, name: &str) -> Result<(), Error> {
        let (named, name) = (Arc::clone(&self.named), name.to_owned());
        to_the_end(async move { named.remove(&name).await }).await
    }
}

async fn to_the_end<T: Send + 'static>(
    work: impl Future<Output = Result<T, Error>> + Send + 'static,
) -> Result<T, Error> {
    tokio::spawn(work)
        .await
        .unwrap_or_else(|panic| Err(died(panic)))
}

fn died(panic: tokio::task::JoinError) -> Error {
    Error::new(ErrorCode::Host, "a task of the network died").with_source(panic)
}

/// Whose things these are on the host.
pub(crate) fn identity(data_dir: &Path) -> Identity {
    if data_dir == Path::new(USUAL_DIRECTORY) {
        return Identity::standard();
    }
    Identity::of_directory(data_dir)
}

/// Without a resolver of the host, guests have no names; addresses still work.
fn dns_options() -> DnsOptions {
    let text = std::fs::read_to_string(RESOLVERS).unwrap_or_default();
    DnsOptions {
        resolvers: resolvers_of(&text),
        ..DnsOptions::default()
    }
}

/// Netlink calls block for milliseconds.
pub(super) async fn blocking<T, F>(work: F) -> Result<T, Error>
where
    T: Send + 'static,
    F: FnOnce() -> Result<T, Error> + Send + 'static,
{
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|panic| Err(died(panic)))
}
