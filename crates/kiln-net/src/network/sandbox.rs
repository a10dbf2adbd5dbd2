//! The guard that owns one sandbox's network.

use std::io;
use std::net::Ipv4Addr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::guest::{GATEWAY, GUEST, GUEST_MAC, GUEST_PREFIX};
use super::rules::Rules;
use super::{GuestFacts, create};
use crate::host::HostNetwork;
use crate::identity::Label;
use crate::link::{Links, Steps};
use crate::netlink::NetlinkError;
use crate::netns::{NamespaceError, NetNamespace};
use crate::policy::{Bandwidth, DomainName, Policy, PublishedPort};
use crate::subnet::{Cidr, InterfaceName, SubnetError};
use crate::tap::TapOwner;
use crate::wireguard::Egress as WireGuardEgress;

/// What a sandbox's network is made from.
#[derive(Debug, Clone)]
pub struct NetworkSpec {
    /// For people who list the host's links: the sandbox's id.
    pub label: Label,
    /// Handed to the guest as it is.
    pub hostname: Option<DomainName>,
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
    /// Stands for the policy that this generation is: one that was stored but not yet applied is
    /// noticed when adopting.
    pub policy: u64,
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
    pub(crate) rules: Rules,
    pub(super) label: Label,
    pub(super) hostname: Option<DomainName>,
    pub(super) namespace: NetNamespace,
    pub(crate) address: Ipv4Addr,
    pub(super) mtu: u32,
    pub(super) connected: bool,
    pub(super) via: Option<Arc<WireGuardEgress>>,
    /// Whether the routing rule that leads into the tunnel is ours to remove.
    pub(super) claimed: bool,
}

impl Network {
    /// Create the network that `record` ([`HostNetwork::reserve`]) names. When a step fails, those before it are undone and the first error is
    /// returned.
    ///
    /// # Errors
    /// [`NetworkError`].
    pub fn create(
        host: &HostNetwork,
        record: NetworkRecord,
        spec: NetworkSpec,
    ) -> Result<Self, NetworkError> {
        let (mut network, inside) = create::prepare(Arc::clone(host.shared()), record, spec)?;
        // The rules come first: there is no moment in which the link is up and unguarded.
        network.rules.admit()?;
        network.claim_tunnel()?;
        network.connect()?;
        network.furnish(inside)?;
        network.rules.subscribe();
        Ok(network)
    }

    /// Take over a network that another process created and left running, by its name. `namespace`
    /// is the VMM's ([`NetNamespace::of_process`]). Rules that are still in force stay untouched; a
    /// policy in `spec` that is not the recorded one is applied.
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
        let policy = record.policy;
        let mut network = create::found(Arc::clone(host.shared()), record, spec, namespace)?;
        if let Err(error) = network.take_over(policy) {
            network.forget_ownership();
            return Err(error);
        }
        network.connected = true;
        network.rules.subscribe();
        Ok(network)
    }

    fn take_over(&mut self, policy: u64) -> Result<(), NetworkError> {
        if self.rules.adopt(policy)? {
            let wanted = self.rules.policy.bandwidth;
            self.shape(|steps| create::set_limits(steps, wanted))?;
        }
        self.claim_tunnel()
    }

    /// Exchange the policy in one transaction. Running flows that the new one permits go on;
    /// those it denies are cut. When something fails, the old policy is in force as before.
    ///
    /// # Errors
    /// [`NetworkError`].
    pub fn update(&mut self, policy: Policy) -> Result<(), NetworkError> {
        let (before, wanted) = (self.rules.policy.bandwidth, policy.bandwidth);
        self.limit(wanted, before)?;
        let published = published(&policy, self.address);
        let outcome = self.rules.exchange(policy, published);
        if outcome.is_err() {
            self.limit(before, wanted)?;
        }
        outcome
    }

    /// Bring rules and route back if somebody removed them; whether rules were missing, and then
    /// the record has changed. Call [`HostNetwork::ensure`] first.
    ///
    /// # Errors
    /// [`NetworkError`].
    pub fn ensure(&mut self) -> Result<bool, NetworkError> {
        create::ensure_route(
            &self.rules.host,
            &self.rules.subject.interface,
            self.address,
        )?;
        self.rules.ensure()
    }

    /// Take everything down. Does not stop at the first failure.
    ///
    /// # Errors
    /// [`CloseError`] with all that failed.
    pub fn close(mut self) -> Result<(), CloseError> {
        let failures = self.take_down();
        let interface = self.rules.subject.interface.clone();
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
        self.rules.forget_ownership();
        self.connected = false;
        self.claimed = false;
    }

    /// No traffic first, then no way there. The namespace, TAP and veth go by themselves with the
    /// last process in the namespace.
    fn take_down(&mut self) -> Vec<NetlinkError> {
        let mut failures = self.rules.take_down();
        if std::mem::take(&mut self.connected) {
            let interface = &self.rules.subject.interface;
            failures.extend(create::disconnect(&self.rules.host, interface, self.address).err());
        }
        if let Some(via) = self.via.take().filter(|_| self.claimed) {
            let mut links = self.rules.host.links();
            failures.extend(via.release(&mut links, Cidr::host(self.address)).err());
        }
        failures
    }

    fn claim_tunnel(&mut self) -> Result<(), NetworkError> {
        if let Some(via) = &self.via {
            via.claim(&mut self.rules.host.links(), Cidr::host(self.address))?;
            self.claimed = true;
        }
        Ok(())
    }

    /// What to store.
    pub fn record(&self) -> NetworkRecord {
        NetworkRecord {
            interface: self.rules.subject.interface.clone(),
            slot: self.rules.subject.slot,
            generation: self.rules.subject.generation,
            policy: self.rules.policy.fingerprint(),
        }
    }

    /// The namespace that the VMM must run in.
    pub fn namespace(&self) -> &NetNamespace {
        &self.namespace
    }

    /// The policy in force.
    pub fn policy(&self) -> &Policy {
        &self.rules.policy
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
            hostname: self.hostname.clone(),
        }
    }

    /// Set the limits where they differ from those `before`.
    fn limit(&self, wanted: Bandwidth, before: Bandwidth) -> Result<(), NetworkError> {
        if wanted == before {
            return Ok(());
        }
        self.shape(|steps| create::limit(steps, wanted, before))
    }

    fn shape(&self, limits: impl FnOnce(&mut Steps) + Send) -> Result<(), NetworkError> {
        let mut steps = Steps::new();
        limits(&mut steps);
        self.namespace.run(|| Links::open()?.run(steps))??;
        Ok(())
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for error in self.take_down() {
            let interface = &self.rules.subject.interface;
            tracing::warn!(%interface, %error, "a network was not taken down whole");
        }
    }
}

pub(super) fn published(policy: &Policy, to: Ipv4Addr) -> Vec<(PublishedPort, Ipv4Addr)> {
    policy.publish.iter().map(|port| (*port, to)).collect()
}
