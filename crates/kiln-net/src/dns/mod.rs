//! The resolver on the gateway address: it answers only what a sandbox's policy allows, and opens
//! the answered addresses before the guest learns them.
//!
//! Owns questions, upstreams and grants. Identifies a sandbox by its source address, which the
//! ruleset pins. While nobody serves, guests have no names: it fails closed.

mod answer;
mod gate;
mod serve;
mod subscription;
mod upstream;

pub use gate::{DnsOptions, Gate};
pub use serve::{ServeError, Server};
pub(crate) use subscription::{Subscriber, Subscription};

use std::net::{IpAddr, SocketAddr};

use hickory_proto::op::Message;

/// The resolvers named in the text of a `resolv.conf`.
pub fn resolvers_of(resolv_conf: &str) -> Vec<SocketAddr> {
    let servers = resolv_conf.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        let address = words
            .next()
            .filter(|word| *word == "nameserver")
            .and(words.next())?;
        address.parse::<IpAddr>().ok()
    });
    servers
        .map(|address| SocketAddr::new(address, 53))
        .take(4)
        .collect()
}

/// For fuzzing: what a guest asks, what an upstream answers, and what is sent back.
pub(crate) fn hostile(bytes: &[u8]) {
    let Ok(message) = Message::from_vec(bytes) else {
        return;
    };
    gate::hostile(&message);
    for question in &message.queries {
        let _ = answer::plain_name(question.name());
        let filtered = answer::filter(question, &message, |to| !crate::policy::is_special(to));
        let leaked = filtered
            .addresses
            .iter()
            .any(|to| crate::policy::is_special(*to));
        assert!(!leaked, "a special address was let through");
    }
}
