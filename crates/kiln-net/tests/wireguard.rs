//! Egress through a tunnel: policy routing, and nothing when the tunnel is gone. The tunnel here is
//! a veth pair, since this kernel may have no WireGuard; the device itself is tried where it does.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    unreachable_pub,
    reason = "a test may"
)]

mod support;

use std::collections::BTreeSet;
use std::sync::Arc;

use kiln_net::dns::DnsOptions;

use kiln_net::subnet::InterfaceName;
use kiln_net::wireguard::{Egress, EgressSpec, Tunnel, WireGuardError};
use kiln_net::{HostNetwork, Identity, Network, NetworkSpec};
use support::{HOST, Lab, OTHER, at, privileged, probe, spec};

const INSIDE: std::net::Ipv4Addr = std::net::Ipv4Addr::new(10, 77, 0, 2);

fn name(text: &str) -> InterfaceName {
    InterfaceName::new(text).unwrap()
}

fn existing() -> EgressSpec {
    EgressSpec::new(Tunnel::Existing {
        interface: name("wgx0"),
    })
}

fn with_tunnel() -> Lab {
    let lab = Lab::new();
    lab.host_sh("ip link add wgx0 mtu 1380 type veth peer name wgpeer; ip address add 10.77.0.2/24 dev wgx0; ip link set wgx0 up");
    let there = lab.internet_netns_path();
    lab.host_sh(&format!("ip link set wgpeer netns {there}"));
    lab.internet_sh("ip address add 10.77.0.1/24 dev wgpeer; ip link set wgpeer up");
    lab
}

fn up(lab: &Lab, spec: EgressSpec) -> Result<Arc<Egress>, WireGuardError> {
    lab.host.run(|| Egress::up(&lab.kiln, spec)).unwrap()
}

fn network(lab: &Lab, slot: u32, via: &Arc<Egress>) -> Network {
    let spec = NetworkSpec {
        via: Some(Arc::clone(via)),
        ..spec(slot, "{}")
    };
    lab.host
        .run(|| support::create(&lab.kiln, slot, spec))
        .unwrap()
        .unwrap()
}

#[test]
fn a8_4_traffic_leaves_by_the_tunnel_and_by_nothing_else() {
    if !privileged("tunnel") {
        return;
    }
    let lab = with_tunnel();
    let rules = lab.host_sh("ip rule; ip route show table 51820 2>/dev/null || true");
    let egress = up(&lab, existing()).unwrap();
    let tunnelled = network(&lab, 1, &egress);
    let plain = lab.network(2, "{}");
    let (guest, other) = (lab.guest(&tunnelled), lab.guest(&plain));
    assert_eq!(guest.facts.mtu, 1380, "the guest knows the tunnel's MTU");
    let seen = || guest.run(|| probe::tcp(at(OTHER, 80)));
    assert_eq!(seen(), Some(INSIDE), "the server sees the tunnel's address");
    assert_eq!(
        other.run(|| probe::tcp(at(OTHER, 80))),
        Some(HOST),
        "others are not concerned"
    );

    // Down under traffic: closed, by the unreachable route.
    let mut stream = guest.run(|| std::net::TcpStream::connect(at(OTHER, 80)).unwrap());
    lab.host_sh("ip link set wgx0 down");
    use std::io::Write;
    let _ = stream.write_all(b"during the outage");
    assert_eq!(seen(), None);
    assert!(
        lab.host_sh("ip route show table 51820")
            .contains("unreachable default")
    );
    // Without the route and the rule, too: the ruleset holds.
    lab.host_sh(
        "ip route flush table 51820; while ip rule del priority 5182 2>/dev/null; do :; done",
    );
    assert_eq!(seen(), None, "the ruleset alone");
    // The control: without that protection the same probe goes out in the open.
    lab.host_sh("nft flush set inet kiln pinned");
    assert_eq!(seen(), Some(HOST), "nothing else stopped it");
    let interface = tunnelled.record().interface;
    lab.host_sh(&format!(
        "nft add element inet kiln pinned '{{ \"{interface}\" }}'"
    ));

    tunnelled.close().unwrap();
    plain.close().unwrap();
    drop(egress);
    assert_eq!(
        lab.host_sh("ip rule; ip route show table 51820 2>/dev/null || true"),
        rules
    );
    assert!(
        lab.host_sh("ip -br link").contains("wgx0"),
        "A8.2: never deleted"
    );
}

