//! What the host's table, the resolver and the host's ports hold for one interface, sandbox or
//! bridge alike.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::sync::Arc;

use super::flows::{self, Fate};
use super::reserve::Reservation;
use super::sandbox::NetworkError;
use crate::conntrack::Flow;
use crate::dns::{Subscriber, Subscription};
use crate::host::{Shared, is_private};
use crate::netlink::NetlinkError;
use crate::policy::{Action, Destination, Policy, PublishedPort};
use crate::recover;
use crate::ruleset::Change;
use crate::ruleset::custom::CustomChain;
use crate::ruleset::names::{self, Grant};
use crate::ruleset::sandbox::{Entry, GENERATION_BITS, Subject};

/// All generations of one slot.
const MARK_MASK: u32 = u32::MAX << GENERATION_BITS;

/// Rules in force, and what they were made from.
#[derive(Debug)]
pub(crate) struct Rules {
    pub(crate) host: Arc<Shared>,
    pub(super) subject: Subject,
    pub(super) policy: Arc<Policy>,
    /// The address that names are asked from, if it matters.
    pub(super) ask_from: Option<Ipv4Addr>,
    entry: Option<Entry>,
    /// What names opened in an earlier process.
    inherited: Vec<(usize, Ipv4Addr)>,
    subscriber: Option<Arc<Subscriber>>,
    reservations: Vec<Reservation>,
}

impl Rules {
    pub(super) fn new(host: Arc<Shared>, subject: Subject, policy: Policy) -> Self {
        Self {
            host,
            subject,
            policy: Arc::new(policy),
            ask_from: None,
            entry: None,
            inherited: Vec::new(),
            subscriber: None,
            reservations: Vec::new(),
        }
    }

    /// Bring them into force: before the interface exists, so that it is never up and unguarded.
    pub(super) fn admit(&mut self) -> Result<(), NetworkError> {
        self.reserve(&self.subject.published.clone())?;
        self.open_ways(&Arc::clone(&self.policy))?;
        let entry = Entry::compile(&self.subject, &self.policy);
        self.put(None, Some(&entry), entry.add())?;
        self.entry = Some(entry);
        Ok(())
    }

    /// Apply `changes`, with the chain that the second entry needs before and that of the first
    /// away after.
    fn put(
        &self,
        from: Option<&Entry>,
        to: Option<&Entry>,
        changes: Vec<Change>,
    ) -> Result<(), NetlinkError> {
        let (from, to) = (from.and_then(Entry::chain), to.and_then(Entry::chain));
        let mut chains = self.host.chains();
        let mut all = chains.before(to);
        all.extend(changes);
        all.extend(chains.after(from, to));
        self.host.apply(all)?;
        chains.changed(from, to);
        Ok(())
    }

    /// Take over what another process left in force, if it is the policy with this fingerprint;
    /// else, or when something is missing, bring it into force. Whether that had to be done.
    pub(super) fn adopt(&mut self, fingerprint: u64) -> Result<bool, NetworkError> {
        self.reserve(&self.subject.published.clone())?;
        self.open_ways(&Arc::clone(&self.policy))?;
        let entry = Entry::compile(&self.subject, &self.policy);
        let same = self.policy.fingerprint() == fingerprint;
        if same && recover::is_in_force(&self.host, &self.subject, &entry)? {
            self.inherited = recover::opened(&self.host, &self.subject.interface)?;
            self.host.chains().changed(None, entry.chain());
            self.entry = Some(entry);
            return Ok(false);
        }
        self.restore()?;
        Ok(true)
    }

    /// Bring back what somebody removed; whether that was needed.
    pub(super) fn ensure(&mut self) -> Result<bool, NetworkError> {
        let Some(entry) = &self.entry else {
            return Ok(false);
        };
        if recover::is_in_force(&self.host, &self.subject, entry)? {
            return Ok(false);
        }
        self.restore()?;
        Ok(true)
    }

