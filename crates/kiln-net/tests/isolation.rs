//! Sandboxes, the host and each other: sources are pinned, IPv6 is gone, nobody sees a neighbour.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    unreachable_pub,
    reason = "a test may"
)]

mod support;

use support::{
    HOST, Lab, OTHER, SERVER, at, privileged, probe, server,
    spoof::{Pretence, assert_pinned},
};

#[test]
fn b4_3_sandboxes_reach_neither_each_other_nor_the_host() {
    if !privileged("isolation") {
        return;
    }
    let lab = Lab::new();
    let one = lab.network(1, r#"{"private_networks":true}"#);
    let two = lab.network(2, r#"{"private_networks":true}"#);
    let (guest_one, guest_two) = (lab.guest(&one), lab.guest(&two));
    let _inside = server::tcp(&guest_two.inside, guest_two.facts.address, 80);
    let _host = server::tcp(&lab.host, HOST, 8000);
    let _gateway = server::tcp(&lab.host, lab.kiln.gateway(), 8000);
    let neighbour = two.address();
    guest_one.run(|| {
        assert_eq!(probe::tcp(at(neighbour, 80)), None, "the neighbour");
        assert!(!probe::icmp(neighbour));
        assert_eq!(probe::tcp(at(HOST, 8000)), None, "the host");
        assert!(!probe::icmp(HOST));
        assert_eq!(
            probe::tcp(at(lab.kiln.gateway(), 8000)),
            None,
            "the gateway's other ports"
        );
        assert!(
            probe::tcp(at(OTHER, 80)).is_some(),
            "and yet the internet is there"
        );
    });
    // The same servers answer whom they should: the host (its agent connections) and its own peers.
    lab.host
        .run(|| {
            assert!(probe::tcp(at(neighbour, 80)).is_some(), "host to guest");
            assert!(probe::icmp(neighbour));
        })
        .unwrap();
    lab.internet
        .run(|| {
            assert!(probe::tcp(at(HOST, 8000)).is_some());
            assert_eq!(
                probe::tcp(at(neighbour, 80)),
                None,
                "from outside, straight to the slot"
            );
        })
        .unwrap();
}

#[test]
fn isolation_between_sandboxes_outlives_a_flushed_host_ruleset() {
    if !privileged("flushed_ruleset") {
        return;
    }
    let lab = Lab::new();
    let one = lab.network(1, "{}");
    let two = lab.network(2, "{}");
    let (guest_one, guest_two) = (lab.guest(&one), lab.guest(&two));
    let _inside = server::tcp(&guest_two.inside, guest_two.facts.address, 80);
    lab.host_sh("nft flush ruleset");
    assert_eq!(guest_one.run(|| probe::tcp(at(two.address(), 80))), None);
    // What held is the second line inside the namespaces: without it, the same probe succeeds.
    for network in [&one, &two] {
        network
            .namespace()
            .run(|| support::sh("nft flush chain inet kiln forward"))
            .unwrap();
    }
    assert!(
        guest_one
            .run(|| probe::tcp(at(two.address(), 80)))
            .is_some()
    );
}

#[test]
fn spoofed_sources_and_ipv6_are_dropped_on_the_hosts_side_too() {
    if !privileged("spoofing") || !support::has("spoofing", "python3") {
        return;
    }
    let lab = Lab::new();
    let network = lab.network(1, "{}");
    let counter = |name: &str| -> u64 {
        let text = lab.host_sh(&format!("nft list counter inet kiln {name}"));
        let packets = text
            .split_whitespace()
            .skip_while(|word| *word != "packets")
            .nth(1)
            .unwrap();
        packets.parse().unwrap()
    };
    let sink = server::Sink::new(&lab.internet, OTHER, 7777);
    let arrived = || sink.arrived();
    // As a VMM that broke out into its namespace would: no table inside, another source.
    let send = |from: &str| {
        network
            .namespace()
            .run(|| {
                support::sh(&format!(
                    "nft flush ruleset; ip address add {from}/32 dev eth0 2>/dev/null || true
                     python3 - <<'P'
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind(('{from}', 0))
s.sendto(b'probe', ('{OTHER}', 7777))
P"
                ));
            })
            .unwrap();
    };
    send(&network.address().to_string());
    assert_eq!(counter("c_spoof"), 0);
    assert!(arrived(), "its own address passes");
    send("198.18.1.77");
    assert_eq!(counter("c_spoof"), 1);
    send(&SERVER.to_string());
    assert_eq!(counter("c_spoof"), 2);
    assert!(!arrived(), "neither passed");
    let before = counter("c_not_ipv4");
    network
        .namespace()
        .run(|| {
            support::sh(
                "ip -6 address add fe80::1/64 dev eth0 nodad
                 python3 - <<'P'
import socket
s = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
s.sendto(b'probe', ('ff02::1', 9, 0, socket.if_nametoindex('eth0')))
P",
            );
        })
        .unwrap();
    assert!(
        counter("c_not_ipv4") > before,
        "IPv6 is counted and dropped"
    );
}

#[test]
fn a_guest_cannot_pretend_another_address_or_card() {
    if !privileged("guest_spoofing") {
        return;
    }
    let lab = Lab::new();
    let network = lab.network(1, "{}");
    let guest = lab.guest(&network);
    let sink = server::Sink::new(&lab.internet, OTHER, 7777);
    let pretence = Pretence {
        address: "198.19.255.9/32",
        gateway_mac: None,
    };
    assert_pinned(&guest, &sink, OTHER, &pretence);
}

#[test]
fn b4_1_many_sandboxes_share_one_guest_address_each_in_a_namespace_of_its_own() {
    if !privileged("same_address") {
        return;
    }
    let lab = Lab::new();
    let networks: Vec<_> = (1..=3).map(|slot| lab.network(slot, "{}")).collect();
    let guests: Vec<_> = networks.iter().map(|network| lab.guest(network)).collect();
    for guest in &guests {
        assert_eq!(guest.facts.address, guests[0].facts.address);
        assert_eq!(guest.facts.mac, guests[0].facts.mac);
        assert_eq!(guest.run(|| probe::tcp(at(SERVER, 80))), Some(HOST));
    }
    let argument = guests[0].facts.kernel_argument(&guests[0].facts.tap);
    assert_eq!(
        argument,
        "ip=198.19.255.2::198.19.255.1:255.255.255.252::tap0:off"
    );
}

#[test]
fn the_tap_opens_for_its_owner_only() {
    if !privileged("tap_owner") {
        return;
    }
    let lab = Lab::new();
    let network = lab.network(1, "{}");
    let details = network
        .namespace()
        .run(|| support::sh("ip -d tuntap show; ip -d link show tap0"))
        .unwrap();
    assert!(details.contains("user 10000 group 10000"), "{details}");
    assert!(details.contains("vnet_hdr"), "{details}");
}
