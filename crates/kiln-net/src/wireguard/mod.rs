//! Sends sandboxes' traffic out through WireGuard: a tunnel of ours, made from wg-quick text, or
//! one that exists already (A8).
//!
//! Owns the tunnel's device, its routing table and rules. Fails closed: first an unreachable route
//! and the rule that points at it, then the tunnel. Keys travel by netlink only.

mod config;
mod device;
mod egress;
mod key;

pub use config::{Config, ConfigError, Endpoint, Peer};
pub(crate) use egress::is_ours;
pub use egress::{DEFAULT_TABLE, Egress, EgressSpec, Tunnel, WireGuardError};
pub use key::Key;
