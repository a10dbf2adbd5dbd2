//! The check that web traffic names an allowed host: for addresses that many names share.
//!
//! A domain rule opens addresses; a content network serves many names at one address. With
//! `verify_hosts`, connections to ports 80 and 443 come here first: the name in the TLS hello or in
//! the HTTP head must be allowed and must have been resolved to exactly this address. What this
//! cannot see: another name inside the encrypted part (domain fronting, an encrypted hello).
//! Owns the parsers and the relay. Asks the resolver's state who may go where.

mod hello;
mod request;
mod serve;

pub(crate) use serve::serve;

/// Where the check listens, at the gateway's address.
pub(crate) const PORT: u16 = 8443;

use crate::policy::DomainName;

/// What the first bytes of a connection say.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Peek {
    /// Not enough of them yet.
    More,
    /// The name, and how much the guest may send altogether (`None`: without end).
    Named {
        name: DomainName,
        budget: Option<u64>,
    },
    /// No name, or nothing that should be passed on.
    Refused,
}

/// For fuzzing.
pub(crate) fn hostile(bytes: &[u8]) {
    let _ = (hello::peek(bytes), request::peek(bytes));
}
