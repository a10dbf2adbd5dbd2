//! Domain rules: a name opens its addresses, for its time, and nothing else does.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    unreachable_pub,
    reason = "a test may"
)]

mod support;

use std::collections::{BTreeSet, HashMap};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use hickory_proto::op::{Edns, Message, Query, ResponseCode};
use hickory_proto::rr::rdata::{A, CNAME};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use kiln_net::dns::{DnsOptions, Server};
use kiln_net::{HostNetwork, Identity, Network};
use support::{
    HOST, Lab, METADATA, OTHER, PRIVATE, PUBLIC_DNS, SERVER, THIRD, at, privileged, probe, server,
};

/// Where the test's upstream listens; the uplink's other side.
const UPSTREAM: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(SERVER), 5300);

type Zone = HashMap<&'static str, Vec<RData>>;

fn a(address: Ipv4Addr) -> RData {
    RData::A(A(address))
}

fn zone() -> Zone {
    let alias = |to: &str| RData::CNAME(CNAME(Name::from_ascii(to).unwrap()));
    HashMap::from([
        ("allowed.example.", vec![a(OTHER)]),
        ("www.good.example.", vec![a(THIRD)]),
        ("good.example.", vec![a(SERVER)]),
        ("late.good.example.", vec![a(SERVER)]),
        ("evil.example.", vec![a(SERVER)]),
        ("xallowed.example.", vec![a(SERVER)]),
        ("shop.good.example.", vec![alias("edge.cdn.test.")]),
        ("edge.cdn.test.", vec![a(OTHER)]),
        ("inside.good.example.", vec![a(PRIVATE)]),
        ("meta.good.example.", vec![a(METADATA)]),
        (
            "many.good.example.",
            (1..=60).map(|last| a([203, 0, 114, last].into())).collect(),
        ),
    ])
}

/// A resolver with a fixed zone, TTL 5, that counts its questions and cuts long answers by UDP.
struct Upstream {
    asked: Arc<AtomicUsize>,
    log: Arc<Mutex<Vec<String>>>,
    /// Whoever holds it holds back answers about names that are `late`.
    late: Arc<Mutex<()>>,
}

fn answer(request: &[u8], udp: bool, log: &Mutex<Vec<String>>) -> Option<Vec<u8>> {
    let request = Message::from_vec(request).ok()?;
    let question = request.queries.first()?.clone();
    let mut response = Message::response(request.metadata.id, request.metadata.op_code);
    response.add_query(question.clone());
    let mut name = question.name().to_lowercase();
    log.lock().unwrap().push(name.to_ascii());
    let zone = zone();
    while let Some(data) = zone.get(name.to_ascii().as_str()) {
        let owner = name.clone();
        for one in data {
            if let RData::CNAME(next) = one {
                name = next.0.clone();
            }
            response.add_answer(Record::from_rdata(owner.clone(), 5, one.clone()));
        }
        if name == owner {
            break;
        }
    }
    if response.answers.is_empty() {
        response.metadata.response_code = ResponseCode::NXDomain;
    }
    if udp && response.answers.len() > 20 {
        response = response.truncate();
        response.metadata.truncation = true;
    }
    response.to_vec().ok()
}

