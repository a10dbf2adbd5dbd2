//! Bridge networks (A6, A7): several VMs in one subnet, pinned, isolated, judged by one policy.
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
use std::net::Ipv4Addr;
use std::sync::Arc;

use kiln_net::policy::{Bandwidth, PublishedPort, Rate};
use kiln_net::verify::{Finding, ask};
use kiln_net::wireguard::{Egress, EgressSpec, Tunnel};
use kiln_net::{
    BridgeError, BridgeNetwork, BridgeSpec, HostNetwork, Identity, Label, MemberRecord, MemberSpec,
    NetworkError, TapOwner,
};
use support::{
    Guest, HOST, Lab, METADATA, OTHER, PRIVATE, SERVER, THIRD, at, options, policy, privileged,
    probe, rate, server,
    spoof::{Pretence, assert_pinned},
};

const SUBNET: &str = "172.30.0.0/24";

fn bridge_spec(text: &str, members_talk: bool) -> BridgeSpec {
    BridgeSpec {
        label: Label::new("lan"),
        subnet: SUBNET.parse().unwrap(),
        policy: policy(text),
        members_talk,
        via: None,
    }
}

fn try_bridge(lab: &Lab, slot: u32, spec: BridgeSpec) -> Result<BridgeNetwork, BridgeError> {
    let record = lab.kiln.reserve_bridge(slot)?;
    lab.host
        .run(|| BridgeNetwork::create(&lab.kiln, record, spec))
        .unwrap()
}

/// A bridge, or a loud word that this kernel has no filter for bridges.
fn bridge(lab: &Lab, test: &str, spec: BridgeSpec) -> Option<BridgeNetwork> {
    match try_bridge(lab, 9, spec) {
        Err(BridgeError::NotInKernel) => {
            eprintln!("SKIPPED: {test}: this kernel has no nftables for bridges");
            None
        }
        made => Some(made.unwrap()),
    }
}

fn member(vm: &str, publish: &[&str]) -> MemberSpec {
    MemberSpec {
        vm: vm.to_owned(),
        card: "eth0".to_owned(),
        owner: TapOwner {
            uid: 10_000,
            gid: 10_000,
        },
        address: None,
        publish: publish
            .iter()
            .map(|text| PublishedPort::new(text).unwrap())
            .collect(),
        bandwidth: Bandwidth::default(),
        hostname: None,
    }
}

fn join(lab: &Lab, lan: &mut BridgeNetwork, spec: MemberSpec) -> (Guest, MemberRecord) {
    let joined = lab.host.run(|| lan.join(spec)).unwrap().unwrap();
    (Guest::on(&joined.namespace, joined.facts), joined.record)
}

#[test]
fn a6_4_members_get_addresses_reach_the_internet_and_not_each_other() {
    if !privileged("bridge") {
        return;
    }
    let lab = Lab::new();
    let Some(mut lan) = bridge(&lab, "bridge", bridge_spec("{}", false)) else {
        return;
    };
    let (one, record) = join(&lab, &mut lan, member("one", &["8080:80"]));
    let (two, _) = join(&lab, &mut lan, member("two", &[]));
    assert_eq!(one.facts.gateway, Ipv4Addr::new(172, 30, 0, 1), "A6.2");
    assert_eq!(one.facts.address, Ipv4Addr::new(172, 30, 0, 2));
    assert_eq!(two.facts.address, Ipv4Addr::new(172, 30, 0, 3));
    assert_ne!(one.facts.mac, two.facts.mac);
    let _inside = server::tcp(&one.inside, one.facts.address, 80);
    let _host = server::tcp(&lab.host, HOST, 8000);
    let _gateway = server::tcp(&lab.host, one.facts.gateway, 8000);
    two.run(|| {
        assert_eq!(
            probe::tcp(at(OTHER, 80)),
            Some(HOST),
            "A6.4: behind the host's address"
        );
        assert!(probe::udp(at(OTHER, 80)) && probe::icmp(OTHER));
        assert_eq!(probe::tcp(at(PRIVATE, 80)), None);
        assert_eq!(probe::tcp(at(METADATA, 80)), None);
        assert_eq!(probe::tcp(at(one.facts.address, 80)), None, "the neighbour");
        assert!(!probe::icmp(one.facts.address));
        assert_eq!(probe::tcp(at(HOST, 8000)), None, "the host");
        assert_eq!(probe::tcp(at(two.facts.gateway, 8000)), None, "the gateway");
        // Judged by where it leads, and that is a private address.
        assert_eq!(probe::tcp(at(HOST, 8080)), None);
    });
    let published = |to| probe::tcp(at(to, 8080)).is_some();
    assert!(lab.internet.run(|| published(HOST)).unwrap());
    assert!(
        lab.host
            .run(|| published(HOST) && published(Ipv4Addr::LOCALHOST))
            .unwrap()
    );
    let port = lab.host_sh(&format!("bridge -d link show dev {}", two.facts.tap));
    assert!(
        port.contains("isolated on") && port.contains("learning off"),
        "{port}"
    );
    // Gone with its address, which is given to the next (A6.2).
    drop(one);
    lab.host.run(|| lan.leave(&record.tap)).unwrap().unwrap();
    assert!(!lab.internet.run(|| published(HOST)).unwrap());
    assert!(!lab.host_sh("ip -br link").contains(record.tap.as_str()));
    let (three, _) = join(&lab, &mut lan, member("three", &[]));
    assert_eq!(three.facts.address, Ipv4Addr::new(172, 30, 0, 2));
    assert!(three.run(|| probe::tcp(at(OTHER, 80))).is_some());
}

