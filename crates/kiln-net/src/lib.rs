//! Networks for sandboxes: namespaces, TAPs, rulesets, names, tunnels.
//!
//! Everything is done by netlink in this process; no `ip`, `nft`, `tc` or `sysctl` is ever run.
//! Knows nothing of sandboxes, images or VMMs.
//!
//! | what | owner | who calls |
//! |---|---|---|
//! | the host's part: table, gateway address, pool, resolver | [`HostNetwork`] | once per data directory |
//! | one sandbox: namespace, TAP, veth, rules, ports | [`Network`] | one per sandbox |
//! | a network that several VMs share (A6, A7) | [`BridgeNetwork`] | one per named network |
//! | a tunnel that traffic leaves by (A8) | [`wireguard::Egress`] | shared by networks |
//! | proof that a policy is enforced | [`verify::Verification`] | `kiln network verify` |
//!
//! Guards take down what they own when dropped; `close()` does it and says what failed; `detach()`
//! leaves it running for the next process. What must be stored is a serde value
//! ([`NetworkRecord`], [`BridgeRecord`], [`MemberRecord`]) that is known *before* anything exists
//! ([`HostNetwork::reserve`]). All calls block for milliseconds: from async code, use
//! `spawn_blocking`. The resolver's task is the only async part.
//!
//! A sandbox's life:
//!
//! ```no_run
//! use kiln_net::{HostNetwork, HostOptions, Identity, Label, NetNamespace, Network, NetworkSpec, TapOwner};
//! use kiln_net::{dns::DnsOptions, policy::PolicySpec};
//! # fn store<T>(_: &T) {}
//! # fn spawn_vmm_in(_: &NetNamespace) -> u32 { 0 }
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! // Once, when the data directory is opened.
//! let resolvers = kiln_net::dns::resolvers_of(&std::fs::read_to_string("/etc/resolv.conf")?);
//! let dns = DnsOptions { resolvers, ..DnsOptions::default() };
//! let host = HostNetwork::open(HostOptions { identity: Identity::standard(), pool: None, dns })?;
//! store(&host.pool());
//! let _names = host.gate().serve().await?; // answers until dropped
//!
//! // Create: the record is stored first, then the network is made, then the VMM started inside.
//! let policy = PolicySpec { allowed_domains: vec!["*.example.com".into()], ..PolicySpec::default() }.check()?;
//! let record = host.reserve(7)?; // the slot is leased by the caller's store
//! store(&record);
//! let spec = NetworkSpec {
//!     label: Label::new("sb-4711"),
//!     hostname: None,
//!     owner: TapOwner { uid: 10_007, gid: 10_007 },
//!     policy,
//!     via: None,
//! };
//! let mut network = Network::create(&host, record, spec.clone())?;
//! let guest = network.guest(); // TAP, MAC, address, prefix, gateway, resolver, MTU for the agent
//! let pid = spawn_vmm_in(network.namespace()); // `enter()` in pre_exec, or `path()` for a jailer
//!
//! // Update: one transaction; the record's generation changes with it.
//! let changed = PolicySpec::default().check()?;
//! network.update(changed.clone())?;
//! store(&network.record());
//!
//! // A new process: adopt what is alive, then sweep what nobody adopted.
//! let record = network.detach();
//! let spec = NetworkSpec { policy: changed, ..spec };
//! let network = Network::adopt(&host, record, spec, NetNamespace::of_process(pid)?)?;
//! host.sweep(&[network.record().interface].into())?;
//!
//! network.close()?;
//! # Ok(()) }
//! ```

mod accept;
mod chains;
mod codes;
mod conntrack;
pub mod dns;
mod host;
#[doc(hidden)]
pub mod hostile;
mod hosts;
mod identity;
mod leftovers;
mod link;
mod netlink;
mod netns;
mod network;
mod nft;
mod obstacles;
pub mod policy;
mod pool;
mod recover;
mod ruleset;
pub mod subnet;
mod tables;
mod tap;
pub mod verify;
pub mod wireguard;

pub use host::{HostError, HostNetwork, HostOptions};
pub use identity::{Identity, Label};
pub use leftovers::Trace;
pub use netlink::NetlinkError;
pub use netns::{NamespaceError, NetNamespace};
pub use network::{
    BridgeError, BridgeNetwork, BridgeRecord, BridgeSpec, CloseError, GuestFacts, Joined, MAX_SLOT,
    MemberRecord, MemberSpec, Network, NetworkError, NetworkRecord, NetworkSpec,
};
pub use obstacles::Obstacle;
pub use pool::POOLS;
pub use recover::Swept;
pub use tap::TapOwner;