impl Upstream {
    fn start(lab: &Lab) -> Self {
        let (asked, log) = (
            Arc::new(AtomicUsize::new(0)),
            Arc::new(Mutex::new(Vec::new())),
        );
        let udp = lab
            .internet
            .run(|| UdpSocket::bind(UPSTREAM).unwrap())
            .unwrap();
        let tcp = lab
            .internet
            .run(|| TcpListener::bind(UPSTREAM).unwrap())
            .unwrap();
        let late = Arc::new(Mutex::new(()));
        let (count, seen, gate) = (Arc::clone(&asked), Arc::clone(&log), Arc::clone(&late));
        thread::spawn(move || {
            let mut buffer = [0; 2048];
            while let Ok((length, peer)) = udp.recv_from(&mut buffer) {
                let reply = answer(&buffer[..length], true, &seen);
                count.fetch_add(1, Ordering::SeqCst);
                if buffer[..length].windows(4).any(|part| part == b"late") {
                    drop(gate.lock());
                }
                if let Some(bytes) = reply {
                    let _ = udp.send_to(&bytes, peer);
                }
            }
        });
        let seen = Arc::clone(&log);
        thread::spawn(move || {
            for stream in tcp.incoming().flatten() {
                if let Some(bytes) = read_framed(&stream).and_then(|r| answer(&r, false, &seen)) {
                    write_framed(&stream, &bytes);
                }
            }
        });
        Self { asked, log, late }
    }

    fn count(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }
}

fn read_framed(mut stream: &TcpStream) -> Option<Vec<u8>> {
    let mut length = [0; 2];
    stream.read_exact(&mut length).ok()?;
    let mut bytes = vec![0; u16::from_be_bytes(length).into()];
    stream.read_exact(&mut bytes).ok()?;
    Some(bytes)
}

fn write_framed(mut stream: &TcpStream, bytes: &[u8]) {
    let length = u16::try_from(bytes.len()).unwrap().to_be_bytes();
    stream.write_all(&[&length, bytes].concat()).unwrap();
}

/// The gate, served by a runtime of its own whose threads live in the host.
struct Serving {
    server: Option<Server>,
    runtime: tokio::runtime::Runtime,
}

impl Drop for Serving {
    fn drop(&mut self) {
        let server = self.server.take();
        self.runtime.block_on(async move { drop(server) });
    }
}

fn lab(linger: Duration) -> (Lab, Upstream, Serving) {
    let lab = Lab::with(DnsOptions {
        resolvers: vec![UPSTREAM],
        linger,
    });
    let upstream = Upstream::start(&lab);
    let serving = lab
        .host
        .run(|| {
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .worker_threads(1)
                .enable_all()
                .build()
                .unwrap();
            let server = runtime.block_on(lab.kiln.gate().serve()).unwrap();
            Serving {
                server: Some(server),
                runtime,
            }
        })
        .unwrap();
    (lab, upstream, serving)
}

fn request(name: &str, kind: RecordType, edns: bool) -> Vec<u8> {
    let mut message = Message::query();
    message.metadata.id = 7;
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    if edns {
        let mut edns = Edns::new();
        edns.set_max_payload(4096);
        message.set_edns(edns);
    }
    message.to_vec().unwrap()
}

/// Ask some resolver by UDP, from the calling thread's namespace.
fn ask_of(resolver: Ipv4Addr, name: &str, kind: RecordType, edns: bool) -> Option<Message> {
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    socket
        .set_read_timeout(Some(Duration::from_secs(6)))
        .unwrap();
    socket.connect(at(resolver, 53)).unwrap();
    socket.send(&request(name, kind, edns)).unwrap();
    let mut buffer = [0; 4096];
    let length = socket.recv(&mut buffer).ok()?;
    Message::from_vec(&buffer[..length]).ok()
}

/// The addresses that the guest's resolver gives for a name, or the refusal.
fn ask(name: &str) -> Result<Vec<Ipv4Addr>, ResponseCode> {
    let gateway = Ipv4Addr::new(198, 19, 255, 1);
    addresses(&ask_of(gateway, name, RecordType::A, true).expect("an answer"))
}

fn addresses(message: &Message) -> Result<Vec<Ipv4Addr>, ResponseCode> {
    if message.metadata.response_code != ResponseCode::NoError {
        return Err(message.metadata.response_code);
    }
    let found = message
        .answers
        .iter()
        .filter_map(|record| match &record.data {
            RData::A(address) => Some(address.0),
            _ => None,
        });
    Ok(found.collect())
}

