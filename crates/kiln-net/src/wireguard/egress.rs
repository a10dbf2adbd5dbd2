//! A way out through a tunnel: device, routing table, rules.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, ToSocketAddrs};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::io::Errno;

use super::config::{Config, Endpoint};
use super::device;
use crate::host::{HostNetwork, Shared};
use crate::identity::Label;
use crate::link::{LinkInfo, Links, Route, RouteInfo, RuleSpec, Steps};
use crate::netlink::NetlinkError;
use crate::subnet::{Cidr, InterfaceName};

/// The routing table that wg-quick uses, too.
pub const DEFAULT_TABLE: u32 = 51820;
const DEFAULT_MTU: u32 = 1420;
/// Before the main table's rule (32766), after what an administrator would put first.
const RULE_PRIORITY: u32 = 5182;
const FIRST_METRIC: u32 = 100;
/// What the tag of a tunnel of ours ends with.
const LABEL: &str = "wireguard";
/// `default`, `main` and `local` are everyone's.
const SHARED_TABLES: std::ops::RangeInclusive<u32> = 253..=255;

/// Which tunnel; the two exclude each other (A8.3).
#[derive(Debug, Clone)]
pub enum Tunnel {
    /// Made by us and deleted by us (A8.1).
    Managed {
        /// Its name.
        interface: InterfaceName,
        /// What it is made from.
        config: Config,
    },
    /// Somebody else's: used, never changed, never deleted (A8.2).
    Existing {
        /// Its name.
        interface: InterfaceName,
    },
}

impl Tunnel {
    fn interface(&self) -> &InterfaceName {
        match self {
            Self::Managed { interface, .. } | Self::Existing { interface } => interface,
        }
    }
}

/// A tunnel and how it is used (A8.3).
#[derive(Debug, Clone)]
pub struct EgressSpec {
    /// Which tunnel.
    pub tunnel: Tunnel,
    /// The routing table.
    pub table: u32,
    /// Everything goes through the tunnel; else only what its peers allow.
    pub route_all: bool,
    /// What cannot go through the tunnel is dropped.
    pub fail_closed: bool,
}

impl EgressSpec {
    /// Everything through the tunnel, or nowhere.
    pub fn new(tunnel: Tunnel) -> Self {
        Self {
            tunnel,
            table: DEFAULT_TABLE,
            route_all: true,
            fail_closed: true,
        }
    }
}

