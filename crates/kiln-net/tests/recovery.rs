//! Nothing is left behind, everything is found again, and nobody else's things are touched.
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
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use kiln_net::dns::DnsOptions;
use kiln_net::{HostError, HostNetwork, Identity, NetNamespace, Network, NetworkError};
use support::{HOST, Lab, OTHER, THIRD, at, options, privileged, probe, server, spec};

/// Everything of ours on the host, as other tools see it.
fn traces(lab: &Lab) -> String {
    lab.host_sh(
        "ip -o link | grep -o 'k[a-z0-9]*-[a-z0-9]*' || true
         ip route | grep 'proto 83' || true; ip rule | grep 'proto 83' || true
         nft list table inet kiln | grep -E 'elements|kln|chain p|set p' | grep -vE 'kln\\*|\"kln\"' || true",
    )
}

/// Deleting a namespace is the kernel's work, some time later.
fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !holds() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

const CUSTOM: &str = r#"{"allowed_cidrs":["198.51.100.10","203.0.113.0/28"],"allowed_domains":["a.example"],"publish":["8080:80"]}"#;

#[test]
fn a6_6_closing_leaves_nothing() {
    if !privileged("closing") {
        return;
    }
    let lab = Lab::new();
    let before = traces(&lab);
    let networks: Vec<_> = [CUSTOM, "{}", r#"{"mode":"deny-all"}"#]
        .iter()
        .zip(1..)
        .map(|(p, slot)| lab.network(slot, p))
        .collect();
    let guest = lab.guest(&networks[1]);
    assert!(guest.run(|| probe::tcp(at(OTHER, 80))).is_some());
    assert_ne!(traces(&lab), before);
    drop(guest);
    for network in networks {
        network.close().unwrap();
    }
    eventually("all traces are gone", || traces(&lab) == before);
}

#[test]
fn two_hundred_networks_come_and_go() {
    if !privileged("two_hundred") {
        return;
    }
    let lab = Lab::new();
    let before = traces(&lab);
    let networks: Vec<_> = (0..200)
        .map(|slot| {
            lab.network(
                slot,
                if slot % 4 == 0 {
                    r#"{"allowed_cidrs":["198.51.100.10"]}"#
                } else {
                    "{}"
                },
            )
        })
        .collect();
    assert_eq!(lab.host_sh("ip -o link | grep -c kln").trim(), "200");
    let guest = lab.guest(&networks[100]);
    guest.run(|| {
        assert!(probe::tcp(at(OTHER, 80)).is_some());
        assert_eq!(probe::tcp(at(THIRD, 80)), None);
    });
    drop(guest);
    drop(networks);
    eventually("all traces are gone", || traces(&lab) == before);
}

#[test]
fn a_slot_is_usable_again_at_once() {
    if !privileged("slot_reuse") {
        return;
    }
    let lab = Lab::new();
    let first = lab.network(7, CUSTOM);
    // Somebody still holds the namespace, so the old interface is still there.
    let held = first.namespace().try_clone().unwrap();
    first.close().unwrap();
    let second = lab.network(7, CUSTOM);
    assert!(
        lab.guest(&second)
            .run(|| probe::tcp(at(OTHER, 80)))
            .is_some()
    );
    drop(held);
}

#[test]
fn a_failed_creation_leaves_nothing() {
    if !privileged("failed_creation") {
        return;
    }
    let lab = Lab::new();
    let before = traces(&lab);
    // The route of the slot is taken: the last step on the host fails.
    lab.host_sh("ip route add 198.18.1.5/32 dev up0");
    let refused = lab.try_network(5, CUSTOM);
    assert!(
        matches!(refused, Err(NetworkError::Netlink(_))),
        "{refused:?}"
    );
    eventually("all traces are gone", || traces(&lab) == before);
    assert!(
        lab.host_sh("ip route").contains("198.18.1.5 dev up0"),
        "not ours to remove"
    );
    assert!(matches!(
        lab.try_network(200_000, "{}"),
        Err(NetworkError::Slot { .. })
    ));
}

/// What a second process does after the first one's `kill -9`.
fn reopened(lab: &Lab) -> HostNetwork {
    let options = options(Identity::standard(), DnsOptions::default());
    lab.host
        .run(|| HostNetwork::open(options))
        .unwrap()
        .unwrap()
}

#[test]
fn after_a_crash_the_living_are_adopted_and_the_dead_removed() {
    if !privileged("adoption") {
        return;
    }
    let lab = Lab::new();
    let (alive, dead) = (
        lab.network(1, CUSTOM),
        lab.network(
            2,
            &CUSTOM
                .replace("8080", "8081")
                .replace("113.0/28", "113.0/27"),
        ),
    );
    let guest = lab.guest(&alive);
    let _inside = server::tcp(&guest.inside, guest.facts.address, 80);
    let mut stream = guest.run(|| std::net::TcpStream::connect(at(OTHER, 80)).unwrap());
    let namespace = alive.namespace().try_clone().unwrap();
    let dead_namespace = dead.namespace().try_clone().unwrap();
    let own = |network: &Network| {
        let interface = network.record().interface;
        lab.host_sh(&format!(
            "nft list map inet kiln pol_custom | grep -o '\"{interface}\" : jump p[0-9a-f]*'"
        ))
    };
    let (rules, of_dead) = (own(&alive), own(&dead));
    let chain_of = |rules: &str| rules.trim().rsplit(' ').next().unwrap().to_owned();
    // As after kill -9: nothing is taken down, nobody holds the guards.
    let (record, _) = (alive.detach(), dead.detach());
    let json = serde_json::to_string(&record).unwrap();
    let record = serde_json::from_str(&json).unwrap();

    let second = reopened(&lab);
    let mut adopted = lab
        .host
        .run(|| Network::adopt(&second, record, spec(1, CUSTOM), namespace))
        .unwrap()
        .unwrap();
    assert_eq!(own(&adopted), rules, "rules in force are kept");
    let keep = BTreeSet::from([adopted.record().interface]);
    let swept = lab.host.run(|| second.sweep(&keep)).unwrap().unwrap();
    assert!(swept.links == 1 && swept.rules > 0, "{swept:?}");
    let left = lab.host_sh("nft list table inet kiln; ip -o link");
    let (kept, swept) = (chain_of(&rules), chain_of(&of_dead));
    assert!(
        !left.contains(&swept) && !left.contains("kln0002"),
        "{left}"
    );
    assert!(left.contains(&kept) && left.contains("kln0001"));
    drop(dead_namespace);

    stream.write_all(b"still here").unwrap();
    guest.run(|| {
        assert!(probe::tcp(at(OTHER, 80)).is_some());
        assert_eq!(probe::tcp(at(THIRD, 80)), None);
    });
    assert!(
        lab.internet
            .run(|| probe::tcp(at(HOST, 8080)))
            .unwrap()
            .is_some()
    );
    lab.update(&mut adopted, "{}");
    assert!(
        guest.run(|| probe::tcp(at(THIRD, 80))).is_some(),
        "the adopted network takes updates"
    );
    adopted.close().unwrap();
    assert!(guest.run(|| probe::tcp(at(OTHER, 80))).is_none());
}

#[test]
fn rules_that_are_missing_are_restored_when_adopting() {
    if !privileged("restored_rules") {
        return;
    }
    let lab = Lab::new();
    let network = lab.network(1, CUSTOM);
    let guest = lab.guest(&network);
    let namespace = network.namespace().try_clone().unwrap();
    let record = network.detach();
    // nftables.service was restarted meanwhile.
    lab.host_sh("nft flush ruleset");
    let second = reopened(&lab);
    assert!(
        guest.run(|| probe::tcp(at(OTHER, 80))).is_none(),
        "an unknown interface is closed"
    );
    let _adopted = lab
        .host
        .run(|| Network::adopt(&second, record, spec(1, CUSTOM), namespace))
        .unwrap()
        .unwrap();
    guest.run(|| {
        assert!(probe::tcp(at(OTHER, 80)).is_some());
        assert_eq!(probe::tcp(at(THIRD, 80)), None);
    });
}

#[test]
fn what_is_loaded_can_be_saved_and_loaded_by_nft() {
    if !privileged("saved") {
        return;
    }
    // People save everything that is loaded, ours too, and load it at boot.
    let lab = Lab::new();
    let policies = [
        CUSTOM,
        "{}",
        r#"{"private_networks":true}"#,
        r#"{"rules":[{"action":"deny","cidrs":["9.0.0.0/8","11.0.0.0/8"],"protocol":"udp","ports":["1-9"]}],
            "allowed_domains":["*"],"verify_hosts":true}"#,
    ];
    let all: Vec<_> = policies
        .iter()
        .zip(1..)
        .map(|(text, slot)| lab.network(slot, text))
        .collect();
    let saved = lab.host_sh("nft list ruleset");
    let inside = all[0].namespace().run(|| support::sh("nft list ruleset"));
    for saved in [saved, inside.unwrap()] {
        let load = || {
            let loading = Command::new("nft")
                .args(["-f", "-"])
                .stdin(Stdio::piped())
                .spawn();
            let mut loading = loading.unwrap();
            let mut input = loading.stdin.take().unwrap();
            input.write_all(saved.as_bytes()).unwrap();
            drop(input);
            assert!(loading.wait().unwrap().success(), "{saved}");
            support::sh("nft list ruleset")
        };
        let (_namespace, loaded) = NetNamespace::create(load).unwrap();
        assert_eq!(loaded, saved);
    }
}

