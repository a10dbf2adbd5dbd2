//! Who may ask what, and which addresses stay open for how long.

use std::collections::HashMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::DNSClass;

use super::answer::{self, Filtered, Treatment};
use super::subscription::{Subscriber, Subscription};
use super::upstream::{self, UDP_PAYLOAD};
use crate::netlink::NetlinkError;
use crate::nft::Nft;
use crate::policy::{DomainName, NameVerdict};
use crate::ruleset::names::{self, Grant};
use crate::ruleset::{TableFamily, Transaction};

/// How the resolver behaves.
#[derive(Debug, Clone)]
pub struct DnsOptions {
    /// Resolvers to ask, in this order.
    pub resolvers: Vec<SocketAddr>,
    /// How much longer than its TTL an address stays open at least: a guest connects a little
    /// after it asked.
    pub linger: Duration,
}

impl Default for DnsOptions {
    fn default() -> Self {
        Self {
            resolvers: Vec::new(),
            linger: Duration::from_secs(30),
        }
    }
}

/// The resolver's state.
#[derive(Debug)]
pub struct Gate {
    table: String,
    pub(crate) gateway: Ipv4Addr,
    options: DnsOptions,
    subscribers: RwLock<HashMap<Ipv4Addr, Arc<Subscriber>>>,
    nft: Mutex<Nft>,
}

impl Gate {
    pub(crate) fn new(
        table: String,
        gateway: Ipv4Addr,
        options: DnsOptions,
    ) -> Result<Self, NetlinkError> {
        let nft = Mutex::new(Nft::open()?);
        Ok(Self {
            table,
            gateway,
            options,
            subscribers: RwLock::default(),
            nft,
        })
    }

    /// Whom the host itself would ask.
    pub(crate) fn first_resolver(&self) -> Option<Ipv4Addr> {
        let usable = |resolver: &SocketAddr| match resolver {
            SocketAddr::V4(v4) if v4.port() == 53 => Some(*v4.ip()),
            _ => None,
        };
        self.options.resolvers.iter().find_map(usable)
    }

    /// Let an address ask as a subscriber.
    pub(crate) fn subscribe(&self, source: Ipv4Addr, subscriber: Arc<Subscriber>) {
        let mut subscribers = self
            .subscribers
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        subscribers.insert(source, subscriber);
    }

