//! The resolver on the gateway address: it answers only what a sandbox's policy allows, and opens
//! the answered addresses before the guest learns them.
//!
//! Owns questions, upstreams and grants. Identifies a sandbox by its source address, which the
//! ruleset pins. While nobody serves, guests have no names: it fails closed.

mod answer;
mod gate;
mod serve;
mod upstream;

pub use gate::{DnsOptions, Gate};
pub(crate) use gate::{Subscriber, Subscription};
pub use serve::{ServeError, Server};

use std::net::{IpAddr, SocketAddr};

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
