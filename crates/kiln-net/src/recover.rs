//! Finds what an earlier process left, by name, tag and table, and removes what nobody adopted.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use crate::chains::Chains;
use crate::host::{HostNetwork, Shared};
use crate::link::{AddressInfo, LinkInfo, Links, Route, RouteInfo, RuleSpec, Steps};
use crate::netlink::NetlinkError;
use crate::nft::KeyAndData;
use crate::ruleset::base::{
    APPROVED, CUSTOM, EVERYWHERE, INTERNET, MARKS, PINNED, PINNED_OUT, PUBLISHED, PUBLISHED_AT,
    SHARED, SOURCES, VERIFIED,
};
use crate::ruleset::sandbox::{Entry, Subject};
use crate::ruleset::{
    Change, Data, Element, Field, TableFamily, Verdict, bridge, custom, interface_key, names,
};
use crate::subnet::{Cidr, InterfaceName};
use crate::wireguard;

/// Sets and maps whose keys begin with an interface.
const BY_INTERFACE: [&str; 10] = [
    SOURCES, EVERYWHERE, INTERNET, CUSTOM, MARKS, APPROVED, VERIFIED, PINNED, PINNED_OUT, SHARED,
];
const PUBLICATIONS: [&str; 2] = [PUBLISHED, PUBLISHED_AT];
const NAME_LEN: usize = Field::InputInterface.len();

/// What a sweep removed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Swept {
    /// Interfaces.
    pub links: usize,
    /// Elements, chains and sets of the table.
    pub rules: usize,
    /// Routing rules.
    pub routing: usize,
}

impl HostNetwork {
    /// Remove what this data directory has on the host, but for the networks with these
    /// interfaces: of sandboxes, bridges, TAPs of bridges' members and managed tunnels. Call it
    /// after everything that is alive was adopted, and not while a network is being created.
    ///
    /// # Errors
    /// The first [`NetlinkError`].
    pub fn sweep(&self, keep: &BTreeSet<InterfaceName>) -> Result<Swept, NetlinkError> {
        let shared = self.shared();
        // Rules first: what has none has no traffic.
        let rules = sweep_rules(shared, keep)? + sweep_pins(shared, keep)?;
        let routing = sweep_routing(shared, keep)?;
        let links = remove_links(shared, keep)?;
        Ok(Swept {
            links,
            rules,
            routing,
        })
    }
}

/// Delete our links but for these.
pub(crate) fn remove_links(
    shared: &Shared,
    keep: &BTreeSet<InterfaceName>,
) -> Result<usize, NetlinkError> {
    let mut links = shared.links();
    let left = leftovers(shared, &mut links, keep)?;
    for link in &left {
        links.delete(&link.name)?;
    }
    Ok(left.len())
}

pub(crate) fn leftovers(
    shared: &Shared,
    links: &mut Links,
    keep: &BTreeSet<InterfaceName>,
) -> Result<Vec<LinkInfo>, NetlinkError> {
    let kept = |name: &str| keep.iter().any(|kept| kept.as_str() == name);
    let ours = |link: &LinkInfo| {
        shared.identity.owns(&link.name, link.alias.as_deref()) || wireguard::is_ours(shared, link)
    };
    let goes = |link: &LinkInfo| ours(link) && !kept(&link.name);
    Ok(links.links()?.into_iter().filter(goes).collect())
}

/// Whether the kernel enforces exactly this: the same generation, and the same elements, no more.
pub(crate) fn is_in_force(
    shared: &Shared,
    subject: &Subject,
    entry: &Entry,
) -> Result<bool, NetlinkError> {
    let table = Table::read(shared)?;
    let interface = interface_key(&subject.interface);
    let found = table.of_interface(&interface, &subject.sources);
    let wanted = entry.elements();
    let is_there = |(set, element): &(&'static str, Element)| {
        let same_data = |data: &[u8]| match &element.data {
            Some(Data::Bytes(bytes)) => bytes == data,
            Some(Data::Verdict(Verdict::Jump(chain))) => chain.as_bytes() == data,
            Some(Data::Verdict(_)) | None => true,
        };
        let mut of_set = table.of(set);
        of_set.any(|(key, data)| *key == element.key && same_data(data))
    };
    Ok(found == wanted.len() && wanted.iter().all(is_there))
}