    pub(crate) fn unsubscribe(&self, source: Ipv4Addr) {
        self.subscribers
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&source);
    }

    pub(crate) fn subscriber(&self, source: Ipv4Addr) -> Option<Arc<Subscriber>> {
        let subscribers = self
            .subscribers
            .read()
            .unwrap_or_else(PoisonError::into_inner);
        subscribers.get(&source).cloned()
    }

    /// Answer a request; `None` when there is nothing to say.
    pub(super) async fn answer(
        &self,
        source: Ipv4Addr,
        request: &[u8],
        udp: bool,
    ) -> Option<Vec<u8>> {
        let request = Message::from_vec(request).ok()?;
        if request.metadata.message_type != MessageType::Query {
            return None;
        }
        let mut response = Message::response(request.metadata.id, request.metadata.op_code);
        response.metadata.recursion_available = true;
        response.metadata.recursion_desired = request.metadata.recursion_desired;
        response.add_queries(request.queries.iter().take(1).cloned());
        response.metadata.response_code = match self.decide(source, &request).await {
            Ok(filtered) => {
                response.add_answers(filtered.records);
                filtered.code
            }
            Err(code) => code,
        };
        encode(&request, response, udp)
    }

    async fn decide(&self, source: Ipv4Addr, request: &Message) -> Result<Filtered, ResponseCode> {
        let subscriber = self.subscriber(source).ok_or(ResponseCode::Refused)?;
        let question = question(request)?;
        let name = answer::plain_name(question.name()).ok_or(ResponseCode::NXDomain)?;
        let (verdict, ask_from) = {
            let subscription = subscriber.lock();
            (subscription.policy.judge_name(&name), subscription.ask_from)
        };
        // No question of a closed sandbox leaves the host: there is no tunnel through names.
        if verdict == NameVerdict::Refuse {
            return Err(ResponseCode::NXDomain);
        }
        match answer::treatment(question.query_type()) {
            Treatment::Resolve => {}
            Treatment::Withhold => return Err(ResponseCode::NoError),
            Treatment::Refuse => return Err(ResponseCode::NotImp),
        }
        let _permit = subscriber
            .questions
            .try_acquire()
            .map_err(|_| ResponseCode::Refused)?;
        let answer = upstream::resolve(&self.options.resolvers, ask_from, question)
            .await
            .ok_or(ResponseCode::ServFail)?;
        self.open(&subscriber, &name, question, &answer)
    }

    /// Open the addresses, then give the answer out; without the first there is no second.
    fn open(
        &self,
        subscriber: &Subscriber,
        name: &DomainName,
        question: &Query,
        answer: &Message,
    ) -> Result<Filtered, ResponseCode> {
        let mut subscription = subscriber.lock();
        if subscription.is_closed() {
            return Err(ResponseCode::Refused);
        }
        // The policy may have changed while the question was under way.
        let NameVerdict::Resolve { clauses } = subscription.policy.judge_name(name) else {
            return Err(ResponseCode::NXDomain);
        };
        let filtered = answer::filter(question, answer, |address| subscription.reachable(address));
        if !filtered.rebound.is_empty() {
            tracing::warn!(%name, addresses = ?filtered.rebound, "a name points into a closed network");
        }
        if !filtered.addresses.is_empty() {
            let stay = self.stay(filtered.ttl);
            self.insert(&mut subscription, &clauses, &filtered.addresses, stay)?;
            subscription.remember(name, &filtered.addresses, Instant::now() + stay);
        }
        Ok(filtered)
    }

    fn stay(&self, ttl: u32) -> Duration {
        let ttl = Duration::from_secs(ttl.into());
        ttl.max(self.options.linger) + self.options.linger
    }

    fn insert(
        &self,
        subscription: &mut Subscription,
        clauses: &[usize],
        addresses: &[Ipv4Addr],
        stay: Duration,
    ) -> Result<(), ResponseCode> {
        let timeout_ms = u64::try_from(stay.as_millis()).unwrap_or(u64::MAX);
        let of_clause = |clause: &usize| {
            let clause = *clause;
            addresses.iter().map(move |address| Grant {
                clause,
                address: *address,
                timeout_ms,
            })
        };
        let grants: Vec<Grant> = clauses.iter().flat_map(of_clause).collect();
        if !subscription.has_room_for(grants.len()) {
            tracing::warn!(interface = %subscription.interface, "too many addresses of names are open");
            return Err(ResponseCode::ServFail);
        }
        let transaction = Transaction {
            family: TableFamily::Inet,
            table: self.table.clone(),
            changes: names::open(&subscription.interface, &grants),
        };
        let applied = self
            .nft
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .apply(&transaction);
        // What was not applied is perhaps held as well.
        subscription.add_open(&grants);
        applied.map_err(|error| {
            tracing::warn!(%error, "cannot open the addresses of a name");
            ResponseCode::ServFail
        })
    }
}

fn question(request: &Message) -> Result<&Query, ResponseCode> {
    match &request.queries[..] {
        [question]
            if request.metadata.op_code == OpCode::Query
                && question.query_class() == DNSClass::IN =>
        {
            Ok(question)
        }
        _ => Err(ResponseCode::NotImp),
    }
}

/// As bytes that fit the way back: cut, with the mark that says so, when they do not.
fn encode(request: &Message, mut response: Message, udp: bool) -> Option<Vec<u8>> {
    let limit = match (&request.edns, udp) {
        (_, false) => u16::MAX,
        (Some(edns), true) => edns.max_payload().clamp(512, UDP_PAYLOAD),
        (None, true) => 512,
    };
    if request.edns.is_some() {
        let mut edns = Edns::new();
        edns.set_max_payload(UDP_PAYLOAD);
        response.set_edns(edns);
    }
    let bytes = response.to_vec().ok()?;
    if bytes.len() <= usize::from(limit) {
        return Some(bytes);
    }
    let mut cut = response.truncate();
    cut.metadata.truncation = true;
    cut.answers.clear();
    cut.to_vec().ok()
}

/// For fuzzing: whatever was asked, what is sent fits.
pub(super) fn hostile(request: &Message) {
    let _ = question(request);
    for udp in [true, false] {
        let mut response = Message::response(request.metadata.id, request.metadata.op_code);
        response.add_queries(request.queries.iter().take(1).cloned());
        response.add_answers(request.answers.iter().cloned());
        let sent = encode(request, response, udp);
        let longest = if udp {
            usize::from(UDP_PAYLOAD)
        } else {
            usize::from(u16::MAX)
        };
        assert!(
            sent.is_none_or(|bytes| bytes.len() <= longest),
            "an answer that does not fit"
        );
    }
}
