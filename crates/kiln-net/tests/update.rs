//! Policies changed under running traffic: what stays allowed goes on, what is denied is cut, and a
//! change that fails changes nothing.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    unreachable_pub,
    reason = "a test may"
)]

mod support;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use support::{HOST, Lab, OTHER, SERVER, THIRD, at, privileged, probe, server};

/// A connection to an echoing server, past its banner.
fn connect(to: SocketAddr) -> TcpStream {
    let mut stream = TcpStream::connect_timeout(&to, Duration::from_secs(3)).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_millis(1400)))
        .unwrap();
    let mut byte = [0];
    while byte != *b"\n" {
        stream.read_exact(&mut byte).unwrap();
    }
    stream
}

fn alive(stream: &mut TcpStream) -> bool {
    let mut echo = [0; 4];
    stream.write_all(b"ping").is_ok() && stream.read_exact(&mut echo).is_ok()
}

fn table(lab: &Lab) -> String {
    let text = lab.host_sh("nft list table inet kiln");
    let counted = |line: &&str| !line.trim_start().starts_with("packets");
    text.lines().filter(counted).collect::<Vec<_>>().join("\n")
}

const TO_OTHER: &str = r#"{"allowed_cidrs":["198.51.100.10"]}"#;
const TO_BOTH: &str = r#"{"allowed_cidrs":["198.51.100.10","203.0.113.2"]}"#;