const DOMAINS: &str = r#"{"allowed_domains":["allowed.example","*.good.example"]}"#;

#[test]
fn b4_7_a_name_opens_its_addresses_and_nothing_else_does() {
    if !privileged("domains") {
        return;
    }
    let (lab, upstream, _serving) = lab(Duration::from_secs(30));
    let network = lab.network(1, DOMAINS);
    lab.guest(&network).run(|| {
        assert_eq!(
            probe::tcp(at(OTHER, 80)),
            None,
            "the raw address, before it was asked for"
        );
        assert_eq!(ask("allowed.example."), Ok(vec![OTHER]));
        assert!(
            probe::tcp(at(OTHER, 80)).is_some(),
            "at once after the answer"
        );
        assert_eq!(ask("WWW.Good.EXAMPLE."), Ok(vec![THIRD]));
        assert!(probe::tcp(at(THIRD, 443)).is_some());
        let questions = upstream.count();
        for refused in [
            "evil.example.",
            "xallowed.example.",
            "good.example.",
            "www.good.example.evil.example.",
        ] {
            assert_eq!(ask(refused), Err(ResponseCode::NXDomain), "{refused}");
        }
        assert_eq!(
            upstream.count(),
            questions,
            "refused names never leave the host"
        );
        assert_eq!(probe::tcp(at(SERVER, 80)), None);
    });
}

#[test]
fn aliases_are_followed_and_answers_inside_refused() {
    if !privileged("aliases") {
        return;
    }
    let (lab, _upstream, _serving) = lab(Duration::from_secs(30));
    let network = lab.network(1, DOMAINS);
    lab.guest(&network).run(|| {
        assert_eq!(probe::tcp(at(OTHER, 80)), None);
        assert_eq!(
            ask("shop.good.example."),
            Ok(vec![OTHER]),
            "by an alias elsewhere"
        );
        assert!(probe::tcp(at(OTHER, 80)).is_some());
        assert_eq!(
            ask("inside.good.example."),
            Ok(vec![]),
            "rebinding to a private range"
        );
        assert_eq!(probe::tcp(at(PRIVATE, 80)), None);
        assert_eq!(
            ask("meta.good.example."),
            Ok(vec![]),
            "rebinding to the metadata address"
        );
        assert_eq!(probe::tcp(at(METADATA, 80)), None);
    });
    // Where the private network is allowed by name, its addresses are given out.
    let open = lab.network(
        2,
        r#"{"allowed_domains":["*.good.example"],"allowed_cidrs":["10.9.0.0/16"]}"#,
    );
    lab.guest(&open).run(|| {
        assert_eq!(ask("inside.good.example."), Ok(vec![PRIVATE]));
        assert!(probe::tcp(at(PRIVATE, 80)).is_some());
        assert_eq!(ask("meta.good.example."), Ok(vec![]), "never");
    });
}