    /// Put the policy in the place of whatever there is, as a generation of its own, so that all
    /// flows are judged again.
    fn restore(&mut self) -> Result<(), NetworkError> {
        let found = recover::generation(&self.host, &self.subject.interface)?;
        let generation = next_generation(found.unwrap_or(self.subject.generation));
        let subscriber = self.subscriber.clone();
        let mut subscription = subscriber.as_ref().map(|subscriber| subscriber.lock());
        let names = Names::known(subscription.as_deref(), &self.policy);
        self.subject.generation = generation;
        let entry = Entry::compile(&self.subject, &self.policy);
        self.replace_all(&entry, &names.grants)?;
        self.entry = Some(entry);
        if let Some(subscription) = &mut subscription {
            subscription.set_open(&names.grants);
        }
        let fate = |flow: &Flow| fate(flow, &self.policy, &names);
        Ok(self.cut_denied(&self.subject, fate)?)
    }

    /// Whatever the table has of this interface goes, and the entry comes.
    fn replace_all(&self, entry: &Entry, grants: &[Grant]) -> Result<(), NetlinkError> {
        let mut chains = self.host.chains();
        let mut changes = recover::eviction(&self.host, &chains, &self.subject.interface)?;
        changes.extend(entry.chain().into_iter().flat_map(CustomChain::add));
        changes.extend(entry.add());
        changes.extend(names::open(&self.subject.interface, grants));
        self.host.apply(changes)?;
        chains.changed(self.entry.as_ref().and_then(Entry::chain), entry.chain());
        Ok(())
    }

    /// Let the resolver answer.
    pub(super) fn subscribe(&mut self) {
        let interface = self.subject.interface.clone();
        let mut subscription = Subscription::new(Arc::clone(&self.policy), interface);
        subscription.ask_from = self.ask_from;
        subscription.inherit(&std::mem::take(&mut self.inherited));
        let subscriber = Arc::new(Subscriber::new(subscription));
        for source in &self.subject.sources {
            self.host.gate.subscribe(*source, Arc::clone(&subscriber));
        }
        self.subscriber = Some(subscriber);
    }

    /// Exchange the policy in one transaction, or leave everything as it is.
    pub(super) fn exchange(
        &mut self,
        policy: Policy,
        published: Vec<(PublishedPort, Ipv4Addr)>,
    ) -> Result<(), NetworkError> {
        let held = self.reservations.len();
        let outcome = self.try_exchange(Arc::new(policy), published);
        if outcome.is_err() {
            self.reservations.truncate(held);
        }
        self.release_unpublished();
        outcome
    }

    fn try_exchange(
        &mut self,
        policy: Arc<Policy>,
        published: Vec<(PublishedPort, Ipv4Addr)>,
    ) -> Result<(), NetworkError> {
        self.reserve(&published)?;
        self.open_ways(&policy)?;
        // Flows go on unjudged where nothing was said about them.
        let same = policy.judges_like(&self.policy);
        let next = self.successor(same, published);
        // No question opens an address while the sets are exchanged.
        let subscriber = self.subscriber.clone();
        let mut subscription = subscriber.as_ref().map(|subscriber| subscriber.lock());
        let names = Names::known(subscription.as_deref(), &policy);
        let open = subscription.as_ref().map_or_else(Vec::new, |it| it.open());
        let entry = Entry::compile(&next, &policy);
        let mut changes = match &self.entry {
            Some(old) => old.replace_with(&entry),
            None => entry.add(),
        };
        if !same {
            changes.extend(names::close(&next.interface, &open));
            changes.extend(names::open(&next.interface, &names.grants));
        }
        self.put(self.entry.as_ref(), Some(&entry), changes)?;
        if let Err(error) = self.cut_denied_by(same, &next, &policy, &names) {
            self.put_back(same, &entry, subscription.as_deref_mut(), &names.grants)?;
            return Err(error.into());
        }
        if let Some(subscription) = &mut subscription {
            subscription.policy = Arc::clone(&policy);
            if !same {
                subscription.set_open(&names.grants);
            }
        }
        drop(subscription);
        if let Some(subscriber) = &subscriber {
            subscriber.announce();
        }
        (self.entry, self.subject, self.policy) = (Some(entry), next, policy);
        Ok(())
    }

