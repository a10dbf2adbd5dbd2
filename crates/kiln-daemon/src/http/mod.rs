//! HTTP on the socket: connections, who may use them, errors, and streams. What the paths mean is
//! told in [`crate::v1`].

pub(crate) mod audit;
pub(crate) mod auth;
mod connection;
pub(crate) mod error;
pub(crate) mod extract;
mod input;
mod pump;
pub(crate) mod stream;

pub(crate) use connection::{Connection, Service};