#[test]
fn other_types_other_resolvers_tcp_and_edns() {
    if !privileged("types") {
        return;
    }
    let (lab, upstream, _serving) = lab(Duration::from_secs(30));
    let network = lab.network(1, DOMAINS);
    let guest = lab.guest(&network);
    let gateway = guest.facts.resolver;
    guest.run(|| {
        for kind in [RecordType::AAAA, RecordType::HTTPS, RecordType::SVCB] {
            let answer = ask_of(gateway, "allowed.example.", kind, false).unwrap();
            assert_eq!(
                answer.metadata.response_code,
                ResponseCode::NoError,
                "{kind}"
            );
            assert!(answer.answers.is_empty(), "{kind} is withheld");
        }
        let answer = ask_of(gateway, "allowed.example.", RecordType::ANY, false).unwrap();
        assert_eq!(answer.metadata.response_code, ResponseCode::NotImp);
        assert_eq!(upstream.count(), 0);
        // Whichever resolver is asked, ours answers.
        let answer = ask_of(PUBLIC_DNS, "evil.example.", RecordType::A, false).unwrap();
        assert_eq!(answer.metadata.response_code, ResponseCode::NXDomain);
        let answer = ask_of(PUBLIC_DNS, "allowed.example.", RecordType::A, false).unwrap();
        assert_eq!(addresses(&answer), Ok(vec![OTHER]));
        // Sixty addresses: cut by UDP, whole by TCP (upstream cuts its own too).
        let answer = ask_of(gateway, "many.good.example.", RecordType::A, false).unwrap();
        assert!(answer.metadata.truncation && answer.answers.is_empty());
        let stream = TcpStream::connect_timeout(&at(gateway, 53), Duration::from_secs(3)).unwrap();
        write_framed(
            &stream,
            &request("many.good.example.", RecordType::A, false),
        );
        let answer = Message::from_vec(&read_framed(&stream).unwrap()).unwrap();
        assert_eq!(addresses(&answer).unwrap().len(), 60);
        let answer = ask_of(gateway, "many.good.example.", RecordType::A, true).unwrap();
        assert!(
            !answer.metadata.truncation && answer.edns.is_some(),
            "fits with EDNS"
        );
    });
}

#[test]
fn addresses_close_when_their_time_is_over_but_running_flows_go_on() {
    if !privileged("expiry") {
        return;
    }
    let (lab, _upstream, _serving) = lab(Duration::ZERO);
    let network = lab.network(1, DOMAINS);
    let guest = lab.guest(&network);
    guest.run(|| {
        assert_eq!(ask("allowed.example."), Ok(vec![OTHER]));
        let asked = Instant::now();
        let mut stream =
            TcpStream::connect_timeout(&at(OTHER, 80), Duration::from_secs(3)).unwrap();
        // The TTL is 5 seconds; the kernel counts by itself.
        thread::sleep(Duration::from_secs(6).saturating_sub(asked.elapsed()));
        assert_eq!(probe::tcp(at(OTHER, 80)), None, "expired");
        stream
            .set_read_timeout(Some(Duration::from_secs(2)))
            .unwrap();
        let mut banner = [0; 64];
        assert!(stream.read(&mut banner).unwrap() > 0);
        stream.write_all(b"ping").unwrap();
        assert_eq!(
            stream.read(&mut banner).unwrap(),
            4,
            "an approved connection outlives the TTL"
        );
        assert_eq!(ask("allowed.example."), Ok(vec![OTHER]));
        assert!(
            probe::tcp(at(OTHER, 80)).is_some(),
            "asked again, open again"
        );
    });
}

