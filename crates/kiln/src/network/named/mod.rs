//! Networks with a name, which sandboxes share: one bridge, one subnet, one policy, and a tunnel if
//! everything is to leave by it.
//!
//! Owns what is asked ([`NewNetwork`]), what is stored ([`NamedSpec`]), the tunnels' keys
//! ([`secrets`]), and the bridges that are up ([`bridge`]). A bridge comes up with the network or
//! with the first sandbox that joins, and stays until its owner leaves. How packets are filtered is
//! [`kiln_net`]'s business.

mod bridge;
mod info;
mod new;
mod registry;
mod secrets;
mod tunnel;

pub(super) use bridge::Membership;
pub use info::{NamedNetwork, NetworkMember, TunnelInfo};
pub(crate) use new::NamedSpec;
pub use new::NewNetwork;
pub(super) use new::is_name;
pub(super) use registry::Registry;
pub use tunnel::{Secret, Tunnel, WireGuard};
