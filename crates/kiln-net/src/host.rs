//! One data directory's hold on the host's network: the base table, the gateway address, the pool.
//!
//! Opened once per process; sandboxes' networks borrow from it. Never touches a link, route, rule or
//! table that does not carry its identity.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::chains::Chains;
use crate::conntrack::Conntrack;
use crate::dns::{DnsOptions, Gate};
use crate::hosts;
use crate::identity::Identity;
use crate::link::{Links, Steps};
use crate::netlink::NetlinkError;
use crate::nft::Nft;
use crate::policy::{NEVER, PRIVATE};
use crate::pool;
use crate::ruleset::base::Base;
use crate::ruleset::{TableFamily, Transaction};
use crate::subnet::Cidr;
use crate::tables;

/// The first part of the pool is kept for the gateway.
const FIRST_SLOT: u32 = 256;
const LOOPBACK: u32 = 1;
const DNS_PORT: u16 = 53;
/// A public address to find the interface that the internet is behind; nothing is sent.
const SOMEWHERE: Ipv4Addr = Ipv4Addr::new(192, 0, 32, 1);
pub(crate) const DEFAULT_MTU: u32 = 1500;

/// How to open the host's network.
#[derive(Debug, Clone)]
pub struct HostOptions {
    /// Whose networks these are.
    pub identity: Identity,
    /// The pool chosen before, if any; else the first of [`crate::POOLS`] that is free.
    pub pool: Option<Cidr>,
    /// How names are resolved on behalf of the guests.
    pub dns: DnsOptions,
}

/// Why the host's network could not be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HostError {
    /// The kernel refused.
    #[error("cannot set up the host's network")]
    Netlink(#[from] NetlinkError),
    /// Somebody else's table has our name.
    #[error("the nftables table `{table}` exists and is not Kiln's (its comment is {comment:?})")]
    TableTaken {
        /// The table.
        table: String,
        /// What it says of itself.
        comment: Option<String>,
    },
    /// Every pool overlaps with a route or an address of this host.
    #[error("no address pool is free: {pool} overlaps {taken}; choose another")]
    PoolTaken {
        /// The last pool that was tried.
        pool: Cidr,
        /// What is in the way.
        taken: Cidr,
    },
    /// A pool too small to hold the gateway and a sandbox.
    #[error("the address pool {pool} is smaller than a /22")]
    PoolTooSmall {
        /// What was asked for.
        pool: Cidr,
    },
}

/// The host's network, shared by all sandboxes of one data directory.
#[derive(Debug, Clone)]
pub struct HostNetwork {
    shared: Arc<Shared>,
}

#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) identity: Identity,
    pub(crate) pool: Cidr,
    pub(crate) base: Base,
    /// Whether the kernel filters on bridges: without, no bridge network is made.
    pub(crate) bridges: bool,
    pub(crate) gate: Arc<Gate>,
    links: Mutex<Links>,
    nft: Mutex<Nft>,
    chains: Mutex<Chains>,
    conntrack: Mutex<Conntrack>,
    forwarding: Mutex<BTreeSet<u32>>,
}

impl HostNetwork {
    /// Claim pool and names, load the table, put the gateway's address on loopback. A table that an
    /// earlier process of the same data directory left is kept if it is the same, so that running
    /// machines notice nothing.
    ///
    /// # Errors
    /// [`HostError`]; nothing of others is touched.
    pub fn open(options: HostOptions) -> Result<Self, HostError> {
        let HostOptions {
            identity,
            pool,
            dns,
        } = options;
        let (mut links, mut nft) = (Links::open()?, Nft::open()?);
        let pool = pool::choose(&mut links, &mut nft, &identity, pool)?;
        let gateway = Ipv4Addr::from_bits(pool.network().to_bits() + 1);
        let base = Base {
            table: identity.table().to_owned(),
            prefix: identity.prefix().to_owned(),
            gateway,
            pool,
            dns_port: DNS_PORT,
            verify_port: hosts::PORT,
        };
        let (_, bridges) = tables::load(&mut nft, &identity, &base)?;
        put_gateway(&mut links, gateway)?;
        let gate = Arc::new(Gate::new(identity.table().to_owned(), gateway, dns)?);
        let shared = Shared {
            identity,
            pool,
            base,
            bridges,
            gate,
            links: Mutex::new(links),
            nft: Mutex::new(nft),
            chains: Mutex::default(),
            conntrack: Mutex::new(Conntrack::open()?),
            forwarding: Mutex::new(BTreeSet::new()),
        };
        Ok(Self {
            shared: Arc::new(shared),
        })
    }

    /// Restore the tables and the gateway's address if somebody removed them (a restart of
    /// `nftables.service` flushes everybody's tables); whether that was needed. Afterwards each
    /// network has to be restored too: [`crate::Network::ensure`]. Until then only the rules inside each sandbox's namespace hold, and the host forwards what leaves it.
    ///
    /// # Errors
    /// [`HostError`].
    pub fn ensure(&self) -> Result<bool, HostError> {
        let shared = &self.shared;
        // The internet may be behind another interface now.
        shared.open_ways(&[])?;
        put_gateway(&mut shared.links(), shared.base.gateway)?;
        let mut chains = shared.chains();
        let (loaded, _) = tables::load(&mut shared.nft(), &shared.identity, &shared.base)?;
        if loaded {
            chains.lost();
        }
        Ok(loaded)
    }