#[test]
fn a8_2_a_tunnel_that_comes_back_is_used_again() {
    if !privileged("tunnel_back") {
        return;
    }
    let lab = with_tunnel();
    let egress = up(&lab, existing()).unwrap();
    let tunnelled = network(&lab, 1, &egress);
    let guest = lab.guest(&tunnelled);
    let seen = || guest.run(|| probe::tcp(at(OTHER, 80)));
    lab.host_sh("ip link set wgx0 down");
    assert!(!egress.mend().unwrap() && seen().is_none());
    lab.host_sh("ip link set wgx0 up");
    assert_eq!(seen(), None, "the kernel has forgotten the routes");
    assert!(egress.mend().unwrap());
    assert_eq!(seen(), Some(INSIDE));
    // Who takes over while it is down keeps everything closed, until it is up.
    lab.host_sh("ip link set wgx0 down");
    let record = tunnelled.detach();
    drop(record);
    drop(guest);
    egress.detach();
    let again = up(&lab, existing()).unwrap();
    let second = network(&lab, 2, &again);
    let guest = lab.guest(&second);
    let seen = || guest.run(|| probe::tcp(at(OTHER, 80)));
    assert_eq!(seen(), None);
    lab.host_sh("ip link set wgx0 up");
    assert!(again.mend().unwrap());
    assert_eq!(seen(), Some(INSIDE));
}

#[test]
fn a8_4_only_what_is_ours_is_used_and_removed() {
    if !privileged("tunnel_tables") {
        return;
    }
    let lab = with_tunnel();
    lab.host_sh(
        "ip route add default via 10.77.0.1 table 700; ip rule add from 10.1.0.0/16 lookup 51820",
    );
    let taken = up(
        &lab,
        EgressSpec {
            table: 700,
            ..existing()
        },
    );
    assert!(
        matches!(taken, Err(WireGuardError::TableTaken { table: 700 })),
        "{taken:?}"
    );
    for table in [0, 253, 254, 255] {
        let refused = up(
            &lab,
            EgressSpec {
                table,
                ..existing()
            },
        );
        assert!(
            matches!(refused, Err(WireGuardError::Table { .. })),
            "{refused:?}"
        );
    }
    let missing = EgressSpec::new(Tunnel::Existing {
        interface: name("nowhere0"),
    });
    assert!(matches!(
        up(&lab, missing),
        Err(WireGuardError::NoInterface { .. })
    ));
    let ours = EgressSpec::new(Tunnel::Existing {
        interface: name("kln0001-abc"),
    });
    assert!(matches!(
        up(&lab, ours),
        Err(WireGuardError::InterfaceName { .. })
    ));
    lab.host_sh("ip route add 10.99.0.0/16 via 10.77.0.1 table 51820");
    drop(up(&lab, existing()).unwrap());
    let left = lab.host_sh("ip rule; ip route show table 51820; ip route show table 700");
    assert!(left.contains("from 10.1.0.0/16 lookup 51820") && left.contains("10.99.0.0/16 via"));
    assert!(
        left.contains("default via 10.77.0.1") && !left.contains("unreachable"),
        "{left}"
    );
}

#[test]
fn without_fail_closed_traffic_goes_on_in_the_open() {
    if !privileged("tunnel_open") {
        return;
    }
    let lab = with_tunnel();
    let egress = up(
        &lab,
        EgressSpec {
            fail_closed: false,
            ..existing()
        },
    )
    .unwrap();
    let network = network(&lab, 1, &egress);
    let guest = lab.guest(&network);
    assert_eq!(guest.run(|| probe::tcp(at(OTHER, 80))), Some(INSIDE));
    lab.host_sh("ip link set wgx0 down");
    assert_eq!(guest.run(|| probe::tcp(at(OTHER, 80))), Some(HOST));
}

const TEXT: &str = "[Interface]
PrivateKey = yAnz5TF+lXXJte14tji3zlMNq+hd2rYUIgJBgB3fBmk=
Address = 10.78.0.2/32
MTU = 1400
[Peer]
PublicKey = xTIBA5rboUvnH4htodjb6e697QjLERt1NAB4mZqp8Dg=
Endpoint = 203.0.113.2:51820
AllowedIPs = 0.0.0.0/0";

#[test]
fn a8_1_a_managed_tunnel_is_made_and_deleted() {
    if !privileged("managed_tunnel") {
        return;
    }
    let lab = Lab::new();
    let config = TEXT.parse().unwrap();
    let before = lab.host_sh("ip -br link; ip rule; ip route show table all");
    let managed = EgressSpec::new(Tunnel::Managed {
        interface: name("wg7"),
        config,
    });
    let egress = match up(&lab, managed) {
        Ok(egress) => egress,
        Err(WireGuardError::NotInKernel) => {
            eprintln!("SKIPPED: managed_tunnel: this kernel has no WireGuard");
            let after = lab.host_sh("ip -br link; ip rule; ip route show table all");
            assert_eq!(after, before, "a refusal leaves nothing");
            return;
        }
        Err(error) => panic!("{error:?}"),
    };
    let link = lab.host_sh("ip -d link show wg7; ip address show wg7");
    assert!(
        link.contains("mtu 1400") && link.contains("10.78.0.2/32"),
        "{link}"
    );
    drop(egress);
    assert!(!lab.host_sh("ip -br link").contains("wg7"));
}

