//! Networks of sandboxes: who has which slot, what is made when, and what goes when.
//!
//! Owns the host's network of one data directory ([`Networks`]), which is touched only once a
//! sandbox wants a network, those that sandboxes share by name ([`named`]), and each sandbox's hold
//! on its own or its place in one of those ([`Attachment`]). How packets are
//! filtered is [`kiln_net`]'s business; it knows nothing of VMMs.

mod attach;
mod attachment;
mod error;
mod firewalls;
mod host;
mod info;
mod named;
mod own;
mod shared;
mod spec;
mod user;
mod verify;
mod watch;

pub(crate) use attach::{Attached, Occupant, adopt, attach};
pub(crate) use attachment::Attachment;
pub(crate) use host::{Networks, identity};
pub use info::NetworkInfo;
pub(crate) use named::NamedSpec;
pub use named::{NamedNetwork, NetworkMember, NewNetwork, Secret, Tunnel, TunnelInfo, WireGuard};
pub use spec::{NetworkMode, NetworkSpec};
pub(crate) use verify::verify;
pub use verify::{Proof, ProofOutcome};
