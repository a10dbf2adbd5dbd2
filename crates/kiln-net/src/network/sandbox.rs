//! The guard that owns one sandbox's network.

use std::io;
use std::net::Ipv4Addr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::flows::newly_denied;
use super::guest::{GATEWAY, GUEST, GUEST_MAC, GUEST_PREFIX};
use super::reserve::Reservation;
use super::{GuestFacts, MAX_SLOT, create};
use crate::dns::{Subscriber, Subscription};
use crate::host::{HostNetwork, Shared, is_private};
use crate::link::{Links, Steps};
use crate::netlink::NetlinkError;
use crate::netns::{NamespaceError, NetNamespace};
use crate::policy::{Destination, Policy, PublishedPort};
use crate::recover;
use crate::ruleset::sandbox::{Entry, GENERATION_BITS, Subject};
use crate::subnet::{Cidr, InterfaceName, SubnetError};
use crate::tap::TapOwner;
use crate::wireguard::Egress as WireGuardEgress;

/// What a sandbox's network is made from.
#[derive(Debug, Clone)]
pub struct NetworkSpec {
    /// Leased by the caller: no two live networks of one data directory share it.
    pub slot: u32,
    /// Who may open the TAP.
    pub owner: TapOwner,
    /// What may be reached.
    pub policy: Policy,
    /// The only way out, if the traffic must go through a tunnel.
    pub via: Option<Arc<WireGuardEgress>>,
}

/// What must be stored to find a network again after a restart.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetworkRecord {
    /// The sandbox's interface on the host.
    pub interface: InterfaceName,
    /// The lease.
    pub slot: u32,
    /// Counts policies.
    pub generation: u8,
}