#[test]
fn b4_5_a_members_limits_and_ports_are_its_own_and_change_live() {
    if !privileged("bridge_member") {
        return;
    }
    let lab = Lab::new();
    let Some(mut lan) = bridge(&lab, "bridge_member", bridge_spec("{}", false)) else {
        return;
    };
    let ports = |texts: &[&str]| -> Vec<_> {
        let port = |text: &&str| PublishedPort::new(text).unwrap();
        texts.iter().map(port).collect()
    };
    let limits = |download: &str, upload: &str| Bandwidth {
        download: Rate::new(download),
        upload: Rate::new(upload),
    };
    let spec = MemberSpec {
        bandwidth: limits("20mbit", "10mbit"),
        ..member("one", &["8080:80"])
    };
    let (one, record) = join(&lab, &mut lan, spec);
    let (two, other) = join(&lab, &mut lan, member("two", &["8082:80"]));
    let _inside = server::tcp(&one.inside, one.facts.address, 80);
    let _other = server::tcp(&two.inside, two.facts.address, 80);
    let open = |port| {
        lab.internet
            .run(|| probe::tcp(at(HOST, port)))
            .unwrap()
            .is_some()
    };
    assert!(open(8080) && open(8082));
    if std::env::var_os("KILN_LAB").is_some() {
        eprintln!("SKIPPED: bridge_member: an emulated machine is too slow to measure limits");
    } else {
        // What the kernel lets pass at first is what comes in a second.
        let down = rate::down(&lab, &one, 256 << 10, 3 << 20);
        let up = rate::up(&lab, &one, 2 << 20, 3 << 20);
        let free = rate::up(&lab, &two, 2 << 20, 20 << 20);
        eprintln!("down {down:.1} up {up:.1} the other {free:.1} Mbit/s");
        assert!((12.0..24.0).contains(&down), "download {down} of 20");
        assert!((4.0..12.0).contains(&up), "upload {up} of 10");
        assert!(free > 40.0, "without a limit {free}");
    }
    let rates = || lab.host_sh("nft list set bridge kiln port_rate; tc qdisc");
    assert!(rates().contains("limit rate over 1250") && rates().contains("tbf"));

    let mut update = |publish: &[&str], bandwidth| {
        let publish = ports(publish);
        let update = || lan.update_member(&record.tap, &publish, bandwidth);
        lab.host.run(update).unwrap()
    };
    let updated = update(&["8081:80"], limits("30mbit", "5mbit")).unwrap();
    assert_eq!(updated.publish, ports(&["8081:80"]));
    assert!(!open(8080) && open(8081) && open(8082));
    assert!(rates().contains("limit rate over 625") && rates().contains("30Mbit"));
    // The other one's door: refused, and everything is as before.
    let refused = update(&["8082:80"], Bandwidth::default());
    assert!(
        matches!(
            &refused,
            Err(BridgeError::Network(
                kiln_net::NetworkError::PortTaken { .. }
            ))
        ),
        "{refused:?}"
    );
    assert!(open(8081) && open(8082));
    assert!(rates().contains("limit rate over 625") && rates().contains("30Mbit"));
    let updated = update(&[], Bandwidth::default()).unwrap();
    assert_eq!(updated.bandwidth, Bandwidth::default());
    assert!(!open(8081) && open(8082));
    assert!(
        !rates().contains("elements") && !rates().contains("tbf"),
        "{}",
        rates()
    );
    update(&["8080:80"], limits("20mbit", "10mbit")).unwrap();
    drop((one, two));
    for tap in [&record.tap, &other.tap] {
        lab.host.run(|| lan.leave(tap)).unwrap().unwrap();
    }
    assert!(!rates().contains("elements"), "{}", rates());
}