#[test]
fn networks_that_share_rules_come_and_go_at_once() {
    if !privileged("shared_rules") {
        return;
    }
    let lab = Lab::new();
    let before = traces(&lab);
    let shared =
        r#"{"allowed_cidrs":["198.51.100.10","203.0.113.0/28"],"allowed_domains":["a.example"]}"#;
    std::thread::scope(|scope| {
        for slot in 0..4 {
            let lab = &lab;
            scope.spawn(move || {
                for round in 0..12 {
                    let mut network = lab.network(slot, shared);
                    if round % 3 == 0 {
                        lab.update(&mut network, "{}");
                        lab.update(&mut network, shared);
                    }
                    network.close().unwrap();
                }
            });
        }
    });
    eventually("all traces are gone", || traces(&lab) == before);
}

#[test]
fn foreign_links_tables_routes_and_rules_are_not_touched() {
    if !privileged("foreign") {
        return;
    }
    let lab = Lab::new();
    let foreign = "ip link add kln0042-zzz type veth peer name zzz; ip link set kln0042-zzz up
         ip link add docker0 type bridge; ip address add 172.17.0.1/16 dev docker0; ip link set docker0 up
         ip route add 10.50.0.0/16 via 203.0.113.2; ip rule add from 10.60.0.0/16 lookup 100 protocol 83
         nft add table ip filter
         nft add chain ip filter FORWARD '{ type filter hook forward priority 0; policy accept; }'
         nft add rule ip filter FORWARD counter
         nft add table inet kilnx";
    lab.host_sh(foreign);
    let picture = || {
        lab.host_sh("{ ip -o link show kln0042-zzz; ip -o link show docker0; ip address show docker0; } | sed 's/<[^>]*>//; s/state [A-Z]*//; s/ tentative//'; ip route show 10.50.0.0/16; ip rule; nft -s list table ip filter; nft list table inet kilnx")
    };
    let before = picture();
    let network = lab.network(1, CUSTOM);
    drop(network.detach());
    lab.host
        .run(|| lab.kiln.sweep(&BTreeSet::new()))
        .unwrap()
        .unwrap();
    assert_eq!(picture(), before);
    lab.host
        .run(|| lab.kiln.clone().uninstall())
        .unwrap()
        .unwrap();
    assert_eq!(picture(), before);
    assert!(
        !lab.host_sh("nft list tables; ip address show lo")
            .contains("inet kiln\n")
    );
    assert!(!lab.host_sh("ip address show lo").contains("198.18.0.1"));
}