/// Why a tunnel cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WireGuardError {
    /// The kernel refused.
    #[error("cannot set up the tunnel {interface}")]
    Netlink {
        /// The tunnel.
        interface: InterfaceName,
        /// What the kernel said.
        #[source]
        source: NetlinkError,
    },
    /// The kernel has no WireGuard.
    #[error("this kernel has no WireGuard (load the module `wireguard`)")]
    NotInKernel,
    /// The interface of a managed tunnel exists and is not ours.
    #[error("the interface {interface} exists and is not Kiln's")]
    InterfaceTaken {
        /// The name.
        interface: InterfaceName,
    },
    /// An interface name that our own rules are about.
    #[error("the name {interface} begins like the names of sandboxes' interfaces")]
    InterfaceName {
        /// The name.
        interface: InterfaceName,
    },
    /// The existing tunnel does not exist.
    #[error("there is no interface {interface} with an IPv4 address")]
    NoInterface {
        /// The name.
        interface: InterfaceName,
    },
    /// The table cannot be ours.
    #[error("routing table {table} is not available: 0 and 253 to 255 are the system's")]
    Table {
        /// The table.
        table: u32,
    },
    /// Somebody else's default route is in the table (A8.4).
    #[error("routing table {table} already has a default route that is not Kiln's")]
    TableTaken {
        /// The table.
        table: u32,
    },
    /// A peer's name has no address.
    #[error("cannot resolve the endpoint {name}")]
    Endpoint {
        /// The name.
        name: String,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// A tunnel in use. Several networks may share it; it is taken down when the last lets go.
#[derive(Debug)]
pub struct Egress {
    host: Arc<Shared>,
    interface: InterfaceName,
    managed: bool,
    /// The link's number, which changes when somebody makes it anew; 0 before there is one.
    index: AtomicU32,
    address: Ipv4Addr,
    mtu: u32,
    table: u32,
    fail_closed: bool,
    networks: Vec<Cidr>,
    active: bool,
}

impl Egress {
    /// Bring a tunnel into use. One that an earlier process of this data directory brought up is
    /// taken over. Blocking: resolves names of endpoints.
    ///
    /// # Errors
    /// [`WireGuardError`]; what was done is undone.
    pub fn up(host: &HostNetwork, spec: EgressSpec) -> Result<Arc<Self>, WireGuardError> {
        let shared = Arc::clone(host.shared());
        let interface = spec.tunnel.interface().clone();
        check(&shared, &interface, spec.table)?;
        let fail = |source| WireGuardError::Netlink {
            interface: interface.clone(),
            source,
        };
        // Before anything points at the table, it refuses everything.
        let mut egress = Self {
            host: shared,
            interface: interface.clone(),
            managed: false,
            index: AtomicU32::new(0),
            address: Ipv4Addr::UNSPECIFIED,
            mtu: DEFAULT_MTU,
            table: spec.table,
            fail_closed: spec.fail_closed,
            networks: Vec::new(),
            active: true,
        };
        egress.refuse_by_default().map_err(fail)?;
        egress.networks = match (&spec.tunnel, spec.route_all) {
            (Tunnel::Managed { config, .. }, false) => config
                .peers
                .iter()
                .flat_map(|peer| peer.allowed.clone())
                .collect(),
            _ => vec![Cidr::ALL],
        };
        match &spec.tunnel {
            Tunnel::Managed { config, .. } => egress.make(config)?,
            Tunnel::Existing { .. } => egress.find()?,
        }
        egress.route().map_err(fail)?;
        Ok(Arc::new(egress))
    }

    /// Leave the tunnel up for the next process to take over.
    pub fn detach(self: Arc<Self>) {
        if let Some(mut egress) = Arc::into_inner(self) {
            egress.active = false;
        }
    }

    fn refuse_by_default(&self) -> Result<(), NetlinkError> {
        if !self.fail_closed {
            return Ok(());
        }
        let mut steps = Steps::new();
        steps.ensure_route(&self.last_resort());
        self.host.links().run(steps)
    }

    fn last_resort(&self) -> Route {
        Route::refusal(self.table)
    }

    /// The device: created, or taken over if it is ours.
    fn make(&mut self, config: &Config) -> Result<(), WireGuardError> {
        let endpoints = resolve(config)?;
        self.mtu = config.mtu.unwrap_or(DEFAULT_MTU);
        let alias = self.host.identity.alias(&Label::new(LABEL));
        let interface = self.interface.clone();
        let fail = |source: NetlinkError| match source.errno() {
            Some(Errno::OPNOTSUPP) => WireGuardError::NotInKernel,
            _ => WireGuardError::Netlink {
                interface: interface.clone(),
                source,
            },
        };
        let mut links = self.host.links();
        let found = links.link(interface.as_str()).map_err(fail)?;
        match found {
            Some(link) if link.alias.as_deref() != Some(alias.as_str()) => {
                return Err(WireGuardError::InterfaceTaken { interface });
            }
            Some(_) => {}
            None => {
                let mut steps = Steps::new();
                steps.add_link(&interface, "wireguard", None, self.mtu, &alias);
                links.run(steps).map_err(fail)?;
            }
        }
        self.managed = true;
        device::configure(&interface, config, &endpoints).map_err(fail)?;
        let link = links.link(interface.as_str()).map_err(fail)?;
        let index = link
            .ok_or_else(|| WireGuardError::NoInterface {
                interface: interface.clone(),
            })?
            .index;
        self.index = AtomicU32::new(index);
        let mut steps = Steps::new();
        steps.set_mtu(index, self.mtu);
        for (address, prefix) in &config.addresses {
            steps.add_address(index, *address, *prefix);
        }
        steps.no_ipv6(index);
        steps.up(index);
        links.run(steps).map_err(fail)?;
        self.address = config
            .addresses
            .first()
            .map_or(Ipv4Addr::UNSPECIFIED, |first| first.0);
        Ok(())
    }

    fn find(&mut self) -> Result<(), WireGuardError> {
        let interface = self.interface.clone();
        let fail = |source| WireGuardError::Netlink {
            interface: interface.clone(),
            source,
        };
        let missing = || WireGuardError::NoInterface {
            interface: interface.clone(),
        };
        let mut links = self.host.links();
        let link = links
            .link(interface.as_str())
            .map_err(fail)?
            .ok_or_else(missing)?;
        let addresses = links.addresses().map_err(fail)?;
        let first = addresses.iter().find(|address| address.index == link.index);
        self.address = first.ok_or_else(missing)?.address;
        (self.index, self.mtu) = (AtomicU32::new(link.index), link.mtu);
        Ok(())
    }

    /// Lead traffic through the tunnel again when it has come back: the kernel forgets the routes of
    /// an interface that goes down, and one that was made anew has another number. Whether the
    /// tunnel is up.
    ///
    /// # Errors
    /// [`NetlinkError`]; what is closed stays closed.
    pub fn mend(&self) -> Result<bool, NetlinkError> {
        let found = self.host.links().link(self.interface.as_str())?;
        let Some(link) = found.filter(|link| link.up) else {
            return Ok(false);
        };
        self.index.store(link.index, Ordering::Relaxed);
        self.route()?;
        Ok(true)
    }

    /// Routes of the table, and the rule for questions that are asked from the tunnel's address. One
    /// that is down has no routes until it is mended.
    fn route(&self) -> Result<(), NetlinkError> {
        let index = self.index.load(Ordering::Relaxed);
        let mut links = self.host.links();
        let mut steps = Steps::new();
        steps.forward(index);
        // Answers come back by an interface that the main table would not send to.
        steps.loose_reverse_path(index);
        if links.link_by_index(index)?.is_some_and(|link| link.up) {
            self.routes()
                .iter()
                .for_each(|route| steps.ensure_route(route));
        }
        steps.ensure_rule(&self.rule(Cidr::host(self.address)));
        links.run(steps)
    }

    fn routes(&self) -> Vec<Route> {
        let through = |network: &Cidr| Route {
            table: Some(self.table),
            metric: Some(FIRST_METRIC),
            ..Route::to(*network, self.index.load(Ordering::Relaxed))
        };
        self.networks.iter().map(through).collect()
    }

    fn rule(&self, from: Cidr) -> RuleSpec {
        RuleSpec {
            from,
            table: self.table,
            priority: RULE_PRIORITY,
        }
    }

    /// Lead a network's packets into the table.
    pub(crate) fn claim(&self, links: &mut Links, from: Cidr) -> Result<(), NetlinkError> {
        let mut steps = Steps::new();
        steps.ensure_rule(&self.rule(from));
        links.run(steps)
    }

    /// As [`Self::claim`] for a bridge: the host's own answers to the network must not leave by the
    /// tunnel.
    pub(crate) fn claim_bridge(
        &self,
        links: &mut Links,
        from: Cidr,
        bridge: u32,
    ) -> Result<(), NetlinkError> {
        let mut steps = Steps::new();
        steps.ensure_route(&Route {
            table: Some(self.table),
            ..Route::to(from, bridge)
        });
        links.run(steps)?;
        self.claim(links, from)
    }

    /// Undo [`Self::claim`].
    pub(crate) fn release(&self, links: &mut Links, from: Cidr) -> Result<(), NetlinkError> {
        let mut steps = Steps::new();
        steps.delete_rule(&self.rule(from));
        links.run(steps)
    }

    /// The interface that traffic must leave by, if no other will do.
    pub(crate) fn only_way(&self) -> Option<InterfaceName> {
        let everything = self.networks == [Cidr::ALL];
        (self.fail_closed && everything).then(|| self.interface.clone())
    }

    /// The tunnel's interface.
    pub fn interface(&self) -> &InterfaceName {
        &self.interface
    }

    /// Our address in the tunnel.
    pub fn address(&self) -> Ipv4Addr {
        self.address
    }

    /// The largest packet that passes whole.
    pub fn mtu(&self) -> u32 {
        self.mtu
    }

    /// The rules first: nothing points at a table that is half gone.
    fn down(&self) -> Result<(), NetlinkError> {
        let mut steps = Steps::new();
        steps.delete_rule(&self.rule(Cidr::host(self.address)));
        if self.index.load(Ordering::Relaxed) != 0 {
            self.routes()
                .iter()
                .for_each(|route| steps.delete_route(route));
        }
        let mut links = self.host.links();
        let rules = links.run(steps);
        let device = if self.managed {
            links.delete(self.interface.as_str())
        } else {
            Ok(())
        };
        let mut steps = Steps::new();
        if self.fail_closed {
            steps.delete_route(&self.last_resort());
        }
        rules.and(device).and(links.run(steps))
    }
}

impl Drop for Egress {
    fn drop(&mut self) {
        if !self.active {
            return;
        }
        if let Err(error) = self.down() {
            tracing::warn!(interface = %self.interface, %error, "a tunnel was not taken down whole");
        }
    }
}

/// Whether a link is a tunnel that this data directory made.
pub(crate) fn is_ours(host: &Shared, link: &LinkInfo) -> bool {
    let alias = host.identity.alias(&Label::new(LABEL));
    link.kind.as_deref() == Some("wireguard") && link.alias.as_deref() == Some(alias.as_str())
}

fn check(host: &Shared, interface: &InterfaceName, table: u32) -> Result<(), WireGuardError> {
    if table == 0 || SHARED_TABLES.contains(&table) {
        return Err(WireGuardError::Table { table });
    }
    if interface.as_str().starts_with(host.identity.prefix()) {
        return Err(WireGuardError::InterfaceName {
            interface: interface.clone(),
        });
    }
    let taken = table_is_taken(host, interface, table);
    match taken {
        Ok(false) => Ok(()),
        Ok(true) => Err(WireGuardError::TableTaken { table }),
        Err(source) => Err(WireGuardError::Netlink {
            interface: interface.clone(),
            source,
        }),
    }
}

/// Whether the table's default route is not ours, or leads into another tunnel.
fn table_is_taken(
    host: &Shared,
    interface: &InterfaceName,
    table: u32,
) -> Result<bool, NetlinkError> {
    let mut links = host.links();
    let index = links.link(interface.as_str())?.map(|link| link.index);
    let default = |route: &RouteInfo| route.table == table && route.destination == Cidr::ALL;
    let elsewhere = |route: &RouteInfo| route.link.is_some() && route.link != index;
    let mut routes = links.routes()?.into_iter().filter(default);
    Ok(routes.any(|route| !route.ours || elsewhere(&route)))
}

fn resolve(config: &Config) -> Result<Vec<Option<SocketAddr>>, WireGuardError> {
    let one = |endpoint: &Endpoint| match endpoint {
        Endpoint::Address(address) => Ok(*address),
        Endpoint::Name(name, port) => {
            let failed = |source| WireGuardError::Endpoint {
                name: name.clone(),
                source,
            };
            let mut found = (name.as_str(), *port).to_socket_addrs().map_err(failed)?;
            found
                .next()
                .ok_or_else(|| failed(io::ErrorKind::NotFound.into()))
        }
    };
    config
        .peers
        .iter()
        .map(|peer| peer.endpoint.as_ref().map(one).transpose())
        .collect()
}