/// Why a network could not be created, changed or adopted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NetworkError {
    /// The slot has no address in the pool.
    #[error("slot {slot} has no address in the pool {pool}")]
    Slot {
        /// The slot.
        slot: u32,
        /// The pool.
        pool: Cidr,
    },
    /// A name could not be made.
    #[error("cannot name an interface")]
    Name(#[from] SubnetError),
    /// The namespace failed.
    #[error("the sandbox's network namespace failed")]
    Namespace(#[from] NamespaceError),
    /// The kernel refused.
    #[error("the kernel refused part of the network")]
    Netlink(#[from] NetlinkError),
    /// The TAP could not be created.
    #[error("cannot create the TAP (needs /dev/net/tun and CAP_NET_ADMIN)")]
    Tap(#[source] io::Error),
    /// Another program listens on a port that should be published.
    #[error("cannot publish {port}: the host's port is taken")]
    PortTaken {
        /// The port.
        port: PublishedPort,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The network to adopt is not there any more.
    #[error("the interface {interface} is gone or is not ours")]
    Gone {
        /// What was looked for.
        interface: InterfaceName,
    },
    /// A random name could not be drawn.
    #[error("cannot draw a random number")]
    Random(#[source] io::Error),
}

/// Everything could not be taken down; what could be is gone.
#[derive(Debug, thiserror::Error)]
#[error("part of the network {interface} is still there ({} failures)", .failures.len())]
pub struct CloseError {
    /// The network.
    pub interface: InterfaceName,
    /// What failed, in order.
    pub failures: Vec<NetlinkError>,
}

/// One sandbox's network: namespace, TAP, veth, addresses, rules, resolver entry, published ports.
///
/// Blocking; call from a thread that may block (a few milliseconds). Dropping it takes everything
/// down; [`Self::close`] does the same and says what failed; [`Self::detach`] leaves it running for
/// the next process to adopt.
#[derive(Debug)]
pub struct Network {
    pub(super) host: Arc<Shared>,
    pub(super) namespace: NetNamespace,
    pub(super) subject: Subject,
    pub(super) policy: Arc<Policy>,
    pub(super) address: Ipv4Addr,
    pub(super) mtu: u32,
    pub(super) entry: Option<Entry>,
    pub(super) connected: bool,
    pub(super) subscriber: Option<Arc<Subscriber>>,
    pub(super) reservations: Vec<Reservation>,
    pub(super) via: Option<Arc<WireGuardEgress>>,
}

impl Network {
    /// Create a network. When a step fails, those before it are undone and the first error is
    /// returned.
    ///
    /// # Errors
    /// [`NetworkError`].
    pub fn create(host: &HostNetwork, spec: NetworkSpec) -> Result<Self, NetworkError> {
        let (mut network, inside) = create::prepare(Arc::clone(host.shared()), spec)?;
        network.reserve()?;
        // The rules come first: there is no moment in which the link is up and unguarded. (An
        // interface that no set names is dropped, too.)
        network.admit()?;
        network.connect()?;
        network.furnish(inside)?;
        network.subscribe();
        Ok(network)
    }

    /// Take over a network that another process created and left running, by its name. `namespace`
    /// is the VMM's ([`NetNamespace::of_process`]). Rules that are still in force stay untouched.
    ///
    /// # Errors
    /// [`NetworkError::Gone`] when the interface does not exist or does not belong to this data
    /// directory. The network is left as it was on every error.
    pub fn adopt(
        host: &HostNetwork,
        record: NetworkRecord,
        spec: NetworkSpec,
        namespace: NetNamespace,
    ) -> Result<Self, NetworkError> {
        let mut network = create::found(Arc::clone(host.shared()), record, spec, namespace)?;
        let taken_over = network.take_over();
        if taken_over.is_err() {
            network.forget_ownership();
        }
        taken_over.map(|()| network)
    }

    fn take_over(&mut self) -> Result<(), NetworkError> {
        self.reserve()?;
        self.open_ways(&Arc::clone(&self.policy))?;
        let entry = Entry::compile(&self.subject, &self.policy, &[]);
        if !recover::is_in_force(&self.host, &self.subject)? {
            let mut changes = recover::eviction(&self.host, &self.subject.interface)?;
            changes.extend(entry.add());
            self.host.apply(changes)?;
        }
        self.entry = Some(entry);
        self.connected = true;
        self.subscribe();
        Ok(())
    }

    /// Exchange the policy in one transaction. Running flows that the new one permits go on;
    /// those it denies are cut. When something fails, the old policy is in force as before.
    ///
    /// # Errors
    /// [`NetworkError`].
    pub fn update(&mut self, policy: Policy) -> Result<(), NetworkError> {
        let policy = Arc::new(policy);
        let kept_ports = self.reservations.len();
        let outcome = self.try_update(&policy);
        if outcome.is_err() {
            self.reservations.truncate(kept_ports);
            self.limit(&self.policy, &policy)?;
        } else {
            self.reservations
                .retain(|reservation| policy.publish.contains(&reservation.port));
        }
        outcome
    }

    fn try_update(&mut self, policy: &Arc<Policy>) -> Result<(), NetworkError> {
        self.reserve_for(policy)?;
        self.open_ways(policy)?;
        self.limit(policy, &self.policy)?;
        let next = Subject {
            generation: next_generation(self.subject.generation),
            published: published(policy, self.address),
            ..self.subject.clone()
        };
        let subscriber = self.subscriber.clone();
        let mut subscription = subscriber.as_ref().map(|subscriber| subscriber.lock());
        let grants = subscription
            .as_ref()
            .map(|s| s.grants_under(policy))
            .unwrap_or_default();
        let entry = Entry::compile(&next, policy, &grants);
        let old = self.entry.clone();
        self.host.apply(match &old {
            Some(old) => old.replace_with(&entry),
            None => entry.add(),
        })?;
        let cut = self.cut_denied(policy, &next, |clause, address| {
            grants
                .iter()
                .any(|grant| grant.clause == clause && grant.address == address)
        });
        if let (Err(error), Some(old)) = (cut, &old) {
            self.host.apply(entry.replace_with(old))?;
            return Err(error);
        }
        if let Some(subscription) = &mut subscription {
            subscription.policy = Arc::clone(policy);
            subscription.generation = next.generation;
        }
        self.entry = Some(entry);
        self.subject = next;
        self.policy = Arc::clone(policy);
        Ok(())
    }

    fn cut_denied(
        &self,
        policy: &Policy,
        next: &Subject,
        resolved: impl Fn(usize, Ipv4Addr) -> bool,
    ) -> Result<(), NetworkError> {
        let mut conntrack = self.host.conntrack();
        let flows = conntrack.flows(self.marks(), MARK_MASK, &self.subject.sources)?;
        let denied = newly_denied(
            flows,
            &self.subject.sources,
            policy,
            &next.published,
            resolved,
        );
        Ok(conntrack.forget(&denied)?)
    }

    fn marks(&self) -> u32 {
        self.subject.slot << GENERATION_BITS
    }

    /// Take everything down. Does not stop at the first failure.
    ///
    /// # Errors
    /// [`CloseError`] with all that failed.
    pub fn close(mut self) -> Result<(), CloseError> {
        let failures = self.take_down();
        let interface = self.subject.interface.clone();
        if failures.is_empty() {
            Ok(())
        } else {
            Err(CloseError {
                interface,
                failures,
            })
        }
    }

    /// Leave the network running and give up ownership: the next process adopts it by the record.
    pub fn detach(mut self) -> NetworkRecord {
        let record = self.record();
        self.forget_ownership();
        record
    }

    fn forget_ownership(&mut self) {
        self.entry = None;
        self.connected = false;
        if self.subscriber.take().is_some() {
            self.host.gate.unsubscribe(self.address);
        }
        self.via = None;
    }

    /// No traffic first, then no memory of it, then no names and no way there. The namespace, TAP
    /// and veth go by themselves with the last process in the namespace.
    fn take_down(&mut self) -> Vec<NetlinkError> {
        let mut failures = Vec::new();
        let mut note = |step: Result<(), NetlinkError>| failures.extend(step.err());
        if self.subscriber.take().is_some() {
            self.host.gate.unsubscribe(self.address);
        }
        if let Some(entry) = self.entry.take() {
            note(self.host.apply(entry.remove()));
            note(self.forget_flows());
        }
        if std::mem::take(&mut self.connected) {
            note(create::disconnect(
                &self.host,
                &self.subject.interface,
                self.address,
            ));
        }
        if let Some(via) = self.via.take() {
            note(via.release(&mut self.host.links(), Cidr::host(self.address)));
        }
        self.reservations.clear();
        failures
    }

    fn forget_flows(&self) -> Result<(), NetlinkError> {
        let mut conntrack = self.host.conntrack();
        let flows = conntrack.flows(self.marks(), MARK_MASK, &self.subject.sources)?;
        conntrack.forget(&flows)
    }

    /// What to store.
    pub fn record(&self) -> NetworkRecord {
        NetworkRecord {
            interface: self.subject.interface.clone(),
            slot: self.subject.slot,
            generation: self.subject.generation,
        }
    }

    /// The namespace that the VMM must run in.
    pub fn namespace(&self) -> &NetNamespace {
        &self.namespace
    }

    /// The policy in force.
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    /// Where the host reaches the guest.
    pub fn address(&self) -> Ipv4Addr {
        self.address
    }

    /// What the guest must be told.
    pub fn guest(&self) -> GuestFacts {
        GuestFacts {
            tap: create::tap_name(),
            mac: GUEST_MAC,
            address: GUEST,
            prefix: GUEST_PREFIX,
            gateway: GATEWAY,
            resolver: GATEWAY,
            mtu: self.mtu,
        }
    }

    fn reserve(&mut self) -> Result<(), NetworkError> {
        self.reserve_for(&Arc::clone(&self.policy))
    }

    /// Hold the ports that are not held yet.
    fn reserve_for(&mut self, policy: &Policy) -> Result<(), NetworkError> {
        for port in &policy.publish {
            if self.reservations.iter().any(|held| held.port == *port) {
                continue;
            }
            // The same door may lead elsewhere now; it is ours already.
            let same_door =
                |held: &Reservation| held.port.collides(port) && held.port.address == port.address;
            if let Some(held) = self.reservations.iter_mut().find(|held| same_door(held)) {
                held.port = *port;
                continue;
            }
            let reservation =
                Reservation::take(*port).map_err(|source| NetworkError::PortTaken {
                    port: *port,
                    source,
                })?;
            self.reservations.push(reservation);
        }
        Ok(())
    }

    fn admit(&mut self) -> Result<(), NetworkError> {
        self.open_ways(&Arc::clone(&self.policy))?;
        if let Some(via) = &self.via {
            via.claim(&mut self.host.links(), Cidr::host(self.address))?;
        }
        let entry = Entry::compile(&self.subject, &self.policy, &[]);
        self.host.apply(entry.add())?;
        self.entry = Some(entry);
        Ok(())
    }

    /// Private networks that are named, and host addresses that ports are published at, may lie
    /// behind other interfaces than the internet.
    fn open_ways(&self, policy: &Policy) -> Result<(), NetworkError> {
        let mut addresses: Vec<Ipv4Addr> = Vec::new();
        for clause in policy.clauses() {
            if let Destination::Addresses(ranges) = &clause.destination {
                let first = ranges
                    .as_slice()
                    .iter()
                    .map(|range| Ipv4Addr::from_bits(range.0 | 1));
                addresses.extend(first.filter(|address| is_private(*address)));
            }
        }
        Ok(self.host.open_ways(&addresses)?)
    }

    fn subscribe(&mut self) {
        let mut subscription = Subscription::new(
            Arc::clone(&self.policy),
            self.subject.slot,
            self.subject.generation,
        );
        subscription.ask_from = self.via.as_ref().map(|via| via.address());
        self.subscriber = Some(self.host.gate.subscribe(self.address, subscription));
    }

    /// Set the limits of `policy` where they differ from `before`.
    fn limit(&self, policy: &Policy, before: &Policy) -> Result<(), NetworkError> {
        if policy.bandwidth == before.bandwidth {
            return Ok(());
        }
        self.namespace.run(|| {
            let mut steps = Steps::new();
            create::limit(&mut steps, policy.bandwidth, before.bandwidth);
            Links::open()?.run(steps)
        })??;
        Ok(())
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for error in self.take_down() {
            tracing::warn!(interface = %self.subject.interface, %error, "a network was not taken down whole");
        }
    }
}

/// All generations of one slot.
const MARK_MASK: u32 = u32::MAX << GENERATION_BITS;

/// Never zero, so that an unmarked flow is never taken for an approved one (slot 0 has marks too).
fn next_generation(generation: u8) -> u8 {
    generation.checked_add(1).unwrap_or(1)
}

pub(super) fn published(policy: &Policy, to: Ipv4Addr) -> Vec<(PublishedPort, Ipv4Addr)> {
    policy.publish.iter().map(|port| (*port, to)).collect()
}

const _: () = assert!(MAX_SLOT < 1 << (32 - GENERATION_BITS));
