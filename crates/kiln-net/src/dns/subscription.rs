//! One sandbox (or bridge network) as the resolver knows it: what it may ask, what it has learnt.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Semaphore, watch};

use crate::policy::{Action, DomainName, NEVER, NameVerdict, Policy, is_special};
use crate::ruleset::names::Grant;
use crate::subnet::InterfaceName;

/// Questions of one sandbox that may be under way at a time.
const CONCURRENT_QUESTIONS: usize = 64;
/// Connections of one sandbox that are checked by name at a time.
const CONCURRENT_CONNECTIONS: usize = 512;
/// Addresses of one name that are remembered beyond their time.
const MAX_ADDRESSES_OF_A_NAME: usize = 256;
/// Names of one sandbox whose addresses are remembered.
const MAX_NAMES: usize = 4096;

/// Addresses that may be open for one sandbox at a time, counted per rule: they lie in memory of
/// the kernel that all sandboxes share.
const MAX_OPEN: usize = 8192;

/// More than any answer's time and what is added to it.
const LONGEST_STAY: Duration = Duration::from_secs(3600);

/// One sandbox (or bridge network), as the resolver knows it.
#[derive(Debug)]
pub(crate) struct Subscriber {
    subscription: Mutex<Subscription>,
    pub(super) questions: Semaphore,
    connections: Arc<Semaphore>,
    changes: watch::Sender<()>,
}

/// What a subscriber may ask, and what it has learnt.
#[derive(Debug)]
pub(crate) struct Subscription {
    pub(crate) policy: Arc<Policy>,
    pub(crate) interface: InterfaceName,
    /// The address that questions upstream must leave from, to take the sandbox's own way out.
    pub(crate) ask_from: Option<Ipv4Addr>,
    granted: HashMap<DomainName, BTreeMap<Ipv4Addr, Instant>>,
    /// Clause and address of all that the kernel may hold open.
    open: HashMap<(usize, Ipv4Addr), Instant>,
    /// The network is gone: nothing is opened any more.
    closed: bool,
}

impl Subscription {
    pub(crate) fn new(policy: Arc<Policy>, interface: InterfaceName) -> Self {
        Self {
            policy,
            interface,
            ask_from: None,
            granted: HashMap::new(),
            open: HashMap::new(),
            closed: false,
        }
    }

    /// An earlier process opened these, for a time that is not known.
    pub(crate) fn inherit(&mut self, open: &[(usize, Ipv4Addr)]) {
        let until = Instant::now() + LONGEST_STAY;
        self.open.extend(open.iter().map(|pair| (*pair, until)));
    }

    /// Clause and address of all that the kernel may hold open, by clause.
    pub(crate) fn open(&self) -> Vec<(usize, Ipv4Addr)> {
        let mut open: Vec<_> = self.open.keys().copied().collect();
        open.sort_unstable();
        open
    }

    /// The kernel holds these open now, and nothing else.
    pub(crate) fn set_open(&mut self, grants: &[Grant]) {
        self.open.clear();
        self.add_open(grants);
    }

    /// The kernel holds these open, too.
    pub(crate) fn add_open(&mut self, grants: &[Grant]) {
        let now = Instant::now();
        let each = |grant: &Grant| {
            let until = now + Duration::from_millis(grant.timeout_ms);
            ((grant.clause, grant.address), until)
        };
        self.open.extend(grants.iter().map(each));
    }

    /// Whether so many more addresses may be opened.
    pub(super) fn has_room_for(&mut self, more: usize) -> bool {
        if self.open.len() + more > MAX_OPEN {
            let now = Instant::now();
            self.open.retain(|_, until| *until > now);
        }
        self.open.len() + more <= MAX_OPEN
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed
    }

    /// Open nothing from now on; what is open.
    pub(crate) fn close(&mut self) -> Vec<(usize, Ipv4Addr)> {
        self.closed = true;
        self.open()
    }

    /// What the names asked so far open under another policy.
    pub(crate) fn grants_under(&self, policy: &Policy) -> Vec<Grant> {
        let now = Instant::now();
        let mut grants = Vec::new();
        for (name, addresses) in &self.granted {
            let NameVerdict::Resolve { clauses } = policy.judge_name(name) else {
                continue;
            };
            for (address, until) in addresses.iter().filter(|(_, until)| **until > now) {
                let timeout_ms = u64::try_from((*until - now).as_millis())
                    .unwrap_or(u64::MAX)
                    .max(1);
                let grant = |clause: &usize| Grant {
                    clause: *clause,
                    address: *address,
                    timeout_ms,
                };
                grants.extend(clauses.iter().map(grant));
            }
        }
        // One address may stand behind several names: the longest stay counts.
        grants.sort_by_key(|grant| {
            (
                grant.clause,
                grant.address,
                std::cmp::Reverse(grant.timeout_ms),
            )
        });
        grants.dedup_by_key(|grant| (grant.clause, grant.address));
        grants.truncate(MAX_OPEN);
        grants
    }