/// The interfaces that there are rules for.
pub(crate) fn ruled(shared: &Shared) -> Result<BTreeSet<String>, NetlinkError> {
    let table = Table::read(shared)?;
    let name = |key: &[u8]| {
        let padded = key.get(..NAME_LEN)?;
        let end = padded.iter().position(|byte| *byte == 0)?;
        String::from_utf8(padded[..end].to_vec()).ok()
    };
    let sets = BY_INTERFACE.into_iter();
    let keys = sets.flat_map(|set| table.of(set));
    Ok(keys.filter_map(|(key, _)| name(key)).collect())
}

/// Which generation of an interface's policy is in force, if any is.
pub(crate) fn generation(
    shared: &Shared,
    interface: &InterfaceName,
) -> Result<Option<u8>, NetlinkError> {
    let marks = shared
        .nft()
        .elements(TableFamily::Inet, &shared.base.table, MARKS)?;
    let key = interface_key(interface);
    let ours = marks.iter().find(|(name, _)| *name == key);
    Ok(ours.and_then(|(_, mark)| {
        Some(u32::from_ne_bytes(mark.get(..4)?.try_into().ok()?).to_le_bytes()[0])
    }))
}

/// The addresses that names opened for an interface, by clause.
pub(crate) fn opened(
    shared: &Shared,
    interface: &InterfaceName,
) -> Result<Vec<(usize, Ipv4Addr)>, NetlinkError> {
    let key = interface_key(interface);
    let mut opened = Vec::new();
    for (set, elements) in read_names(shared)? {
        let ours = elements.iter().filter(|(found, _)| found.starts_with(&key));
        let clause = names::clause_of(&set);
        let addresses = ours.filter_map(|(found, _)| Some((clause?, names::address_of(found)?)));
        opened.extend(addresses);
    }
    Ok(opened)
}

/// What is in the sets for names.
fn read_names(shared: &Shared) -> Result<Vec<(String, Vec<KeyAndData>)>, NetlinkError> {
    let mut nft = shared.nft();
    let table = &shared.base.table;
    let sets = nft.sets(TableFamily::Inet, table)?;
    let of_names = |set: &String| names::clause_of(set).is_some();
    let mut all = Vec::new();
    for set in sets.into_iter().filter(of_names) {
        let elements = nft.elements(TableFamily::Inet, table, &set)?;
        all.push((set, elements));
    }
    Ok(all)
}

/// The changes that remove all of one interface's rules, whatever they are.
pub(crate) fn eviction(
    shared: &Shared,
    chains: &Chains,
    interface: &InterfaceName,
) -> Result<Vec<Change>, NetlinkError> {
    let key = interface_key(interface);
    removal(shared, chains, |name| name == key)
}

/// The changes that remove everything of the interfaces that `goes` names.
fn removal(
    shared: &Shared,
    chains: &Chains,
    goes: impl Fn(&[u8]) -> bool,
) -> Result<Vec<Change>, NetlinkError> {
    let mut changes = Table::read(shared)?.removal(chains, &goes);
    for (set, elements) in read_names(shared)? {
        let leaves = |key: &&Vec<u8>| key.get(..NAME_LEN).is_some_and(&goes);
        let keys = elements.iter().map(|(key, _)| key).filter(leaves);
        changes.extend(names::close_keys(&set, keys));
    }
    Ok(changes)
}

fn sweep_rules(shared: &Shared, keep: &BTreeSet<InterfaceName>) -> Result<usize, NetlinkError> {
    let kept: BTreeSet<Vec<u8>> = keep.iter().map(interface_key).collect();
    let chains = shared.chains();
    let changes = removal(shared, &chains, |name| !kept.contains(name))?;
    let removed = changes.len();
    shared.apply(changes)?;
    Ok(removed)
}

