//! Which of a sandbox's running flows a changed policy no longer permits. Pure.

use std::net::Ipv4Addr;

use crate::conntrack::Flow;
use crate::policy::PublishedPort;

/// What becomes of a flow that a sandbox began.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    /// The rules let it go on.
    Stays,
    /// It may go on, but the rules do not know it: its name's time is over.
    StaysMarked,
    /// It is cut.
    Ends,
}

/// Flows that need something done.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Sorted {
    pub(crate) mark: Vec<Flow>,
    pub(crate) forget: Vec<Flow>,
}

/// Sort flows: those begun by one of `sources` as `fate` says, and those that were let in by
/// whether their door is still `published`.
pub(crate) fn sort(
    flows: Vec<Flow>,
    sources: &[Ipv4Addr],
    fate: impl Fn(&Flow) -> Fate,
    published: &[(PublishedPort, Ipv4Addr)],
) -> Sorted {
    let mut sorted = Sorted::default();
    for flow in flows {
        let fate = if sources.contains(&flow.from) {
            fate(&flow)
        } else if published.iter().any(|entry| leads_to(entry, &flow)) {
            Fate::Stays
        } else {
            Fate::Ends
        };
        match fate {
            Fate::Stays => {}
            Fate::StaysMarked => sorted.mark.push(flow),
            Fate::Ends => sorted.forget.push(flow),
        }
    }
    sorted
}

fn leads_to((port, guest): &(PublishedPort, Ipv4Addr), flow: &Flow) -> bool {
    let same_end = flow.answered_by == *guest && flow.answered_port == Some(port.guest);
    let same_door = flow.port == Some(port.host) && flow.protocol == port.transport.number();
    same_end && same_door && port.address.is_none_or(|address| address == flow.to)
}