    /// Clause and address of everything that names led to under another policy, whether its time
    /// is over or not.
    pub(crate) fn ever_led_to(&self, policy: &Policy) -> BTreeSet<(usize, Ipv4Addr)> {
        let mut all = BTreeSet::new();
        for (name, addresses) in &self.granted {
            if let NameVerdict::Resolve { clauses } = policy.judge_name(name) {
                let pairs = |clause: usize| addresses.keys().map(move |address| (clause, *address));
                all.extend(clauses.into_iter().flat_map(pairs));
            }
        }
        all
    }

    /// Whether the name's answer is still good.
    pub(crate) fn is_current(&self, name: &DomainName, address: Ipv4Addr) -> bool {
        let until = self
            .granted
            .get(name)
            .and_then(|addresses| addresses.get(&address));
        until.is_some_and(|until| *until > Instant::now())
    }

    pub(super) fn remember(&mut self, name: &DomainName, addresses: &[Ipv4Addr], until: Instant) {
        let now = Instant::now();
        if self.granted.len() >= MAX_NAMES {
            self.granted
                .retain(|_, addresses| addresses.values().any(|until| *until > now));
        }
        if self.granted.len() < MAX_NAMES {
            let known = self.granted.entry(name.clone()).or_default();
            // Running flows may still go to addresses whose time is over.
            if known.len() >= MAX_ADDRESSES_OF_A_NAME {
                known.retain(|_, until| *until > now);
            }
            known.extend(addresses.iter().map(|address| (*address, until)));
        }
    }

    /// Whether a web connection may go there: because a rule about addresses says so, or because
    /// the allowed name that it gives was resolved to this address.
    pub(crate) fn lets_through(&self, to: SocketAddrV4, name: Option<&DomainName>) -> bool {
        const TCP: u8 = 6;
        let (address, port) = (*to.ip(), Some(to.port()));
        let clauses = match name.map(|name| (name, self.policy.judge_name(name))) {
            Some((name, NameVerdict::Resolve { clauses })) if self.led_to(name, address) => clauses,
            Some(_) => return false,
            None => Vec::new(),
        };
        let resolved = |clause: usize, _| clauses.contains(&clause);
        let never = NEVER.iter().any(|cidr| cidr.contains(address));
        !never && self.policy.judge(address, TCP, port, resolved) == Action::Allow
    }

    fn led_to(&self, name: &DomainName, address: Ipv4Addr) -> bool {
        self.granted
            .get(name)
            .is_some_and(|addresses| addresses.contains_key(&address))
    }

    /// Whether a name may lead to an address.
    pub(super) fn reachable(&self, address: Ipv4Addr) -> bool {
        const TCP: u8 = 6;
        let never = NEVER.iter().any(|cidr| cidr.contains(address));
        let named = || self.policy.judge(address, TCP, None, |_, _| false) == Action::Allow;
        !is_special(address) || (!never && named())
    }
}

impl Subscriber {
    pub(crate) fn new(subscription: Subscription) -> Self {
        Self {
            subscription: Mutex::new(subscription),
            questions: Semaphore::new(CONCURRENT_QUESTIONS),
            connections: Arc::new(Semaphore::new(CONCURRENT_CONNECTIONS)),
            changes: watch::Sender::new(()),
        }
    }

    /// Room for checked connections.
    pub(crate) fn connections(&self) -> &Arc<Semaphore> {
        &self.connections
    }

    /// Tells of policies that were exchanged, and of the end.
    pub(crate) fn changes(&self) -> watch::Receiver<()> {
        self.changes.subscribe()
    }

    /// The policy was exchanged: who relies on the old one asks again.
    pub(crate) fn announce(&self) {
        self.changes.send_replace(());
    }

    /// Exclusive: no question opens an address while a policy is being exchanged.
    pub(crate) fn lock(&self) -> MutexGuard<'_, Subscription> {
        self.subscription
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grants(count: u32, timeout_ms: u64) -> Vec<Grant> {
        let grant = |number| Grant {
            clause: 1,
            address: Ipv4Addr::from_bits(number),
            timeout_ms,
        };
        (0..count).map(grant).collect()
    }

    #[test]
    fn only_so_many_addresses_are_open_at_a_time() {
        let interface = InterfaceName::new("kln0001-abc").unwrap();
        let mut subscription = Subscription::new(Arc::new(Policy::allow_all()), interface);
        let most = u32::try_from(MAX_OPEN).unwrap();
        subscription.add_open(&grants(most, 60_000));
        assert!(subscription.has_room_for(0) && !subscription.has_room_for(1));
        // Those whose time is over make room.
        subscription.set_open(&grants(most, 0));
        assert!(subscription.has_room_for(MAX_OPEN));
        assert_eq!(subscription.open(), []);
        subscription.inherit(&[(2, Ipv4Addr::LOCALHOST)]);
        assert!(!subscription.has_room_for(MAX_OPEN));
        assert_eq!(subscription.close(), [(2, Ipv4Addr::LOCALHOST)]);
        assert!(subscription.is_closed());
    }
}
