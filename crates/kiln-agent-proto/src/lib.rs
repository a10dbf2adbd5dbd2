//! The wire format between a host and the agent in its guests.
//!
//! Owns bytes and their meaning: the in-band [`handshake`], the [`frame`]s on one stream of the
//! multiplexed connection, the [`message`]s in them, and the negotiation of the protocol
//! [`version`]. Knows nothing of transports, runtimes, processes or sandboxes.
//!
//! The format is frozen: a snapshot keeps an agent alive for years, and a newer host has to
//! speak with it. Field numbers never change and are never reused, unknown fields are ignored,
//! and every message has its golden bytes in the tests.
//!
//! A connection, from the bottom:
//!
//! 1. host: hello with a nonce; agent: acknowledgement of the last hello it saw ([`handshake`]);
//! 2. yamux, the host being its client; one stream per operation;
//! 3. on each stream: one [`message::Request`], one [`message::Reply`], then the operation's own
//!    messages, each in a [`frame`];
//! 4. the first operation is always [`message::Hello`], which settles the [`version`].

pub mod frame;
pub mod handshake;
pub mod limits;
pub mod message;
pub mod prefixed;
pub mod request;
pub mod version;
