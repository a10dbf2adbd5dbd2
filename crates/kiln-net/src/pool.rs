//! Which addresses sandboxes get: a network that overlaps nothing of this host, nor of another data
//! directory.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use crate::host::HostError;
use crate::identity::Identity;
use crate::link::{Links, RouteInfo};
use crate::netlink::NetlinkError;
use crate::nft::Nft;
use crate::ruleset::TableFamily;
use crate::subnet::Cidr;

const LOOPBACK: u32 = 1;

/// Where sandboxes' addresses come from, in the order they are tried.
pub const POOLS: [Cidr; 3] = [
    Cidr::of(Ipv4Addr::new(198, 18, 0, 0), 16),
    Cidr::of(Ipv4Addr::new(100, 96, 0, 0), 11),
    Cidr::of(Ipv4Addr::new(10, 213, 0, 0), 16),
];

/// The pool that was chosen before, or the first that is free.
pub(crate) fn choose(
    links: &mut Links,
    nft: &mut Nft,
    identity: &Identity,
    wanted: Option<Cidr>,
) -> Result<Cidr, HostError> {
    if let Some(pool) = wanted.filter(|pool| pool.prefix() > 22 || pool.prefix() == 0) {
        return Err(HostError::PoolTooSmall { pool });
    }
    let ours: BTreeSet<u32> = links
        .links()?
        .into_iter()
        .filter(|link| identity.owns(&link.name, link.alias.as_deref()))
        .map(|link| link.index)
        .collect();
    let taken = taken(links, &ours)?;
    let (earlier, claimed) = claims(nft, identity)?;
    let candidates = wanted
        .or(earlier)
        .map_or_else(|| POOLS.to_vec(), |pool| vec![pool]);
    let taken = [taken, claimed].concat();
    first_free(&candidates, &taken).map_err(|(pool, taken)| HostError::PoolTaken { pool, taken })
}

/// The pool that this data directory chose before, and those of other ones: their tables say so.
fn claims(nft: &mut Nft, identity: &Identity) -> Result<(Option<Cidr>, Vec<Cidr>), NetlinkError> {
    let (mut earlier, mut others) = (None, Vec::new());
    for info in nft.tables(TableFamily::Inet)? {
        let Some(claim) = info.comment.as_deref().and_then(Claim::read) else {
            continue;
        };
        if claim.tag == identity.tag() {
            earlier = Some(claim.pool);
        } else {
            others.push(claim.pool);
        }
    }
    Ok((earlier, others))
}

/// What the comment of a table of ours says: whose, of which text, with which pool.
struct Claim<'a> {
    tag: &'a str,
    pool: Cidr,
}

impl<'a> Claim<'a> {
    fn read(comment: &'a str) -> Option<Self> {
        let mut words = comment.split(' ');
        let tag = words.next().filter(|tag| tag.starts_with("kiln:"))?;
        let pool = words.nth(1)?.parse().ok()?;
        Some(Self { tag, pool })
    }
}

/// The first pool that overlaps nothing; else what the last one overlapped.
fn first_free(pools: &[Cidr], taken: &[Cidr]) -> Result<Cidr, (Cidr, Cidr)> {
    let mut clash = (Cidr::ALL, Cidr::ALL);
    for pool in pools {
        match taken.iter().find(|cidr| cidr.overlaps(*pool)) {
            None => return Ok(*pool),
            Some(cidr) => clash = (*pool, *cidr),
        }
    }
    Err(clash)
}

/// Networks that this host uses for other things: all routes but default ones and ours.
pub(crate) fn taken(links: &mut Links, ours: &BTreeSet<u32>) -> Result<Vec<Cidr>, NetlinkError> {
    let foreign = |route: &RouteInfo| {
        let by_us = route.link.is_some_and(|link| ours.contains(&link));
        !by_us && !route.local && route.destination.prefix() > 0
    };
    let routes = links
        .routes()?
        .into_iter()
        .filter(foreign)
        .map(|route| route.destination);
    let mut all: Vec<Cidr> = routes.collect();
    let addresses = links.addresses()?;
    // The gateway's own address on loopback, from an earlier run, is not a clash.
    let foreign = addresses
        .iter()
        .filter(|a| a.index != LOOPBACK && !ours.contains(&a.index));
    all.extend(foreign.map(|a| Cidr::of(a.address, a.prefix)));
    Ok(all)
}
