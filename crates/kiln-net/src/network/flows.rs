//! Which of a sandbox's running flows a changed policy no longer permits. Pure.

use std::net::Ipv4Addr;

use crate::conntrack::Flow;
use crate::policy::PublishedPort;

/// The flows that must be forgotten: those begun by one of `sources` that `permitted` does not let
/// out, and those let in by a door that is no longer `published`.
pub(crate) fn newly_denied(
    flows: Vec<Flow>,
    sources: &[Ipv4Addr],
    permitted: impl Fn(&Flow) -> bool,
    published: &[(PublishedPort, Ipv4Addr)],
) -> Vec<Flow> {
    let stays = |flow: &Flow| {
        if sources.contains(&flow.from) {
            permitted(flow)
        } else {
            published.iter().any(|entry| leads_to(entry, flow))
        }
    };
    flows.into_iter().filter(|flow| !stays(flow)).collect()
}

fn leads_to((port, guest): &(PublishedPort, Ipv4Addr), flow: &Flow) -> bool {
    let same_end = flow.answered_by == *guest && flow.answered_port == Some(port.guest);
    let same_door = flow.port == Some(port.host) && flow.protocol == port.transport.number();
    same_end && same_door && port.address.is_none_or(|address| address == flow.to)
}