    /// Put the old policy back in the place of `entry`, which has opened `grants`.
    fn put_back(
        &self,
        same: bool,
        entry: &Entry,
        subscription: Option<&mut Subscription>,
        grants: &[Grant],
    ) -> Result<(), NetlinkError> {
        let interface = &self.subject.interface;
        let mut changes = match &self.entry {
            Some(old) => entry.replace_with(old),
            None => entry.remove(),
        };
        let mut before = Vec::new();
        if !same {
            let opened: Vec<_> = grants.iter().map(|it| (it.clause, it.address)).collect();
            before = Names::known(subscription.as_deref(), &self.policy).grants;
            changes.extend(names::close(interface, &opened));
            changes.extend(names::open(interface, &before));
        }
        self.put(Some(entry), self.entry.as_ref(), changes)?;
        if let Some(subscription) = subscription.filter(|_| !same) {
            subscription.set_open(&before);
        }
        Ok(())
    }

    fn successor(&self, same: bool, published: Vec<(PublishedPort, Ipv4Addr)>) -> Subject {
        let generation = match self.subject.generation {
            current if same => current,
            current => next_generation(current),
        };
        Subject {
            generation,
            published,
            ..self.subject.clone()
        }
    }

    fn cut_denied_by(
        &self,
        same: bool,
        next: &Subject,
        policy: &Policy,
        names: &Names,
    ) -> Result<(), NetlinkError> {
        if !same {
            return self.cut_denied(next, |flow| fate(flow, policy, names));
        }
        if self.closes_a_port(next) {
            return self.cut_denied(next, |_| Fate::Stays);
        }
        Ok(())
    }

    /// Let one more address send, with its published ports.
    pub(super) fn add_source(
        &mut self,
        source: Ipv4Addr,
        published: Vec<(PublishedPort, Ipv4Addr)>,
    ) -> Result<(), NetworkError> {
        let held = self.reservations.len();
        let added = self.reserve(&published).and_then(|()| {
            let elements = Entry::of_source(&self.subject, source, &published);
            self.host.apply(elements.add())?;
            Ok(elements)
        });
        match added {
            Ok(elements) => {
                self.entry
                    .iter_mut()
                    .for_each(|entry| entry.join(&elements));
                self.subject.sources.push(source);
                self.subject.published.extend(published);
                if let Some(subscriber) = &self.subscriber {
                    self.host.gate.subscribe(source, Arc::clone(subscriber));
                }
                Ok(())
            }
            Err(error) => {
                self.reservations.truncate(held);
                Err(error)
            }
        }
    }

    /// Take an address and its ports away again.
    pub(super) fn remove_source(&mut self, source: Ipv4Addr) -> Vec<NetlinkError> {
        if !self.subject.sources.contains(&source) {
            return Vec::new();
        }
        let (gone, kept): (Vec<_>, Vec<_>) = self
            .subject
            .published
            .drain(..)
            .partition(|(_, guest)| *guest == source);
        self.subject.published = kept;
        self.subject.sources.retain(|other| *other != source);
        self.host.gate.unsubscribe(source);
        let elements = Entry::of_source(&self.subject, source, &gone);
        self.entry
            .iter_mut()
            .for_each(|entry| entry.part(&elements));
        self.release_unpublished();
        let steps = [
            self.host.apply(elements.remove()),
            self.forget_flows(&[source]),
        ];
        steps.into_iter().filter_map(Result::err).collect()
    }

    fn closes_a_port(&self, next: &Subject) -> bool {
        let stays = |port| next.published.contains(port);
        !self.subject.published.iter().all(stays)
    }

    fn cut_denied(&self, next: &Subject, fate: impl Fn(&Flow) -> Fate) -> Result<(), NetlinkError> {
        let mut conntrack = self.host.conntrack();
        let flows = conntrack.flows(self.marks(), MARK_MASK, &next.sources)?;
        let sorted = flows::sort(flows, &next.sources, fate, &next.published);
        conntrack.forget(&sorted.forget)?;
        conntrack.mark(&sorted.mark, next.mark())
    }

    fn forget_flows(&self, sources: &[Ipv4Addr]) -> Result<(), NetlinkError> {
        let mut conntrack = self.host.conntrack();
        conntrack.forget_all(self.marks(), MARK_MASK, sources)
    }

    fn marks(&self) -> u32 {
        self.subject.slot << GENERATION_BITS
    }