#[test]
fn another_networks_members_are_reached_by_no_policy() {
    if !privileged("bridge_from_elsewhere") {
        return;
    }
    let lab = Lab::new();
    let Some(mut lan) = bridge(&lab, "bridge_from_elsewhere", bridge_spec("{}", false)) else {
        return;
    };
    let (member, _) = join(&lab, &mut lan, member("one", &["8080:80"]));
    let _inside = server::tcp(&member.inside, member.facts.address, 80);
    let network = lab.network(1, r#"{"allowed_cidrs":["172.30.0.0/24"]}"#);
    let sandbox = lab.guest(&network);
    sandbox.run(|| {
        assert_eq!(probe::tcp(at(member.facts.address, 80)), None);
        assert!(!probe::icmp(member.facts.address));
        assert!(
            probe::tcp(at(HOST, 8080)).is_some(),
            "its published port is reached"
        );
    });
}

#[test]
fn members_reach_each_other_where_that_is_wanted() {
    if !privileged("bridge_lan") {
        return;
    }
    let lab = Lab::new();
    let Some(mut lan) = bridge(
        &lab,
        "bridge_lan",
        bridge_spec(r#"{"mode":"deny-all"}"#, true),
    ) else {
        return;
    };
    let (one, _) = join(&lab, &mut lan, member("one", &[]));
    let (two, _) = join(&lab, &mut lan, member("two", &[]));
    let _inside = server::tcp(&one.inside, one.facts.address, 80);
    two.run(|| {
        let seen = probe::tcp(at(one.facts.address, 80));
        assert_eq!(
            seen,
            Some(two.facts.address),
            "directly, by its own address"
        );
        assert!(probe::icmp(one.facts.address));
        assert_eq!(probe::tcp(at(OTHER, 80)), None, "and nobody else");
    });
}

#[test]
fn a7_1_rules_in_order_changed_live_and_sources_pinned() {
    if !privileged("bridge_rules") {
        return;
    }
    let lab = Lab::new();
    let rules = r#"{"default_action":"allow","rules":[
        {"action":"allow","cidrs":["198.51.100.10"],"protocol":"tcp","ports":[80]},
        {"action":"deny","cidrs":["198.51.100.0/24"]}]}"#;
    let Some(mut lan) = bridge(&lab, "bridge_rules", bridge_spec(rules, false)) else {
        return;
    };
    let (guest, _) = join(&lab, &mut lan, member("one", &[]));
    guest.run(|| {
        assert!(probe::tcp(at(OTHER, 80)).is_some(), "the first rule");
        assert_eq!(probe::tcp(at(OTHER, 443)), None, "the second");
        assert!(!probe::icmp(THIRD));
        assert!(probe::tcp(at(SERVER, 443)).is_some(), "the default");
    });
    lab.host
        .run(|| lan.update(policy(r#"{"allowed_cidrs":["198.51.100.11"]}"#)))
        .unwrap()
        .unwrap();
    guest.run(|| {
        assert_eq!(probe::tcp(at(OTHER, 80)), None);
        assert!(probe::icmp(THIRD));
    });
    // A MAC or an address that is not its own: nothing passes, and with its own it does.
    let sink = server::Sink::new(&lab.internet, THIRD, 7777);
    let pretence = Pretence {
        address: "172.30.0.77/24",
        gateway_mac: Some("0a:03:00:00:00:09"),
    };
    assert_pinned(&guest, &sink, THIRD, &pretence);
}

#[test]
fn a7_3_replies_pass_and_the_rules_are_in_a_chain_that_goes_with_the_network() {
    if !privileged("bridge_replies") {
        return;
    }
    let lab = Lab::new();
    // Nobody may be asked anything, but whoever asks gets an answer.
    let nobody = r#"{"allowed_cidrs":["192.0.2.1"]}"#;
    let Some(mut lan) = bridge(&lab, "bridge_replies", bridge_spec(nobody, false)) else {
        return;
    };
    let (guest, _) = join(&lab, &mut lan, member("one", &["8080:80"]));
    let _inside = server::tcp(&guest.inside, guest.facts.address, 80);
    assert!(
        lab.internet
            .run(|| probe::tcp(at(HOST, 8080)))
            .unwrap()
            .is_some()
    );
    assert_eq!(guest.run(|| probe::tcp(at(OTHER, 80))), None);
    let chains = || lab.host_sh("nft list table inet kiln | grep -E 'chain p|jump' || true");
    assert!(chains().contains("\"klnbr0009\" : jump p"), "{}", chains());
    drop(guest);
    lab.host.run(|| lan.close()).unwrap().unwrap();
    assert_eq!(chains(), "");
}

#[test]
fn members_that_may_talk_are_part_of_the_proof() {
    if !privileged("bridge_verify") {
        return;
    }
    let lab = Lab::new();
    let Some(mut lan) = bridge(&lab, "bridge_verify", bridge_spec("{}", true)) else {
        return;
    };
    let (one, record) = join(&lab, &mut lan, member("one", &[]));
    let (_two, _) = join(&lab, &mut lan, member("two", &[]));
    let about = |wanted: &str| {
        let verification = lab.host.run(|| lan.verification(&record)).unwrap().unwrap();
        let probes = verification.probes().iter();
        let probe = probes.clone().find(|it| it.about == wanted).unwrap();
        let observed = one.run(|| ask(&probe.question));
        lab.host
            .run(|| verification.judge(probe, observed))
            .unwrap()
    };
    assert_eq!(about("a member of the network"), Finding::Holds);
    assert_eq!(about("a service of the host"), Finding::Holds);
    // Two who should reach each other and do not are found as well.
    lab.host_sh("nft add table bridge cut; nft add chain bridge cut f '{ type filter hook forward priority 0; policy drop; }'");
    assert_eq!(about("a member of the network"), Finding::Broken);
}

#[test]
fn a6_6_nothing_is_left_and_a_failed_step_is_undone() {
    if !privileged("bridge_close") {
        return;
    }
    let lab = Lab::new();
    let traces = || {
        lab.host_sh(
            "ip -br link | cut -d' ' -f1; ip route | sed 's/ linkdown//'; ip rule; ip neigh; nft list table inet kiln | grep -vE 'packets'
             nft list table bridge kiln 2>/dev/null || true",
        )
    };
    let before = traces();
    let Some(mut lan) = bridge(
        &lab,
        "bridge_close",
        bridge_spec(r#"{"allowed_cidrs":["10.9.0.0/16","1.0.0.0/8"]}"#, false),
    ) else {
        return;
    };
    let (guest, _) = join(&lab, &mut lan, member("one", &["8080:80"]));
    // The same VM cannot join twice, a taken port is refused, an address that is not free too.
    let with = traces();
    let twice = lab.host.run(|| lan.join(member("one", &[]))).unwrap();
    assert!(matches!(twice, Err(BridgeError::Network(_))), "{twice:?}");
    let taken = lab
        .host
        .run(|| lan.join(member("two", &["8080:80"])))
        .unwrap();
    assert!(
        matches!(
            taken,
            Err(BridgeError::Network(NetworkError::PortTaken { .. }))
        ),
        "{taken:?}"
    );
    for address in [
        [172, 30, 0, 2],
        [172, 30, 0, 1],
        [172, 30, 0, 255],
        [172, 30, 1, 5],
    ] {
        let wanted = MemberSpec {
            address: Some(address.into()),
            ..member("two", &[])
        };
        let refused = lab.host.run(|| lan.join(wanted)).unwrap();
        assert!(
            matches!(refused, Err(BridgeError::AddressTaken { .. })),
            "{refused:?}"
        );
    }
    assert_eq!(traces(), with, "refusals change nothing");
    drop(guest);
    lab.host.run(|| lan.close()).unwrap().unwrap();
    assert_eq!(traces(), before);
    // Subnets that are in use or special; what belongs to members.
    for subnet in ["203.0.113.128/25", "198.18.5.0/24", "169.254.0.0/16"] {
        let spec = BridgeSpec {
            subnet: subnet.parse().unwrap(),
            ..bridge_spec("{}", false)
        };
        let refused = try_bridge(&lab, 9, spec);
        assert!(
            matches!(refused, Err(BridgeError::SubnetTaken { .. })),
            "{refused:?}"
        );
    }
    let refused = try_bridge(&lab, 9, bridge_spec(r#"{"publish":["80:80"]}"#, false));
    assert!(
        matches!(refused, Err(BridgeError::PerMember { field: "publish" })),
        "{refused:?}"
    );
    assert_eq!(traces(), before);
}

#[test]
fn a_bridge_is_adopted_after_a_crash_or_swept() {
    if !privileged("bridge_adopt") {
        return;
    }
    let lab = Lab::new();
    let allow = r#"{"allowed_cidrs":["198.51.100.10"]}"#;
    let Some(mut lan) = bridge(&lab, "bridge_adopt", bridge_spec(allow, false)) else {
        return;
    };
    let (guest, record) = join(&lab, &mut lan, member("one", &["8080:80"]));
    let _inside = server::tcp(&guest.inside, guest.facts.address, 80);
    let bridge = lan.detach();
    let stored = serde_json::to_string(&(&bridge, &record)).unwrap();
    let (bridge, record) = serde_json::from_str(&stored).unwrap();
    let second = lab
        .host
        .run(|| HostNetwork::open(options(Identity::standard(), Default::default())))
        .unwrap()
        .unwrap();
    let mut lan = lab
        .host
        .run(|| BridgeNetwork::adopt(&second, bridge, bridge_spec(allow, false), vec![record]))
        .unwrap()
        .unwrap();
    let keep = BTreeSet::from([lan.record().interface, guest.facts.tap.clone()]);
    let swept = lab.host.run(|| second.sweep(&keep)).unwrap().unwrap();
    assert_eq!((swept.links, swept.rules), (0, 0), "{swept:?}");
    assert!(guest.run(|| probe::tcp(at(OTHER, 80))).is_some());
    assert!(
        lab.internet
            .run(|| probe::tcp(at(HOST, 8080)))
            .unwrap()
            .is_some()
    );
    let (other, _) = join(&lab, &mut lan, member("two", &[]));
    assert_eq!(
        other.facts.address,
        Ipv4Addr::new(172, 30, 0, 3),
        "the first one's is taken"
    );
    drop(other);
    drop(lan.detach());
    let swept = lab
        .host
        .run(|| second.sweep(&BTreeSet::new()))
        .unwrap()
        .unwrap();
    assert!(swept.links == 3 && swept.rules > 0, "{swept:?}");
    let left = lab.host_sh("ip -br link; nft list table inet kiln; nft list table bridge kiln");
    for trace in ["klnbr", guest.facts.tap.as_str(), "172.30", "c0009", "8080"] {
        assert!(!left.contains(trace), "{trace}: {left}");
    }
}

#[test]
fn a8_4_a_bridge_leaves_by_the_tunnel_only() {
    if !privileged("bridge_tunnel") {
        return;
    }
    let lab = Lab::new();
    lab.host_sh("ip link add wgx0 mtu 1380 type veth peer name wgpeer; ip address add 10.77.0.2/24 dev wgx0; ip link set wgx0 up");
    let there = lab.internet_netns_path();
    lab.host_sh(&format!("ip link set wgpeer netns {there}"));
    lab.internet_sh("ip address add 10.77.0.1/24 dev wgpeer; ip link set wgpeer up");
    let before = lab.host_sh("ip rule; ip route show table 51820 2>/dev/null || true");
    let tunnel = EgressSpec::new(Tunnel::Existing {
        interface: kiln_net::subnet::InterfaceName::new("wgx0").unwrap(),
    });
    let egress = lab
        .host
        .run(|| Egress::up(&lab.kiln, tunnel))
        .unwrap()
        .unwrap();
    let spec = BridgeSpec {
        via: Some(Arc::clone(&egress)),
        ..bridge_spec("{}", false)
    };
    let Some(mut lan) = bridge(&lab, "bridge_tunnel", spec) else {
        return;
    };
    let (guest, _) = join(&lab, &mut lan, member("one", &["8080:80"]));
    let _inside = server::tcp(&guest.inside, guest.facts.address, 80);
    assert_eq!(guest.facts.mtu, 1380);
    let seen = || guest.run(|| probe::tcp(at(OTHER, 80)));
    assert_eq!(seen(), Some(Ipv4Addr::new(10, 77, 0, 2)));
    assert!(
        lab.host
            .run(|| probe::tcp(at(guest.facts.address, 80)))
            .unwrap()
            .is_some(),
        "the host's own conversations stay"
    );
    lab.host_sh("ip link set wgx0 down");
    assert_eq!(seen(), None, "closed");
    lab.host_sh("ip rule del priority 5182; ip rule del priority 5182; ip route flush table 51820");
    assert_eq!(seen(), None, "the ruleset alone");
    lab.host_sh("nft flush set inet kiln pinned");
    assert_eq!(seen(), Some(HOST), "the control: nothing else stopped it");
    lab.host_sh("nft add element inet kiln pinned '{ \"klnbr0009\" }'");
    drop(guest);
    lab.host.run(|| lan.close()).unwrap().unwrap();
    drop(egress);
    assert_eq!(
        lab.host_sh("ip rule; ip route show table 51820 2>/dev/null || true"),
        before
    );
}