/// Elements of the table for bridges whose TAP goes.
fn sweep_pins(shared: &Shared, keep: &BTreeSet<InterfaceName>) -> Result<usize, NetlinkError> {
    if !shared.bridges {
        return Ok(0);
    }
    let kept: BTreeSet<Vec<u8>> = keep.iter().map(interface_key).collect();
    let mut changes = Vec::new();
    for set in bridge::PINS {
        let elements = shared
            .nft()
            .elements(TableFamily::Bridge, &shared.base.table, set)?;
        let goes = |key: &&Vec<u8>| key.get(..NAME_LEN).is_some_and(|tap| !kept.contains(tap));
        changes.extend(delete(
            set,
            elements.iter().map(|(key, _)| key).filter(goes),
        ));
    }
    let removed = changes.len();
    shared.apply_bridge(changes)?;
    Ok(removed)
}

/// Routing rules from addresses that nobody has any more: those of our pool without a sandbox, and
/// those of links that go.
fn sweep_routing(shared: &Shared, keep: &BTreeSet<InterfaceName>) -> Result<usize, NetlinkError> {
    let alive: BTreeSet<Ipv4Addr> = sources(shared)?.into_iter().collect();
    let mut links = shared.links();
    let going = networks_of_leftovers(shared, &mut links, keep)?;
    let goes = |rule: &RuleSpec| {
        let ownerless = shared.pool.covers(rule.from) && !alive.contains(&rule.from.network());
        ownerless || going.contains(&rule.from)
    };
    let left: Vec<_> = links.our_rules()?.into_iter().filter(goes).collect();
    let mut steps = Steps::new();
    left.iter().for_each(|rule| steps.delete_rule(rule));
    links.run(steps)?;
    close_unused_tables(&mut links)?;
    Ok(left.len())
}

/// The refusals of tunnels' tables that no rule leads to any more.
fn close_unused_tables(links: &mut Links) -> Result<(), NetlinkError> {
    let used: BTreeSet<u32> = links.our_rules()?.iter().map(|rule| rule.table).collect();
    let unused =
        |route: &RouteInfo| route.ours && route.unreachable && !used.contains(&route.table);
    let mut steps = Steps::new();
    for route in links.routes()?.into_iter().filter(unused) {
        steps.delete_route(&Route::refusal(route.table));
    }
    links.run(steps)
}

/// The networks of the bridges and tunnels that go.
fn networks_of_leftovers(
    shared: &Shared,
    links: &mut Links,
    keep: &BTreeSet<InterfaceName>,
) -> Result<BTreeSet<Cidr>, NetlinkError> {
    let going: BTreeSet<u32> = leftovers(shared, links, keep)?
        .iter()
        .map(|link| link.index)
        .collect();
    let of_leftovers = |address: &AddressInfo| going.contains(&address.index);
    let addresses = links.addresses()?.into_iter().filter(of_leftovers);
    // From a tunnel's own address, names are asked.
    Ok(addresses
        .flat_map(|a| [Cidr::of(a.address, a.prefix), Cidr::host(a.address)])
        .collect())
}

/// The addresses that may send.
pub(crate) fn sources(shared: &Shared) -> Result<Vec<Ipv4Addr>, NetlinkError> {
    let elements = shared
        .nft()
        .elements(TableFamily::Inet, &shared.base.table, SOURCES)?;
    Ok(elements.iter().filter_map(|(key, _)| source(key)).collect())
}

fn source(key: &[u8]) -> Option<Ipv4Addr> {
    <[u8; 4]>::try_from(key.get(NAME_LEN..NAME_LEN + 4)?)
        .ok()
        .map(Ipv4Addr::from)
}

/// Where a published port leads.
fn guest(data: &[u8]) -> Option<Ipv4Addr> {
    <[u8; 4]>::try_from(data.get(..4)?).ok().map(Ipv4Addr::from)
}