#[test]
fn a_flow_to_a_name_outlives_its_ttl_and_an_update_that_allows_the_name() {
    if !privileged("expired_flow") {
        return;
    }
    let (lab, _upstream, _serving) = lab(Duration::ZERO);
    let mut network = lab.network(1, DOMAINS);
    let guest = lab.guest(&network);
    let mut stream = guest.run(|| {
        assert_eq!(ask("allowed.example."), Ok(vec![OTHER]));
        speak(at(OTHER, 80), b"hi").unwrap()
    });
    // The TTL is 5 seconds; the kernel counts by itself.
    thread::sleep(Duration::from_secs(6));
    let mut alive = || stream.write_all(b"ping").is_ok() && stream.read_exact(&mut [0; 4]).is_ok();
    lab.update(&mut network, r#"{"allowed_domains":["allowed.example"]}"#);
    assert!(alive(), "the name is still allowed");
    assert_eq!(
        guest.run(|| probe::tcp(at(OTHER, 80))),
        None,
        "for a new flow it is over"
    );
    lab.update(&mut network, r#"{"allowed_domains":["*.good.example"]}"#);
    assert!(!alive(), "the name is no longer allowed");
}

#[test]
fn a_closed_sandbox_has_no_names_and_an_open_one_all() {
    if !privileged("closed_names") {
        return;
    }
    let (lab, upstream, _serving) = lab(Duration::from_secs(30));
    let closed = lab.network(1, r#"{"mode":"deny-all"}"#);
    lab.guest(&closed).run(|| {
        assert_eq!(ask("allowed.example."), Err(ResponseCode::NXDomain));
        assert_eq!(
            ask("secret-data-in-a-name.evil.example."),
            Err(ResponseCode::NXDomain)
        );
    });
    assert!(
        upstream.log.lock().unwrap().is_empty(),
        "no tunnel through names"
    );
    let open = lab.network(2, "{}");
    lab.guest(&open).run(|| {
        assert_eq!(ask("evil.example."), Ok(vec![SERVER]));
        assert_eq!(ask("inside.good.example."), Ok(vec![]));
    });
}

#[test]
fn names_asked_before_an_update_stay_open_if_they_are_still_allowed() {
    if !privileged("names_over_updates") {
        return;
    }
    let (lab, _upstream, _serving) = lab(Duration::from_secs(30));
    let mut network = lab.network(1, DOMAINS);
    let guest = lab.guest(&network);
    guest.run(|| {
        assert_eq!(ask("allowed.example."), Ok(vec![OTHER]));
        assert_eq!(ask("www.good.example."), Ok(vec![THIRD]));
    });
    lab.update(&mut network, r#"{"rules":[{"action":"allow","domains":["allowed.example"],"protocol":"tcp","ports":[80]}]}"#);
    guest.run(|| {
        assert!(probe::tcp(at(OTHER, 80)).is_some(), "without asking again");
        assert_eq!(probe::tcp(at(OTHER, 443)), None, "but for the port only");
        assert_eq!(probe::tcp(at(THIRD, 80)), None, "no longer allowed");
        assert_eq!(ask("www.good.example."), Err(ResponseCode::NXDomain));
    });
}

/// The chains of custom rules, and the elements that names opened, as another tool sees them.
fn in_table(lab: &Lab) -> (usize, usize) {
    let text = lab.host_sh("nft list table inet kiln");
    let chains = text.matches("chain p").count();
    (chains, text.matches("expires").count())
}

#[test]
fn what_a_name_opens_it_opens_for_one_sandbox_even_where_rules_are_shared() {
    if !privileged("shared_rules") {
        return;
    }
    let (lab, _upstream, _serving) = lab(Duration::from_secs(30));
    let one = lab.network(1, DOMAINS);
    let mut other = lab.network(2, r#"{"allowed_domains":["allowed.example"]}"#);
    assert_eq!(in_table(&lab), (1, 0), "the kernel sees no names");
    let (first, second) = (lab.guest(&one), lab.guest(&other));
    let reaches = |guest: &support::Guest, to| guest.run(|| probe::tcp(at(to, 80))).is_some();
    assert_eq!(first.run(|| ask("allowed.example.")), Ok(vec![OTHER]));
    assert_eq!(first.run(|| ask("www.good.example.")), Ok(vec![THIRD]));
    assert!(reaches(&first, OTHER) && !reaches(&second, OTHER));
    assert_eq!(second.run(|| ask("allowed.example.")), Ok(vec![OTHER]));
    assert!(reaches(&second, OTHER) && !reaches(&second, THIRD));
    // The rules stay the same, the names do not.
    lab.update(&mut other, r#"{"allowed_domains":["*.good.example"]}"#);
    assert!(!reaches(&second, OTHER), "closed with its name");
    assert_eq!(second.run(|| ask("www.good.example.")), Ok(vec![THIRD]));
    assert!(reaches(&second, THIRD) && reaches(&first, OTHER));
    assert_eq!(in_table(&lab), (1, 3));
    drop(first);
    one.close().unwrap();
    assert_eq!(in_table(&lab), (1, 1), "the other one's stay");
    assert!(reaches(&second, THIRD));
    other.close().unwrap();
    assert_eq!(in_table(&lab), (0, 0));
}

#[test]
fn an_answer_that_comes_after_its_sandbox_is_gone_opens_nothing() {
    if !privileged("late_answers") {
        return;
    }
    let (lab, upstream, _serving) = lab(Duration::from_secs(30));
    // Under the same rules: the sets stay when the first one goes.
    let (one, other) = (lab.network(1, DOMAINS), lab.network(2, DOMAINS));
    let (first, second) = (lab.guest(&one), lab.guest(&other));
    let held = upstream.late.lock().unwrap();
    first.run(|| {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        let question = request("late.good.example.", RecordType::A, true);
        let gateway = Ipv4Addr::new(198, 19, 255, 1);
        socket.send_to(&question, at(gateway, 53)).unwrap();
    });
    let asked = Instant::now();
    while upstream.count() == 0 {
        assert!(asked.elapsed() < Duration::from_secs(10), "no question");
        thread::sleep(Duration::from_millis(5));
    }
    drop(first);
    one.close().unwrap();
    drop(held);
    // Answers are dealt with in the order in which they come.
    assert_eq!(second.run(|| ask("allowed.example.")), Ok(vec![OTHER]));
    assert_eq!(in_table(&lab), (1, 1), "the other one's only");
}

#[test]
fn names_asked_before_a_crash_stay_open_until_an_update_and_go_with_their_sandbox() {
    if !privileged("names_over_crashes") {
        return;
    }
    let (lab, _upstream, _serving) = lab(Duration::from_secs(30));
    let (alive, dead) = (lab.network(1, DOMAINS), lab.network(2, DOMAINS));
    let (guest, gone) = (lab.guest(&alive), lab.guest(&dead));
    for guest in [&guest, &gone] {
        assert_eq!(guest.run(|| ask("allowed.example.")), Ok(vec![OTHER]));
    }
    drop(gone);
    let namespace = alive.namespace().try_clone().unwrap();
    // As after kill -9: nothing is taken down, nobody holds the guards.
    let (record, _) = (alive.detach(), dead.detach());
    let second = lab.host.run(|| {
        HostNetwork::open(support::options(
            Identity::standard(),
            DnsOptions::default(),
        ))
    });
    let second = second.unwrap().unwrap();
    let mut adopted = lab
        .host
        .run(|| Network::adopt(&second, record, support::spec(1, DOMAINS), namespace))
        .unwrap()
        .unwrap();
    assert_eq!(in_table(&lab), (1, 2));
    let keep = BTreeSet::from([adopted.record().interface]);
    lab.host.run(|| second.sweep(&keep)).unwrap().unwrap();
    assert_eq!(in_table(&lab), (1, 1), "the dead one's are closed");
    let reaches = || guest.run(|| probe::tcp(at(OTHER, 80))).is_some();
    assert!(reaches(), "without asking again");
    lab.update(&mut adopted, r#"{"allowed_domains":["*.good.example"]}"#);
    assert!(!reaches(), "closed with its name");
    adopted.close().unwrap();
    assert_eq!(in_table(&lab), (0, 0));
}

/// A TLS hello that asks for a server.
fn hello(name: Option<&str>) -> Vec<u8> {
    let vector = |length_len: usize, value: &[u8]| {
        let length = u32::try_from(value.len()).unwrap().to_be_bytes();
        [&length[4 - length_len..], value].concat()
    };
    let server_name = name.map_or_else(Vec::new, |name| {
        let entry = [&[0][..], &vector(2, name.as_bytes())].concat();
        [&[0, 0][..], &vector(2, &vector(2, &entry))].concat()
    });
    let (session, ciphers) = (vector(1, &[]), vector(2, &[0x13, 1]));
    let body = [
        vec![3; 34],
        session,
        ciphers,
        vec![1, 0],
        vector(2, &server_name),
    ]
    .concat();
    let message = [&[1][..], &vector(3, &body)].concat();
    [&[22, 3, 1][..], &vector(2, &message)].concat()
}

/// The connection, if the server's banner comes after these first bytes.
fn speak(to: SocketAddr, first: &[u8]) -> Option<TcpStream> {
    let mut stream = TcpStream::connect_timeout(&to, Duration::from_secs(2)).ok()?;
    stream
        .set_read_timeout(Some(Duration::from_secs(2)))
        .unwrap();
    stream.write_all(first).ok()?;
    let mut banner = [0; 1];
    while banner != *b"\n" {
        stream.read_exact(&mut banner).ok()?;
    }
    // The server echoes what was said first.
    let mut echo = vec![0; first.len()];
    stream.read_exact(&mut echo).ok()?;
    (echo == first).then_some(stream)
}

const VERIFIED: &str = r#"{"allowed_domains":["allowed.example","*.good.example"],
    "allowed_cidrs":["203.0.113.0/24"],"verify_hosts":true}"#;

#[test]
fn web_traffic_must_name_an_allowed_host_at_the_address_that_it_was_told() {
    if !privileged("verify_hosts") {
        return;
    }
    let (lab, _upstream, _serving) = lab(Duration::from_secs(30));
    let mut network = lab.network(1, VERIFIED);
    let guest = lab.guest(&network);
    let _own = server::tcp(&lab.host, HOST, 443);
    let get = |host: &str| format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n").into_bytes();
    let opens = |address, port, first: &[u8]| speak(at(address, port), first).is_some();
    let mut kept = guest.run(|| {
        let allowed = hello(Some("allowed.example"));
        assert!(!opens(OTHER, 443, &allowed), "before it was asked for");
        assert_eq!(ask("allowed.example."), Ok(vec![OTHER]));
        assert_eq!(ask("www.good.example."), Ok(vec![THIRD]));
        assert!(opens(OTHER, 443, &allowed));
        assert!(opens(OTHER, 80, &get("allowed.example")));
        assert!(
            !opens(OTHER, 443, &hello(Some("evil.example"))),
            "another name at that address"
        );
        assert!(
            !opens(OTHER, 443, &hello(Some("www.good.example"))),
            "an allowed one that lives elsewhere"
        );
        assert!(
            !opens(THIRD, 443, &allowed),
            "the same, the other way round"
        );
        assert!(!opens(OTHER, 443, &hello(None)), "no name");
        assert!(!opens(OTHER, 80, &get("evil.example")));
        assert!(!opens(OTHER, 443, b"SSH-2.0-x\r\n"), "not TLS");
        assert!(!probe::udp(at(OTHER, 443)), "QUIC");
        assert!(
            probe::tcp(at(OTHER, 25)).is_some(),
            "other ports are not the web"
        );
        assert!(
            probe::tcp(at(SERVER, 80)).is_some(),
            "a network that is allowed as such"
        );
        assert_eq!(
            probe::tcp(at(HOST, 443)),
            None,
            "but never the host's own services"
        );
        // A second request on the same connection could name another host.
        let mut stream = speak(at(OTHER, 80), &get("allowed.example")).unwrap();
        stream.write_all(&get("evil.example")).unwrap();
        assert!(!matches!(stream.read(&mut [0; 64]), Ok(1..)), "closed");
        speak(at(OTHER, 443), &allowed).unwrap()
    });
    let alive = |stream: &mut TcpStream| {
        stream.write_all(b"ping").is_ok() && stream.read_exact(&mut [0; 4]).is_ok()
    };
    assert!(alive(&mut kept));
    lab.update(
        &mut network,
        &VERIFIED.replace("*.good.example", "*.better.example"),
    );
    assert!(alive(&mut kept), "still allowed");
    lab.update(
        &mut network,
        &VERIFIED.replace("allowed.example", "other.example"),
    );
    assert!(!alive(&mut kept), "cut");
}