#[test]
fn b4_6_running_flows_live_on_or_are_cut_as_the_new_policy_says() {
    if !privileged("live_update") {
        return;
    }
    let lab = Lab::new();
    let mut network = lab.network(1, "{}");
    let guest = lab.guest(&network);
    let (mut other, mut server) = guest.run(|| (connect(at(OTHER, 80)), connect(at(SERVER, 80))));
    assert!(alive(&mut other) && alive(&mut server));
    let flows = || lab.host_sh("cat /proc/net/nf_conntrack 2>/dev/null || true");
    lab.update(&mut network, TO_BOTH);
    assert!(
        alive(&mut other) && alive(&mut server),
        "both are still allowed"
    );
    lab.update(&mut network, TO_OTHER);
    assert!(alive(&mut other), "still allowed");
    assert!(!alive(&mut server), "cut");
    assert!(
        !flows().contains("dst=203.0.113.2"),
        "forgotten by conntrack"
    );
    assert_eq!(guest.run(|| probe::tcp(at(SERVER, 80))), None);
    lab.update(&mut network, r#"{"mode":"deny-all"}"#);
    assert!(!alive(&mut other), "cut");
    // Gone from the table, too: no chain of an older generation is left.
    assert!(!table(&lab).contains("chain p"), "{}", table(&lab));
}

#[test]
fn a_cut_download_stops_even_though_only_replies_flow() {
    if !privileged("cut_download") {
        return;
    }
    let lab = Lab::new();
    let mut network = lab.network(1, "{}");
    let guest = lab.guest(&network);
    // A peer that only sends: nothing but replies passes after the first packet.
    let socket = guest.run(|| {
        let socket = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
        socket
            .set_read_timeout(Some(Duration::from_millis(500)))
            .unwrap();
        socket.send_to(b"go", at(OTHER, 9999)).unwrap();
        socket
    });
    let listener = lab
        .internet
        .run(|| std::net::UdpSocket::bind(at(OTHER, 9999)).unwrap())
        .unwrap();
    listener
        .set_read_timeout(Some(Duration::from_secs(3)))
        .unwrap();
    socket.send_to(b"go", at(OTHER, 9999)).unwrap();
    let mut buffer = [0; 16];
    let (_, peer) = listener.recv_from(&mut buffer).unwrap();
    listener.send_to(b"data", peer).unwrap();
    assert!(socket.recv(&mut buffer).is_ok());
    lab.update(&mut network, TO_BOTH);
    listener.send_to(b"data", peer).unwrap();
    assert!(
        socket.recv(&mut buffer).is_ok(),
        "allowed by the new policy"
    );
    lab.update(&mut network, r#"{"mode":"deny-all"}"#);
    listener.send_to(b"data", peer).unwrap();
    assert!(
        socket.recv(&mut buffer).is_err(),
        "the stream of replies is cut"
    );
}

#[test]
fn a_change_that_fails_changes_nothing() {
    if !privileged("rollback") {
        return;
    }
    let lab = Lab::new();
    let mut network = lab.network(
        1,
        r#"{"allowed_cidrs":["198.51.100.10"],"bandwidth":{"download":"50mbit"}}"#,
    );
    let guest = lab.guest(&network);
    let held = lab
        .host
        .run(|| TcpListener::bind(at(HOST, 8080)).unwrap())
        .unwrap();
    let before = (table(&lab), network.record());
    let refused = lab.try_update(
        &mut network,
        r#"{"publish":["8081:80","8080:80"],"bandwidth":{"download":"10mbit"}}"#,
    );
    assert!(refused.is_err());
    assert_eq!((table(&lab), network.record()), before);
    // The kernel's refusal in the middle of the transaction leaves nothing half-done either: the
    // element is taken behind our back.
    drop(held);
    lab.host_sh("nft add element inet kiln pub '{ tcp . 8082 : 198.18.9.9 . 1 }'");
    let before = (table(&lab), network.record());
    let refused = lab.try_update(
        &mut network,
        r#"{"publish":["8082:80"],"bandwidth":{"download":"10mbit"}}"#,
    );
    assert!(refused.is_err());
    assert_eq!((table(&lab), network.record()), before);
    let queues = network
        .namespace()
        .run(|| support::sh("tc qdisc show dev tap0"))
        .unwrap();
    assert!(queues.contains("50Mbit"), "{queues}");
    assert_eq!(guest.run(|| probe::web([OTHER, THIRD])), [true, false]);
    // And the port that was reserved for a moment is free again.
    drop(
        lab.host
            .run(|| TcpListener::bind(at(HOST, 8081)).unwrap())
            .unwrap(),
    );
}

#[test]
fn updates_under_load_never_open_a_gap() {
    if !privileged("update_under_load") {
        return;
    }
    let lab = Lab::new();
    let mut network = lab.network(1, TO_OTHER);
    let guest = lab.guest(&network);
    let sink = lab
        .internet
        .run(|| std::net::UdpSocket::bind(at(THIRD, 7777)).unwrap())
        .unwrap();
    sink.set_read_timeout(Some(Duration::from_millis(300)))
        .unwrap();
    let flood = guest.run(|| std::net::UdpSocket::bind("0.0.0.0:0").unwrap());
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                let _ = flood.send_to(b"forbidden", at(THIRD, 7777));
                std::thread::yield_now();
            }
        });
        for round in 0..30 {
            lab.update(
                &mut network,
                if round % 2 == 0 { TO_BOTH } else { TO_OTHER },
            );
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    assert!(
        sink.recv(&mut [0; 16]).is_err(),
        "not one forbidden packet passed"
    );
    lab.update(&mut network, "{}");
    flood.send_to(b"allowed", at(THIRD, 7777)).unwrap();
    assert!(
        sink.recv(&mut [0; 16]).is_ok(),
        "the same probe where it is allowed"
    );
}

#[test]
fn other_ports_and_limits_leave_the_rules_and_running_flows_alone() {
    if !privileged("untouched_flows") {
        return;
    }
    let lab = Lab::new();
    let with = |rest: &str| format!(r#"{{"allowed_cidrs":["198.51.100.10"]{rest}}}"#);
    let mut network = lab.network(1, &with(r#","publish":["8080:80","8081:80"]"#));
    let guest = lab.guest(&network);
    let _inside = server::tcp(&guest.inside, guest.facts.address, 80);
    let mut out = guest.run(|| connect(at(OTHER, 80)));
    let reach = |port| lab.internet.run(|| connect(at(HOST, port))).unwrap();
    let (mut kept, mut closed) = (reach(8080), reach(8081));
    assert!(alive(&mut out) && alive(&mut kept) && alive(&mut closed));
    let before = network.record();
    lab.update(
        &mut network,
        &with(r#","publish":["8080:80","8082:80"],"bandwidth":{"upload":"90mbit"}"#),
    );
    assert_eq!(
        network.record().generation,
        before.generation,
        "the same rules"
    );
    assert!(alive(&mut out) && alive(&mut kept));
    assert!(!alive(&mut closed), "cut with its port");
    assert!(alive(&mut reach(8082)));
}
