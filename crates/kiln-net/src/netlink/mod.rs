//! Netlink as this crate needs it: a batch of messages in one `send`, every answer collected.
//!
//! Owns framing, attributes and acknowledgements. Knows nothing of links, routes or rules: those
//! rooms hand it finished attributes.
//!
//! Why not a library: `netlink-bindings`/`netlink-socket2` 0.3.5 were tried first. A transaction of
//! 400 messages is lost to `ENOBUFS` (the socket's buffers cannot be raised and each message is
//! acknowledged), a chained request cannot return data, and the socket is opened lazily, in
//! whichever namespace the thread happens to be by then.

mod message;
mod socket;

pub(crate) use message::{
    ACK, APPEND, Attributes, Batch, CREATE, DUMP, EXCL, REPLACE, attributes, collected, messages,
    text,
};
pub use socket::NetlinkError;
pub(crate) use socket::{Family, Socket};
