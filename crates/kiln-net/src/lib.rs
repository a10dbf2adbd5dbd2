//! Networks for sandboxes.
pub mod netlink;
pub mod policy;
pub mod subnet;
