//! Each policy, probed with real packets: what is forbidden fails, and the same probe succeeds
//! where it is allowed.
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
    HOST, Lab, METADATA, OTHER, PRIVATE, PUBLIC_DNS, SERVER, THIRD, at, privileged, probe,
};

#[test]
fn b4_2_allow_all_is_the_public_internet() {
    if !privileged("allow_all") {
        return;
    }
    let lab = Lab::new();
    let network = lab.network(1, "{}");
    let guest = lab.guest(&network);
    guest.run(|| {
        assert_eq!(
            probe::tcp(at(SERVER, 80)),
            Some(HOST),
            "behind the host's address"
        );
        assert!(probe::udp(at(OTHER, 443)));
        assert!(probe::icmp(OTHER));
        assert_eq!(probe::tcp(at(PRIVATE, 80)), None, "private range");
        assert!(!probe::icmp(PRIVATE));
        assert_eq!(probe::tcp(at(METADATA, 80)), None, "metadata");
    });
    let open = lab.network(2, r#"{"private_networks":true}"#);
    let guest = lab.guest(&open);
    guest.run(|| {
        assert!(
            probe::tcp(at(PRIVATE, 80)).is_some(),
            "the same probe where it is allowed"
        );
        assert!(probe::icmp(PRIVATE));
        assert_eq!(probe::tcp(at(METADATA, 80)), None, "metadata is never open");
    });
}

#[test]
fn b4_2_deny_all_reaches_nothing() {
    if !privileged("deny_all") {
        return;
    }
    let lab = Lab::new();
    let mut network = lab.network(1, r#"{"mode":"deny-all"}"#);
    let guest = lab.guest(&network);
    let probes = || {
        [
            probe::tcp(at(SERVER, 80)).is_some(),
            probe::udp(at(OTHER, 443)),
            probe::icmp(OTHER),
        ]
    };
    assert_eq!(guest.run(probes), [false; 3]);
    lab.update(&mut network, "{}");
    assert_eq!(guest.run(probes), [true; 3]);
}

#[test]
fn a7_2_rules_by_network_protocol_and_port_in_order() {
    if !privileged("custom_rules") {
        return;
    }
    let lab = Lab::new();
    let network = lab.network(
        1,
        r#"{"rules":[
            {"action":"deny","cidrs":["198.51.100.11"]},
            {"action":"allow","cidrs":["198.51.100.0/24"],"protocol":"tcp","ports":[80,"400-500"]},
            {"action":"allow","cidrs":["198.51.100.0/24"],"protocol":"icmp"},
            {"action":"allow","cidrs":["10.9.0.0/16"],"protocol":"udp"}]}"#,
    );
    lab.guest(&network).run(|| {
        assert!(probe::tcp(at(OTHER, 80)).is_some());
        assert!(probe::tcp(at(OTHER, 443)).is_some(), "port range");
        assert_eq!(probe::tcp(at(OTHER, 25)), None, "other port");
        assert!(!probe::udp(at(OTHER, 80)), "other protocol");
        assert!(probe::icmp(OTHER));
        assert_eq!(
            probe::tcp(at(THIRD, 80)),
            None,
            "denied before it is allowed"
        );
        assert!(!probe::icmp(THIRD));
        assert!(
            probe::udp(at(PRIVATE, 443)),
            "a private network that is named"
        );
        assert_eq!(probe::tcp(at(PRIVATE, 80)), None);
        assert_eq!(
            probe::tcp(at(SERVER, 80)),
            None,
            "no rule: the default is deny"
        );
    });
}

#[test]
fn b4_2_denied_networks_within_allow_all() {
    if !privileged("denied_cidrs") {
        return;
    }
    let lab = Lab::new();
    let network = lab.network(1, r#"{"denied_cidrs":["198.51.100.11/32"]}"#);
    lab.guest(&network).run(|| {
        let answers = probe::web([OTHER, THIRD, PRIVATE]);
        assert_eq!(answers, [true, false, false]);
    });
}

#[test]
fn b4_3_dns_elsewhere_dot_and_doh_are_closed() {
    if !privileged("dns_elsewhere") {
        return;
    }
    let lab = Lab::new();
    let network = lab.network(1, r#"{"private_networks":true}"#);
    let guest = lab.guest(&network);
    guest.run(|| {
        // Nobody serves the gateway's resolver in this test, so what is redirected there dies.
        assert!(!probe::udp(at(PUBLIC_DNS, 53)), "another resolver by UDP");
        assert_eq!(
            probe::tcp(at(PUBLIC_DNS, 53)),
            None,
            "another resolver by TCP"
        );
        assert!(!probe::udp(at(OTHER, 53)));
        for port in [853, 8853] {
            assert_eq!(probe::tcp(at(OTHER, port)), None, "DNS over TLS");
            assert!(!probe::udp(at(OTHER, port)), "DNS over QUIC");
        }
        assert_eq!(probe::tcp(at(PUBLIC_DNS, 443)), None, "DNS over HTTPS");
        assert!(!probe::udp(at(PUBLIC_DNS, 443)));
        assert!(
            probe::tcp(at(PUBLIC_DNS, 80)).is_some(),
            "the same address otherwise"
        );
        assert!(
            probe::tcp(at(OTHER, 443)).is_some(),
            "the same port elsewhere"
        );
    });
    // The servers that were not reached do answer: the host itself may ask them.
    lab.host
        .run(|| {
            assert!(probe::udp(at(PUBLIC_DNS, 53)));
            assert!(probe::tcp(at(OTHER, 853)).is_some());
            assert!(probe::tcp(at(PUBLIC_DNS, 443)).is_some());
        })
        .unwrap();
}
