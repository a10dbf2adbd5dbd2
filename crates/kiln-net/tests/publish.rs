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

use std::net::{Ipv4Addr, TcpListener};

use kiln_net::NetworkError;
use support::{HOST, Lab, at, privileged, probe, rate, server};

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
    let down = rate::down(&lab, &guest, 256 << 10, 3 << 20);
    let up = rate::up(&lab, &guest, 256 << 10, 2 << 20);
    lab.update(&mut network, "{}");
    let free = rate::down(&lab, &guest, 256 << 10, 20 << 20);
    eprintln!("down {down:.1} up {up:.1} free {free:.1} Mbit/s");
    assert!((12.0..24.0).contains(&down), "download {down} of 20");
    assert!((6.0..12.0).contains(&up), "upload {up} of 10");
    assert!(free > 40.0, "without a limit {free}");
}
