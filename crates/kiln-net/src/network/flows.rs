//! Which of a sandbox's running flows a changed policy no longer permits. Pure.

use std::net::Ipv4Addr;

use crate::conntrack::Flow;
use crate::policy::{Action, Policy, PublishedPort};

/// The flows that must be forgotten. `resolved` as in [`Policy::judge`].
pub(crate) fn newly_denied(
    flows: Vec<Flow>,
    sources: &[Ipv4Addr],
    policy: &Policy,
    published: &[(PublishedPort, Ipv4Addr)],
    resolved: impl Fn(usize, Ipv4Addr) -> bool,
) -> Vec<Flow> {
    let permitted = |flow: &Flow| {
        if sources.contains(&flow.from) {
            policy.judge(flow.to, flow.protocol, flow.port, &resolved) == Action::Allow
        } else {
            published.iter().any(|entry| leads_to(entry, flow))
        }
    };
    flows.into_iter().filter(|flow| !permitted(flow)).collect()
}

fn leads_to((port, guest): &(PublishedPort, Ipv4Addr), flow: &Flow) -> bool {
    let same_end = flow.answered_by == *guest && flow.answered_port == Some(port.guest);
    let same_door = flow.port == Some(port.host) && flow.protocol == port.transport.number();
    same_end && same_door && port.address.is_none_or(|address| address == flow.to)
}