    /// No traffic first, then no memory of it. Does not stop at the first failure.
    pub(super) fn take_down(&mut self) -> Vec<NetlinkError> {
        let open = self.unsubscribe();
        self.reservations.clear();
        let Some(entry) = self.entry.take() else {
            return Vec::new();
        };
        let mut changes = entry.remove();
        changes.extend(names::close(&self.subject.interface, &open));
        let steps = [
            self.put(Some(&entry), None, changes),
            self.forget_flows(&self.subject.sources),
        ];
        steps.into_iter().filter_map(Result::err).collect()
    }

    /// Leave everything in force for the next process.
    pub(super) fn forget_ownership(&mut self) {
        if let Some(entry) = self.entry.take() {
            self.host.chains().changed(entry.chain(), None);
        }
        self.reservations.clear();
        self.unsubscribe();
    }

    /// Let the resolver answer no more; what names have opened.
    fn unsubscribe(&mut self) -> Vec<(usize, Ipv4Addr)> {
        let Some(subscriber) = self.subscriber.take() else {
            return std::mem::take(&mut self.inherited);
        };
        self.subject
            .sources
            .iter()
            .for_each(|source| self.host.gate.unsubscribe(*source));
        subscriber.lock().close()
    }

    /// Hold the host's ports that are not held yet.
    fn reserve(&mut self, published: &[(PublishedPort, Ipv4Addr)]) -> Result<(), NetworkError> {
        for (port, _) in published {
            // The same door may lead elsewhere now; it is ours already.
            if self
                .reservations
                .iter()
                .any(|held| held.port.same_door(port))
            {
                continue;
            }
            let reservation =
                Reservation::take(*port).map_err(|source| NetworkError::PortTaken {
                    port: *port,
                    source,
                })?;
            self.reservations.push(reservation);
        }
        Ok(())
    }

    fn release_unpublished(&mut self) {
        let published = &self.subject.published;
        self.reservations
            .retain(|held| published.iter().any(|(port, _)| held.port.same_door(port)));
    }

    /// Private networks that are named may lie behind other interfaces than the internet.
    fn open_ways(&self, policy: &Policy) -> Result<(), NetworkError> {
        let mut addresses: Vec<Ipv4Addr> = Vec::new();
        for clause in policy.clauses() {
            if let Destination::Addresses(ranges) = &clause.destination {
                let first = ranges
                    .as_slice()
                    .iter()
                    .map(|range| Ipv4Addr::from_bits(range.0 | 1));
                addresses.extend(first.filter(|address| is_private(*address)));
            }
        }
        Ok(self.host.open_ways(&addresses)?)
    }
}

/// What names have opened, as a policy sees it.
#[derive(Debug, Default)]
struct Names {
    /// The addresses that are open now.
    grants: Vec<Grant>,
    /// Those that names ever led to.
    led_to: BTreeSet<(usize, Ipv4Addr)>,
}

impl Names {
    fn known(subscription: Option<&Subscription>, policy: &Policy) -> Self {
        subscription.map_or_else(Self::default, |subscription| Self {
            grants: subscription.grants_under(policy),
            led_to: subscription.ever_led_to(policy),
        })
    }
}

/// What a policy says of a running flow.
fn fate(flow: &Flow, policy: &Policy, names: &Names) -> Fate {
    let judge = |resolved: &dyn Fn(usize, Ipv4Addr) -> bool| {
        policy.judge(flow.to, flow.protocol, flow.port, resolved) == Action::Allow
    };
    let now = |clause, address| {
        let stands_for = |grant: &Grant| (grant.clause, grant.address) == (clause, address);
        names.grants.iter().any(stands_for)
    };
    if judge(&now) {
        Fate::Stays
    } else if judge(&|clause, address| names.led_to.contains(&(clause, address))) {
        Fate::StaysMarked
    } else {
        Fate::Ends
    }
}

/// Never zero, so that a flow without a mark is never taken for an approved one.
fn next_generation(generation: u8) -> u8 {
    generation.checked_add(1).unwrap_or(1)
}

const _: () = assert!(super::MAX_SLOT < 1 << (32 - GENERATION_BITS));
