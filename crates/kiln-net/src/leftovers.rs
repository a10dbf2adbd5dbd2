//! What this data directory has on the host, told without changing it, and the removal of some of it
//! while everything else goes on. For the whole of it at once, when an owner opens, see [`recover`].

use std::collections::BTreeSet;

use crate::host::HostNetwork;
use crate::netlink::NetlinkError;
use crate::recover;
use crate::subnet::InterfaceName;

/// Something on the host that is this data directory's.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Trace {
    /// The interface that it is, or is about.
    pub interface: InterfaceName,
    /// Whether there is such an interface; else there are only rules for one.
    pub is_link: bool,
}

impl HostNetwork {
    /// Every interface that this data directory has on the host, and those that are gone but for
    /// their rules.
    ///
    /// # Errors
    /// The first [`NetlinkError`].
    pub fn traces(&self) -> Result<Vec<Trace>, NetlinkError> {
        let shared = self.shared();
        let mut links = shared.links();
        let left = recover::leftovers(shared, &mut links, &BTreeSet::new())?;
        let links: BTreeSet<String> = left.into_iter().map(|link| link.name).collect();
        let ruled = recover::ruled(shared)?;
        let names = links.iter().chain(ruled.difference(&links));
        Ok(names
            .filter_map(|name| {
                Some(Trace {
                    interface: InterfaceName::new(name.as_str()).ok()?,
                    is_link: links.contains(name),
                })
            })
            .collect())
    }

    /// Removes one of them: its rules, then itself. One that is gone is a success.
    ///
    /// # Errors
    /// The first [`NetlinkError`].
    pub fn remove_trace(&self, trace: &Trace) -> Result<(), NetlinkError> {
        let shared = self.shared();
        // Rules first: what has none has no traffic.
        let chains = shared.chains();
        let rules = recover::eviction(shared, &chains, &trace.interface)?;
        shared.apply(rules)?;
        drop(chains);
        if trace.is_link {
            shared.links().delete(trace.interface.as_str())?;
        }
        Ok(())
    }
}