/// The other end of [`HERE`].
const THERE: &str = "[Interface]
PrivateKey = qsEla4qFRuSEyeumrfHMxR7bnGgUS2E/9/kmUIUyNzs=
Address = 10.78.0.1/24
ListenPort = 51820
[Peer]
PublicKey = EQkEncIb5Ykr8BlBIZGR43Qpl4xf9jUtx4cKCfoLR0s=
AllowedIPs = 10.78.0.2/32";

const HERE: &str = "[Interface]
PrivateKey = fwAvgFP0Ac3QZTI2AhmSo+W5MUvNTH5E38jdITdaA+k=
Address = 10.78.0.2/32
MTU = 1400
[Peer]
PublicKey = vIlpfzjviKvOl9PxlZFOboVSszYIVuhAlFFL7HMqJiE=
Endpoint = 203.0.113.2:51820
AllowedIPs = 0.0.0.0/0";

fn managed(interface: &str, text: &str) -> EgressSpec {
    EgressSpec::new(Tunnel::Managed {
        interface: name(interface),
        config: text.parse().unwrap(),
    })
}

#[test]
fn a8_1_a_real_peer_sees_the_traffic_and_nobody_else_when_it_is_down() {
    if !privileged("real_peer") {
        return;
    }
    let lab = Lab::new();
    // The peer is another data directory of ours, in the internet's namespace.
    let far = lab
        .internet
        .run(|| {
            let identity = Identity::of_directory(std::path::Path::new("/srv/far"));
            HostNetwork::open(support::options(identity, DnsOptions::default()))
        })
        .unwrap()
        .unwrap();
    let peer = lab
        .internet
        .run(|| {
            Egress::up(
                &far,
                EgressSpec {
                    route_all: false,
                    ..managed("wgfar", THERE)
                },
            )
        })
        .unwrap();
    let _peer = match peer {
        Err(WireGuardError::NotInKernel) => {
            eprintln!("SKIPPED: real_peer: this kernel has no WireGuard");
            return;
        }
        peer => peer.unwrap(),
    };
    let egress = up(&lab, managed("wg7", HERE)).unwrap();
    let network = network(&lab, 1, &egress);
    let guest = lab.guest(&network);
    assert_eq!(guest.facts.mtu, 1400);
    let inside = std::net::Ipv4Addr::new(10, 78, 0, 2);
    let seen = || guest.run(|| probe::tcp(at(OTHER, 80)));
    assert_eq!(seen(), Some(inside));
    // Down, then deleted, under traffic.
    lab.host_sh("ip link set wg7 down");
    assert_eq!(seen(), None);
    lab.host_sh("ip link delete wg7");
    assert_eq!(seen(), None);
    // Back again, as after a restart of ours.
    network.detach();
    drop(egress);
    let again = up(&lab, managed("wg7", HERE)).unwrap();
    let second = self::network(&lab, 3, &again);
    let guest = lab.guest(&second);
    assert_eq!(guest.run(|| probe::tcp(at(OTHER, 80))), Some(inside));
    // Left behind, it is swept: by name and tag, with its rule and its table.
    second.detach();
    again.detach();
    lab.host
        .run(|| lab.kiln.sweep(&BTreeSet::new()))
        .unwrap()
        .unwrap();
    let left = lab.host_sh("ip -br link; ip rule; ip route show table 51820 2>/dev/null || true");
    assert!(
        !left.contains("wg7") && !left.contains("51820") && !left.contains("unreachable"),
        "{left}"
    );
}

#[test]
fn a_tunnel_left_behind_is_swept_with_its_rules_and_table() {
    if !privileged("tunnel_swept") {
        return;
    }
    let lab = with_tunnel();
    let before = lab.host_sh("ip rule; ip route show table 51820 2>/dev/null || true");
    let egress = up(&lab, existing()).unwrap();
    let lost = network(&lab, 1, &egress);
    lost.detach();
    egress.detach();
    // The device is not ours, so it stays; the rule of its own address stays with it.
    lab.host
        .run(|| lab.kiln.sweep(&BTreeSet::new()))
        .unwrap()
        .unwrap();
    let left = lab.host_sh("ip -br link; ip rule");
    assert!(
        left.contains("wgx0") && !left.contains("from 198.18."),
        "{left}"
    );
    // The next to use the tunnel takes over what is there, and removes it at its end.
    drop(up(&lab, existing()).unwrap());
    assert_eq!(
        lab.host_sh("ip rule; ip route show table 51820 2>/dev/null || true"),
        before
    );
    // A table that leads into another tunnel of ours is taken.
    let first = up(&lab, existing()).unwrap();
    lab.host_sh(
        "ip link add wgx1 type veth peer name wgx2; ip address add 10.79.0.1/32 dev wgx1; ip link set wgx1 up",
    );
    let second = EgressSpec::new(Tunnel::Existing {
        interface: name("wgx1"),
    });
    let refused = up(&lab, second);
    assert!(
        matches!(refused, Err(WireGuardError::TableTaken { .. })),
        "{refused:?}"
    );
    drop(first);
}