    /// The addresses that sandboxes get; store it, and give it to the next [`Self::open`].
    pub fn pool(&self) -> Cidr {
        self.shared.pool
    }

    /// The one address of this host that sandboxes see.
    pub fn gateway(&self) -> Ipv4Addr {
        self.shared.base.gateway
    }

    /// The names in use.
    pub fn identity(&self) -> &Identity {
        &self.shared.identity
    }

    /// The resolver that enforces domain rules.
    pub fn gate(&self) -> &Arc<Gate> {
        &self.shared.gate
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// Remove everything that this data directory has on the host: for uninstalling. Networks that
    /// are still open lose their traffic.
    ///
    /// # Errors
    /// The first [`NetlinkError`]; the rest is still tried.
    pub fn uninstall(self) -> Result<(), NetlinkError> {
        let guests = self.withdraw();
        let links = crate::recover::remove_links(&self.shared, &BTreeSet::new());
        let tables = [TableFamily::Inet, TableFamily::Bridge].map(|family| {
            let table = self.shared.base.table.clone();
            let present = self
                .shared
                .nft()
                .tables(family)?
                .iter()
                .any(|info| info.name == table);
            let changes = if present {
                vec![crate::ruleset::Change::DeleteTable]
            } else {
                Vec::new()
            };
            self.shared.nft().apply(&Transaction {
                family,
                table,
                changes,
            })
        });
        let mut steps = Steps::new();
        steps.delete_address(LOOPBACK, self.gateway(), 32);
        let address = self.shared.links().run(steps);
        links
            .map(drop)
            .and(tables.into_iter().collect::<Result<(), _>>())
            .and(address)
            .and(guests)
    }
}

impl Shared {
    pub(crate) fn links(&self) -> MutexGuard<'_, Links> {
        self.links.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn nft(&self) -> MutexGuard<'_, Nft> {
        self.nft.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn chains(&self) -> MutexGuard<'_, Chains> {
        self.chains.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn conntrack(&self) -> MutexGuard<'_, Conntrack> {
        self.conntrack
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn apply(&self, changes: Vec<crate::ruleset::Change>) -> Result<(), NetlinkError> {
        let table = self.base.table.clone();
        self.nft().apply(&Transaction {
            family: TableFamily::Inet,
            table,
            changes,
        })
    }

    /// Change the table for bridges.
    pub(crate) fn apply_bridge(
        &self,
        changes: Vec<crate::ruleset::Change>,
    ) -> Result<(), NetlinkError> {
        let table = self.base.table.clone();
        self.nft().apply(&Transaction {
            family: TableFamily::Bridge,
            table,
            changes,
        })
    }

    /// Every network that this host has a route or an address in.
    pub(crate) fn networks_in_use(&self) -> Result<Vec<Cidr>, NetlinkError> {
        pool::taken(&mut self.links(), &BTreeSet::new())
    }

    /// As many as the pool has addresses for.
    pub(crate) fn slots(&self) -> u32 {
        let (first, last) = self.pool.bounds();
        let room = (last - first).saturating_sub(FIRST_SLOT);
        room.min(crate::network::MAX_SLOT + 1)
    }

    /// The address of a slot, if the pool has one.
    pub(crate) fn slot_address(&self, slot: u32) -> Option<Ipv4Addr> {
        let first = self.pool.bounds().0;
        (slot < self.slots()).then(|| Ipv4Addr::from_bits(first + FIRST_SLOT + slot))
    }

    /// Let replies come back: the kernel asks the interface a packet came in by whether it
    /// forwards. Only the interfaces that lead to these addresses are switched on, never all.
    pub(crate) fn open_ways(&self, to: &[Ipv4Addr]) -> Result<(), NetlinkError> {
        let mut links = self.links();
        let mut known = self
            .forwarding
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let mut steps = Steps::new();
        for address in to.iter().chain([&SOMEWHERE]) {
            if let Some(link) = links.way_to(*address)?
                && link != LOOPBACK
                && known.insert(link)
            {
                steps.forward(link);
            }
        }
        if steps.is_empty() {
            Ok(())
        } else {
            links.run(steps)
        }
    }

    /// The MTU towards the internet.
    pub(crate) fn uplink_mtu(&self) -> Result<u32, NetlinkError> {
        let mut links = self.links();
        let Some(index) = links.way_to(SOMEWHERE)? else {
            return Ok(DEFAULT_MTU);
        };
        let mtu = links.link_by_index(index)?.map(|link| link.mtu);
        Ok(mtu.unwrap_or(DEFAULT_MTU).clamp(576, 9000))
    }
}

fn put_gateway(links: &mut Links, gateway: Ipv4Addr) -> Result<(), NetlinkError> {
    let mut steps = Steps::new();
    steps.add_address(LOOPBACK, gateway, 32);
    links.run(steps)
}

/// Whether an address may be reached only if a policy names its network.
pub(crate) fn is_private(address: Ipv4Addr) -> bool {
    PRIVATE.iter().any(|cidr| cidr.contains(address)) && !NEVER.iter().any(|c| c.contains(address))
}
