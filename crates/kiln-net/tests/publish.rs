//! Published ports: from other hosts, from the host itself, by localhost; and bandwidth.
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
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use kiln_net::NetworkError;
use support::{HOST, Lab, SERVER, at, privileged, probe, server};

const LOCALHOST: Ipv4Addr = Ipv4Addr::LOCALHOST;

#[test]
fn b4_4_a_published_port_works_three_ways_and_only_while_published() {
    if !privileged("publish") {
        return;
    }
    let lab = Lab::new();
    let mut network = lab.network(
        1,
        r#"{"mode":"deny-all","publish":["8080:80","5353:53/udp"]}"#,
    );
    let guest = lab.guest(&network);
    let _tcp = server::tcp(&guest.inside, guest.facts.address, 80);
    let _udp = server::udp(&guest.inside, guest.facts.address, 53);
    let outside = || {
        lab.internet
            .run(|| probe::tcp(at(HOST, 8080)).is_some())
            .unwrap()
    };
    let host = || {
        lab.host
            .run(|| probe::tcp(at(HOST, 8080)).is_some())
            .unwrap()
    };
    let localhost = || {
        lab.host
            .run(|| probe::tcp(at(LOCALHOST, 8080)).is_some())
            .unwrap()
    };
    assert_eq!([outside(), host(), localhost()], [true; 3]);
    let udp = |address| probe::udp(at(address, 5353));
    assert!(lab.internet.run(|| udp(HOST)).unwrap());
    assert!(lab.host.run(|| udp(HOST)).unwrap());
    assert!(lab.host.run(|| udp(LOCALHOST)).unwrap());

    lab.update(&mut network, r#"{"mode":"deny-all"}"#);
    assert_eq!([outside(), host(), localhost()], [false; 3]);
    lab.update(&mut network, r#"{"mode":"deny-all","publish":["8080:80"]}"#);
    assert_eq!([outside(), host(), localhost()], [true; 3]);
    network.close().unwrap();
    assert_eq!([outside(), host(), localhost()], [false; 3]);
}

#[test]
fn a_port_published_at_one_address_is_not_at_others() {
    if !privileged("publish_at") {
        return;
    }
    let lab = Lab::new();
    let network = lab.network(1, r#"{"publish":["127.0.0.1:8080:80"]}"#);
    let guest = lab.guest(&network);
    let _tcp = server::tcp(&guest.inside, guest.facts.address, 80);
    assert!(
        lab.host
            .run(|| probe::tcp(at(LOCALHOST, 8080)).is_some())
            .unwrap()
    );
    assert!(
        !lab.host
            .run(|| probe::tcp(at(HOST, 8080)).is_some())
            .unwrap()
    );
    assert!(
        !lab.internet
            .run(|| probe::tcp(at(HOST, 8080)).is_some())
            .unwrap()
    );
}

#[test]
fn published_to_the_neighbour_only_if_its_own_policy_lets_it_out() {
    if !privileged("hairpin") {
        return;
    }
    let lab = Lab::new();
    let one = lab.network(1, r#"{"publish":["8080:80","5353:53"]}"#);
    let two = lab.network(2, "{}");
    let closed = lab.network(3, r#"{"mode":"deny-all"}"#);
    let guests = [lab.guest(&one), lab.guest(&two), lab.guest(&closed)];
    let _tcp = server::tcp(&guests[0].inside, guests[0].facts.address, 80);
    assert!(guests[1].run(|| probe::tcp(at(HOST, 8080)).is_some()));
    assert!(
        guests[0].run(|| probe::tcp(at(HOST, 8080)).is_some()),
        "itself, by the front door"
    );
    assert!(guests[2].run(|| probe::tcp(at(HOST, 8080)).is_none()));
    // What is published of a guest's own port 53 is no question to our resolver.
    let _dns = server::tcp(&guests[0].inside, guests[0].facts.address, 53);
    assert!(guests[1].run(|| probe::tcp(at(HOST, 5353)).is_some()));
    assert!(guests[2].run(|| probe::tcp(at(HOST, 5353)).is_none()));
}

#[test]
fn a_port_that_another_program_holds_is_refused_and_nothing_is_left() {
    if !privileged("port_taken") {
        return;
    }
    let lab = Lab::new();
    let _held = lab
        .host
        .run(|| TcpListener::bind(at(HOST, 8080)).unwrap())
        .unwrap();
    let before = lab.host_sh("nft list table inet kiln; ip link | grep -c kln || true");
    let refused = lab.try_network(1, r#"{"publish":["8080:80"]}"#);
    assert!(
        matches!(refused, Err(NetworkError::PortTaken { .. })),
        "{refused:?}"
    );
    assert_eq!(
        lab.host_sh("nft list table inet kiln; ip link | grep -c kln || true"),
        before
    );
    // Two sandboxes cannot share one either.
    let _one = lab.network(2, r#"{"publish":["8081:80"]}"#);
    let refused = lab.try_network(3, r#"{"publish":["8081:80"]}"#);
    assert!(
        matches!(refused, Err(NetworkError::PortTaken { .. })),
        "{refused:?}"
    );
}

/// Megabits per second of what `give` writes and `take` reads.
fn mbit(bytes: usize, mut give: TcpStream, mut take: TcpStream) -> f64 {
    let writer = std::thread::spawn(move || {
        let chunk = vec![0; 64 << 10];
        while give.write_all(&chunk).is_ok() {}
    });
    let mut buffer = vec![0; 64 << 10];
    let mut left = bytes;
    // The bucket's first filling is not the rate.
    let mut warm = 256 << 10;
    while warm > 0 {
        warm -= take.read(&mut buffer).unwrap().min(warm);
    }
    let start = Instant::now();
    while left > 0 {
        left -= take.read(&mut buffer).unwrap().min(left);
    }
    let seconds = start.elapsed().as_secs_f64();
    drop(take);
    writer.join().unwrap();
    bytes as f64 * 8.0 / seconds / 1e6
}

fn pair(lab: &Lab, guest: &support::Guest, port: u16) -> (TcpStream, TcpStream) {
    let listener = lab
        .internet
        .run(|| TcpListener::bind(at(SERVER, port)).unwrap())
        .unwrap();
    let near = guest
        .run(|| TcpStream::connect_timeout(&at(SERVER, port), Duration::from_secs(3)).unwrap());
    let (far, _) = listener.accept().unwrap();
    (near, far)
}

#[test]
fn b4_5_bandwidth_is_capped_in_both_directions_and_changes_live() {
    if !privileged("bandwidth") {
        return;
    }
    if std::env::var_os("KILN_LAB").is_some() {
        eprintln!("SKIPPED: bandwidth: an emulated machine is too slow to measure limits");
        return;
    }
    let lab = Lab::new();
    let mut network = lab.network(
        1,
        r#"{"bandwidth":{"download":"20mbit","upload":"10mbit"}}"#,
    );
    let guest = lab.guest(&network);
    let (near, far) = pair(&lab, &guest, 9001);
    let down = mbit(3 << 20, far, near);
    let (near, far) = pair(&lab, &guest, 9002);
    let up = mbit(2 << 20, near, far);
    lab.update(&mut network, "{}");
    let (near, far) = pair(&lab, &guest, 9003);
    let free = mbit(20 << 20, far, near);
    eprintln!("down {down:.1} up {up:.1} free {free:.1} Mbit/s");
    assert!((12.0..24.0).contains(&down), "download {down} of 20");
    assert!((6.0..12.0).contains(&up), "upload {up} of 10");
    assert!(free > 40.0, "without a limit {free}");
}
