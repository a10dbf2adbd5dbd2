//! The few calls into the kernel that have no safe wrapper.
//!
//! The only room of the agent with `unsafe`; what it offers is safe to call.

pub(crate) mod child;
pub(crate) mod child_signal;
mod clone;
pub(crate) mod entropy;
pub(crate) mod event;
pub(crate) mod network;
pub(crate) mod signal;
pub(crate) mod vsock;