#[test]
fn two_data_directories_on_one_host_do_not_collide() {
    if !privileged("two_directories") {
        return;
    }
    let lab = Lab::new();
    let identity = Identity::of_directory(Path::new("/srv/other"));
    let second = lab
        .host
        .run(|| HostNetwork::open(options(identity.clone(), DnsOptions::default())))
        .unwrap()
        .unwrap();
    assert!(
        !second.pool().overlaps(lab.kiln.pool()),
        "the first one's addresses are taken"
    );
    let one = lab.network(1, CUSTOM);
    let two = lab
        .host
        .run(|| support::create(&second, 1, spec(1, "{}")))
        .unwrap()
        .unwrap();
    assert_ne!(one.address(), two.address());
    let (guest_one, guest_two) = (lab.guest(&one), lab.guest(&two));
    let _inside = server::tcp(&guest_one.inside, guest_one.facts.address, 80);
    let works = || guest_one.run(|| probe::tcp(at(OTHER, 80))).is_some();
    assert!(works() && guest_two.run(|| probe::tcp(at(THIRD, 80))).is_some());
    assert!(
        guest_two
            .run(|| probe::tcp(at(one.address(), 80)))
            .is_none(),
        "isolated across"
    );
    drop(two.detach());
    lab.host
        .run(|| second.sweep(&BTreeSet::new()))
        .unwrap()
        .unwrap();
    assert!(works(), "the other one's sweep is none of ours");
    lab.host.run(|| second.uninstall()).unwrap().unwrap();
    assert!(works());
    assert!(!lab.host_sh("nft list tables").contains(identity.table()));
}