/// What the kernel holds of our table's changing part.
struct Table {
    elements: BTreeMap<&'static str, Vec<KeyAndData>>,
    sets: Vec<String>,
    chains: Vec<String>,
}

impl Table {
    fn read(shared: &Shared) -> Result<Self, NetlinkError> {
        let mut nft = shared.nft();
        let name = &shared.base.table;
        let mut elements = BTreeMap::new();
        for set in BY_INTERFACE.into_iter().chain(PUBLICATIONS) {
            elements.insert(set, nft.elements(TableFamily::Inet, name, set)?);
        }
        let sets = nft.sets(TableFamily::Inet, name)?;
        let chains = nft
            .chains()?
            .into_iter()
            .filter(|chain| chain.table == *name && chain.family == 1);
        Ok(Self {
            elements,
            sets,
            chains: chains.map(|chain| chain.name).collect(),
        })
    }

    fn of(&self, set: &str) -> impl Iterator<Item = &KeyAndData> {
        self.elements.get(set).into_iter().flatten()
    }

    /// How many elements there are about an interface and the addresses behind it.
    fn of_interface(&self, interface: &[u8], guests: &[Ipv4Addr]) -> usize {
        let about = |(key, _): &&KeyAndData| key.starts_with(interface);
        let own: usize = BY_INTERFACE
            .iter()
            .map(|set| self.of(set).filter(about).count())
            .sum();
        let leads = |(_, data): &&KeyAndData| guest(data).is_some_and(|to| guests.contains(&to));
        let published: usize = PUBLICATIONS
            .iter()
            .map(|set| self.of(set).filter(leads).count())
            .sum();
        own + published
    }

    /// The changes that remove everything of the interfaces that `goes` names.
    fn removal(&self, chains: &Chains, goes: &impl Fn(&[u8]) -> bool) -> Vec<Change> {
        let leaves = |key: &[u8]| key.get(..NAME_LEN).is_some_and(goes);
        let mut changes = Vec::new();
        for set in BY_INTERFACE {
            let keys = self
                .of(set)
                .filter(|(key, _)| leaves(key))
                .map(|(key, _)| key);
            changes.extend(delete(set, keys));
        }
        let staying: BTreeSet<Ipv4Addr> = self
            .of(SOURCES)
            .filter(|(key, _)| !leaves(key))
            .filter_map(|(key, _)| source(key))
            .collect();
        for set in PUBLICATIONS {
            let dangling = |data: &[u8]| guest(data).is_none_or(|to| !staying.contains(&to));
            let keys = self
                .of(set)
                .filter(|(_, data)| dangling(data))
                .map(|(key, _)| key);
            changes.extend(delete(set, keys));
        }
        changes.extend(self.orphaned_chains(chains, leaves));
        changes
    }

    /// Chains of custom rules, with their sets, that no staying interface is judged by.
    fn orphaned_chains(&self, chains: &Chains, leaves: impl Fn(&[u8]) -> bool) -> Vec<Change> {
        let used: BTreeSet<&[u8]> = self
            .of(CUSTOM)
            .filter(|(key, _)| !leaves(key))
            .map(|(_, chain)| chain.as_slice())
            .collect();
        let is_orphan = |chain: &str| !used.contains(chain.as_bytes()) && !chains.uses(chain);
        let orphans = |name: &&String| custom::owner(name).is_some_and(is_orphan);
        let chains = self.chains.iter().filter(orphans).cloned();
        let sets = self.sets.iter().filter(orphans).cloned();
        chains
            .map(Change::DeleteChain)
            .chain(sets.map(Change::DeleteSet))
            .collect()
    }
}

fn delete<'a>(set: &str, keys: impl Iterator<Item = &'a Vec<u8>>) -> Option<Change> {
    let elements: Vec<Element> = keys.map(|key| Element::key(key.clone())).collect();
    (!elements.is_empty()).then(|| Change::DeleteElements {
        set: set.to_owned(),
        elements,
    })
}
