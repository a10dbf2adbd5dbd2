//! Networks for sandboxes: namespaces, TAPs, rulesets, names, tunnels.
//!
//! Everything is done by netlink in this process; no `ip`, `nft`, `tc` or `sysctl` is ever run.
//! Knows nothing of sandboxes, images or VMMs: the caller starts the VMM inside
//! [`Network::namespace`] and tells the guest [`Network::guest`].

mod conntrack;
pub mod dns;
mod host;
mod identity;
mod link;
mod netlink;
mod netns;
mod network;
mod nft;
pub mod policy;
mod recover;
mod ruleset;
pub mod subnet;
mod tap;
pub mod wireguard;

pub use host::{HostError, HostNetwork, HostOptions, Obstacle, POOLS};
pub use identity::{Identity, Label};
pub use netlink::NetlinkError;
pub use netns::{NamespaceError, NetNamespace};
pub use network::{
    BridgeError, BridgeNetwork, BridgeRecord, BridgeSpec, CloseError, GuestFacts, MAX_SLOT,
    MemberRecord, MemberSpec, Network, NetworkError, NetworkRecord, NetworkSpec,
};
pub use recover::Swept;
pub use tap::TapOwner;
