//! Applies rulesets over `NETLINK_NETFILTER`: one transaction, all or nothing.
//!
//! Owns the encoding of the ruleset's model and the socket. Knows nothing of policies. Never runs
//! `nft`.

mod encode;
mod expression;
mod foreign;
mod inspect;

pub(crate) use foreign::Guest;
pub(crate) use inspect::{BaseChain, KeyAndData, hostile};

use crate::netlink::{ACK, Batch, Family, NetlinkError, Socket};
use crate::ruleset::Transaction;

/// A conversation with nftables in one network namespace.
#[derive(Debug)]
pub(crate) struct Nft {
    socket: Socket,
}

impl Nft {
    /// Open in the calling thread's network namespace.
    pub(crate) fn open() -> Result<Self, NetlinkError> {
        Ok(Self {
            socket: Socket::open(Family::Netfilter)?,
        })
    }

    /// Apply all changes or none.
    pub(crate) fn apply(&mut self, transaction: &Transaction) -> Result<(), NetlinkError> {
        if transaction.changes.is_empty() {
            return Ok(());
        }
        self.socket.execute(encode::transaction(transaction))
    }

    fn ask(&mut self, batch: Batch, on_reply: impl FnMut(&[u8])) -> Result<(), NetlinkError> {
        let mut on_reply = on_reply;
        self.socket.query(batch, |reply| on_reply(reply.payload))
    }
}

/// `nfgenmsg`: address family, version, resource id.
fn header(family: u8, resource: u16) -> [u8; 4] {
    let [high, low] = resource.to_be_bytes();
    [family, 0, high, low]
}

/// nftables' number among netfilter's subsystems, and its message types.
const SUBSYSTEM: u16 = 10;

const fn kind(message: u16) -> u16 {
    (SUBSYSTEM << 8) | message
}

/// Only the last message of a transaction asks for an answer: refusals come unasked, and thousands
/// of acknowledgements would overflow the socket.
fn begin(batch: &mut Batch) {
    batch.message(
        "begin a ruleset transaction",
        0x10,
        0,
        &header(0, SUBSYSTEM),
        |_| {},
    );
}

fn end(batch: &mut Batch) {
    batch.message(
        "end a ruleset transaction",
        0x11,
        0,
        &header(0, SUBSYSTEM),
        |_| {},
    );
}

const fn acknowledged(last: bool) -> u16 {
    if last { ACK } else { 0 }
}