#[test]
fn a_table_of_somebody_else_and_a_taken_pool_are_refused() {
    if !privileged("taken") {
        return;
    }
    let lab = Lab::new();
    let identity = Identity::of_directory(Path::new("/srv/third"));
    lab.host_sh(&format!("nft add table inet {}", identity.table()));
    let refused = lab
        .host
        .run(|| HostNetwork::open(options(identity, DnsOptions::default())))
        .unwrap();
    assert!(
        matches!(refused, Err(HostError::TableTaken { .. })),
        "{refused:?}"
    );
    let mut wanted = options(
        Identity::of_directory(Path::new("/srv/fourth")),
        DnsOptions::default(),
    );
    wanted.pool = Some("203.0.112.0/20".parse().unwrap());
    let refused = lab.host.run(|| HostNetwork::open(wanted)).unwrap();
    assert!(
        matches!(refused, Err(HostError::PoolTaken { .. })),
        "{refused:?}"
    );
}

#[test]
fn firewalls_in_the_way_are_named_and_let_our_interfaces_through() {
    if !privileged("obstacles") || !support::has("obstacles", "iptables") {
        return;
    }
    let lab = Lab::new();
    assert_eq!(lab.kiln.obstacles().unwrap(), []);
    let network = lab.network(
        1,
        r#"{"allowed_cidrs":["198.51.100.10"],"publish":["8080:80"]}"#,
    );
    let guest = lab.guest(&network);
    let _inside = server::tcp(&guest.inside, guest.facts.address, 80);
    let works = || {
        let out = guest.run(|| probe::tcp(at(OTHER, 80))).is_some();
        let published = lab
            .internet
            .run(|| probe::tcp(at(HOST, 8080)))
            .unwrap()
            .is_some();
        (out, published)
    };
    assert_eq!(works(), (true, true));
    // As Docker leaves it, by its own means; ufw does the same to INPUT.
    let docker =
        "iptables -P FORWARD DROP; iptables -N DOCKER-USER; iptables -A DOCKER-USER -j RETURN
         iptables -A FORWARD -j DOCKER-USER; iptables -P INPUT DROP";
    lab.host_sh(docker);
    let theirs = lab.host_sh("iptables -S");
    assert_eq!(works(), (false, false));
    let found = lab.kiln.obstacles().unwrap();
    let chains: Vec<&str> = found
        .iter()
        .map(|obstacle| obstacle.chain.as_str())
        .collect();
    assert_eq!(chains.len(), 2, "{found:?}");
    assert!(chains.contains(&"ip filter FORWARD") && chains.contains(&"ip filter INPUT"));
    assert_eq!(lab.kiln.clear_the_way().unwrap(), 3);
    assert_eq!(lab.kiln.clear_the_way().unwrap(), 0, "once is enough");
    assert_eq!(lab.kiln.obstacles().unwrap(), []);
    assert_eq!(works(), (true, true));
    // Their drop is passed by our interfaces only, and our own rules still judge.
    assert_eq!(guest.run(|| probe::tcp(at(THIRD, 80))), None);
    let with = lab.host_sh("iptables -S");
    assert!(
        with.contains("-A DOCKER-USER -i kln+") && with.contains("-A INPUT -i kln+"),
        "{with}"
    );
    lab.kiln.withdraw().unwrap();
    assert_eq!(
        lab.host_sh("iptables -S"),
        theirs,
        "only ours is taken away"
    );
    assert_eq!(works(), (false, false));
    // firewalld keeps a table of its own, which is told by its own means.
    lab.host_sh("nft add table inet firewalld
        nft add chain inet firewalld filter_FORWARD '{ type filter hook forward priority 10; policy accept; }'");
    let found = lab.kiln.obstacles().unwrap();
    let zone = found
        .iter()
        .find(|obstacle| obstacle.chain == "inet firewalld filter_FORWARD");
    assert!(
        zone.unwrap()
            .hint
            .as_ref()
            .unwrap()
            .contains("--add-interface=kln+")
    );
}

#[test]
fn a_closed_networks_flows_are_forgotten_and_no_others() {
    if !privileged("flows_forgotten") {
        return;
    }
    let lab = Lab::new();
    let one = lab.network(1, r#"{"publish":["8080:80"]}"#);
    let two = lab.network(2, "{}");
    let (guest, other) = (lab.guest(&one), lab.guest(&two));
    let _inside = server::tcp(&guest.inside, guest.facts.address, 80);
    let flows = |address: std::net::Ipv4Addr| {
        let listed = lab.host_sh("cat /proc/net/nf_conntrack");
        listed
            .lines()
            .filter(|line| line.contains(&format!("={address} ")))
            .count()
    };
    assert!(guest.run(|| probe::tcp(at(OTHER, 80))).is_some());
    assert!(other.run(|| probe::tcp(at(OTHER, 80))).is_some());
    assert!(
        lab.internet
            .run(|| probe::tcp(at(HOST, 8080)))
            .unwrap()
            .is_some()
    );
    let (first, second) = (one.address(), two.address());
    assert!(flows(first) >= 2, "out and in");
    let kept = flows(second);
    assert!(kept >= 1);
    one.close().unwrap();
    assert_eq!((flows(first), flows(second)), (0, kept));
}

#[test]
fn a_policy_that_was_stored_but_not_applied_is_applied_when_adopting() {
    if !privileged("stored_policy") {
        return;
    }
    let lab = Lab::new();
    let network = lab.network(1, CUSTOM);
    let guest = lab.guest(&network);
    let _inside = server::tcp(&guest.inside, guest.facts.address, 80);
    let namespace = network.namespace().try_clone().unwrap();
    let record = network.detach();
    let second = reopened(&lab);
    // Other rules and limits: the process died between storing and applying.
    let wanted = CUSTOM.replace("51.100.10\"", "51.100.11\"").replace(
        r#","publish""#,
        r#","bandwidth":{"download":"50mbit"},"publish""#,
    );
    let mut stream = guest.run(|| std::net::TcpStream::connect(at(OTHER, 80)).unwrap());
    let adopted = lab
        .host
        .run(|| Network::adopt(&second, record, spec(1, &wanted), namespace))
        .unwrap()
        .unwrap();
    assert!(
        lab.internet
            .run(|| probe::tcp(at(HOST, 8080)))
            .unwrap()
            .is_some()
    );
    guest.run(|| {
        assert!(probe::tcp(at(THIRD, 80)).is_some());
        assert_eq!(probe::tcp(at(OTHER, 80)), None);
    });
    use std::io::Read;
    stream
        .set_read_timeout(Some(Duration::from_millis(500)))
        .unwrap();
    let mut banner = [0; 64];
    let _ = stream.read(&mut banner);
    let _ = stream.write_all(b"ping");
    assert!(
        stream.read(&mut banner).is_err(),
        "what runs is judged again, too"
    );
    let limits = adopted
        .namespace()
        .run(|| support::sh("tc qdisc show dev tap0"))
        .unwrap();
    assert!(limits.contains("50Mbit"), "{limits}");
    adopted.close().unwrap();
}

#[test]
fn rules_come_back_after_somebody_flushed_them_all() {
    if !privileged("flushed") {
        return;
    }
    let lab = Lab::new();
    let mut network = lab.network(1, CUSTOM);
    let guest = lab.guest(&network);
    let _inside = server::tcp(&guest.inside, guest.facts.address, 80);
    let mut ensure = || {
        let ensured = || (lab.kiln.ensure().unwrap(), network.ensure().unwrap());
        lab.host.run(ensured).unwrap()
    };
    assert_eq!(ensure(), (false, false), "all is there");
    lab.host_sh("nft flush ruleset; ip address flush dev lo");
    assert_eq!(ensure(), (true, true));
    assert_eq!(ensure(), (false, false));
    guest.run(|| {
        assert!(probe::tcp(at(OTHER, 80)).is_some());
        assert_eq!(probe::tcp(at(THIRD, 80)), None);
    });
    let published = || {
        lab.internet
            .run(|| probe::tcp(at(HOST, 8080)))
            .unwrap()
            .is_some()
    };
    assert!(published());
    // Others with the same rules: one is made before the first is restored.
    lab.host_sh("nft flush ruleset");
    lab.host.run(|| lab.kiln.ensure()).unwrap().unwrap();
    let unpublished = CUSTOM.replace(r#","publish":["8080:80"]"#, "");
    let other = lab.network(2, &unpublished);
    assert_eq!(ensure(), (false, true));
    for guest in [&guest, &lab.guest(&other)] {
        assert!(guest.run(|| probe::tcp(at(OTHER, 80))).is_some());
    }
    other.close().unwrap();
    assert!(guest.run(|| probe::tcp(at(OTHER, 80))).is_some());
    lab.host_sh("nft flush map inet kiln pub");
    assert_eq!(
        (ensure(), published()),
        ((false, true), true),
        "one element is enough"
    );
    network.close().unwrap();
}

/// One goes while the others run: its link, and rules of which the link is gone already.
#[test]
fn one_trace_goes_and_all_others_stay() {
    if !privileged("traces") {
        return;
    }
    let lab = Lab::new();
    let before = traces(&lab);
    let alive = lab.network(1, "{}");
    let dead = lab.network(2, CUSTOM);
    let gone = lab.network(3, "{}");
    // The link lives as long as its other end's namespace does.
    let held = dead.namespace().try_clone().unwrap();
    let (dead, gone) = (dead.detach(), gone.detach());
    let links = || lab.host_sh("ip -o link");
    eventually("its namespace is gone", || {
        !links().contains(gone.interface.as_str())
    });
    lab.host_sh("ip link add kln9999-zzz type bridge");
    let all = lab.host.run(|| lab.kiln.traces()).unwrap().unwrap();
    let told: Vec<_> = all
        .iter()
        .map(|it| (it.interface.to_string(), it.is_link))
        .collect();
    for (interface, is_link) in [
        (alive.record().interface, true),
        (dead.interface.clone(), true),
        (gone.interface.clone(), false),
    ] {
        assert!(told.contains(&(interface.to_string(), is_link)), "{told:?}");
    }
    assert_eq!(told.len(), 3, "a stranger's is not told of: {told:?}");
    let guest = lab.guest(&alive);
    for trace in &all {
        if trace.interface == dead.interface || trace.interface == gone.interface {
            let removed = lab.host.run(|| lab.kiln.remove_trace(trace));
            removed.unwrap().unwrap();
        }
    }
    let left = lab.host_sh("nft list table inet kiln; ip -o link");
    for interface in [&dead.interface, &gone.interface] {
        assert!(!left.contains(interface.as_str()), "{left}");
    }
    assert!(left.contains("kln9999-zzz"), "a stranger's stays");
    assert!(guest.run(|| probe::tcp(at(OTHER, 80))).is_some());
    drop((guest, held));
    alive.close().unwrap();
    lab.host_sh("ip link del kln9999-zzz");
    eventually("all traces are gone", || traces(&lab) == before);
}
