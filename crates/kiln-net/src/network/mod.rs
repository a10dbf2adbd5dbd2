//! Everything that one sandbox's network is made of, owned by one guard.
//!
//! Owns the order of operations: compile, create, apply, update, take down, adopt. Knows rooms
//! below it; does not know what a sandbox is, nor who starts the VMM inside the namespace.

mod bridge;
mod create;
mod flows;
mod guest;
mod member;
mod reserve;
mod rules;
mod sandbox;
mod seat;

pub use bridge::{BridgeError, BridgeNetwork, BridgeRecord, BridgeSpec};
pub use guest::GuestFacts;
pub use member::{Joined, MemberRecord, MemberSpec};
pub use sandbox::{CloseError, Network, NetworkError, NetworkRecord, NetworkSpec};

/// The highest slot: one address each in the largest pool, and its first base-36 digit is a number.
pub const MAX_SLOT: u32 = 130_000;
