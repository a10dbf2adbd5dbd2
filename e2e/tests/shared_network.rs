//! Networks that real guests share, and the limits and ports of their own.

#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::panic,
    reason = "a scenario fails by panicking, its helpers too"
)]

mod lab;

use e2e::{Stage, eventually, signal};
use lab::{
    ALLOWED, HOST, Lab, METADATA, OTHER, PRIVATE, ask, inside, output, run_in_guest, sandbox,
    send_in,
};
use rustix::process::Signal;
use serde_json::Value;

fn inspect(stage: &Stage, name: &str) -> Value {
    stage
        .kiln(&["network", "inspect", name, "--json"])
        .expect_code(0)
        .json()
}

fn text(value: &Value) -> String {
    value
        .as_str()
        .unwrap_or_else(|| panic!("{value}"))
        .to_owned()
}

/// What comes back from an address when it is sent a word by UDP.
fn tell(from: &str, to: &str) -> String {
    let told = inside(from, &["tell", to, "hello"]).output().unwrap();
    String::from_utf8(told.stdout).unwrap()
}

/// Every question gets an answer other than "answered".
#[track_caller]
fn assert_closed(stage: &Stage, id: &str, questions: &[String]) {
    for question in questions {
        assert_ne!(ask(stage, id, &[question]), "answered", "{question}");
    }
}

#[test]
fn a1_6_a6_4_sandboxes_share_a_network_by_name_and_outlive_their_daemon_in_it() {
    let Some(lab) = Lab::new("a6_4_sandboxes_share_a_network") else {
        return;
    };
    let stage = lab.stage();
    let create = ["network", "create", "lan", "--members-talk", "--json"];
    let made = stage.kiln(&create).expect_code(0).json();
    assert_eq!(made["subnet"], "172.30.0.0/24", "the first that is free");
    // One bridge for each, by its own name, with the addresses that are asked for.
    let create = [
        "network",
        "create",
        "other",
        "--subnet",
        "10.77.0.0/24",
        "--json",
    ];
    let other = stage.kiln(&create).expect_code(0).json();
    assert_eq!(other["subnet"], "10.77.0.0/24");
    assert_eq!(other["gateway"], "10.77.0.1");
    let links = output(&[
        "ip", "-n", &lab.host, "-o", "link", "show", "type", "bridge",
    ]);
    for network in [&made, &other] {
        assert!(links.contains(&text(&network["interface"])), "{links}");
    }
    stage.kiln(&["network", "rm", "other"]).expect_code(0);
    let one = sandbox(&stage, &["--network=lan", "--publish=8080:80"]);
    let two = sandbox(&stage, &["--network=lan", "--ip=172.30.0.9"]);
    let alone = sandbox(&stage, &["--network=default"]);
    assert_eq!(inspect(&stage, &one)["address"], "172.30.0.2");
    assert_eq!(inspect(&stage, &two)["address"], "172.30.0.9");
    let elsewhere = text(&inspect(&stage, &alone)["address"]);

    // A VMM that its guest took over finds no host: where it is, nothing has an address.
    let all = stage.sandboxes();
    let of_one = all.iter().find(|it| it["id"] == one.as_str()).unwrap();
    let pid = of_one["pid"].to_string();
    for asked in [
        ["-4", "-o", "addr"],
        ["-6", "-o", "addr"],
        ["-o", "route", "show"],
    ] {
        let words = [&["nsenter", "-t", &pid, "-n", "ip"][..], &asked].concat();
        assert_eq!(output(&words), "", "{asked:?}");
    }

    // Members reach each other and the internet; nobody else does, and they nobody else.
    let peers = ["ping:172.30.0.9".to_owned(), format!("tcp:{ALLOWED}:80")];
    let peers = peers.each_ref().map(String::as_str);
    assert_eq!(ask(&stage, &one, &peers), "answered answered");
    assert_eq!(ask(&stage, &two, &["ping:172.30.0.2"]), "answered");
    let closed = [
        format!("ping:{elsewhere}"),
        format!("tcp:{PRIVATE}:80"),
        format!("tcp:{METADATA}:80"),
        format!("tcp:{HOST}:8000"),
    ];
    assert_closed(&stage, &one, &closed);
    let inwards = ["ping:172.30.0.2".to_owned(), "ping:172.30.0.9".to_owned()];
    assert_closed(&stage, &alone, &inwards);
    let proofs = stage.kiln(&["network", "verify", &one, "--json"]);
    let proofs = proofs.expect_code(0).json();
    for about in [
        "a member of the network",
        "another sandbox",
        "a service of the host",
    ] {
        let proof = proofs
            .as_array()
            .unwrap()
            .iter()
            .find(|it| it["about"] == about);
        assert_eq!(proof.unwrap()["outcome"], "holds", "{about}: {proofs}");
    }

    // The daemon dies: its successor finds bridge and members, and what it may do with them.
    stage.kill_daemon();
    assert_eq!(ask(&stage, &one, &peers), "answered answered");
    let adopted = inspect(&stage, "lan");
    assert_eq!(adopted["members"].as_array().unwrap().len(), 2, "{adopted}");
    let refused = stage
        .kiln(&["network", "rm", "lan", "--json"])
        .expect_code(125);
    assert_eq!(refused.error()["code"], "NETWORK_IN_USE");
    let rules = ["--rule=deny 198.51.100.20", "--default-action=allow"];
    let update = [&["network", "update", "lan"][..], &rules].concat();
    stage.kiln(&update).expect_code(0);
    assert_closed(&stage, &one, &[format!("tcp:{OTHER}:80")]);
    assert_eq!(ask(&stage, &one, &peers), "answered answered");
    // Whoever is gone while nobody looks is put out.
    let all = stage.sandboxes();
    let machine = all.iter().find(|it| it["id"] == two.as_str()).unwrap()["pid"].as_u64();
    stage.kill_daemon();
    signal(u32::try_from(machine.unwrap()).unwrap(), Signal::KILL);
    let left = inspect(&stage, "lan");
    assert_eq!(left["members"][0]["sandbox"], one.as_str(), "{left}");
    assert_eq!(left["members"].as_array().unwrap().len(), 1, "{left}");
    let links = output(&["ip", "-n", &lab.host, "-o", "link"]);
    assert_eq!(links.matches(" master ").count(), 1, "{links}");

    stage
        .kiln(&["rm", "--force", &one, &two, &alone])
        .expect_code(0);
    stage.kiln(&["network", "rm", "lan"]).expect_code(0);
    assert_eq!(
        output(&["ip", "-n", &lab.host, "-o", "link"])
            .lines()
            .count(),
        2
    );
    lab.assert_host_is_clean(&stage);
}

#[test]
fn a6_1_a9_what_cannot_be_a_network_is_refused_with_its_code() {
    let Some(lab) = Lab::new("a6_1_a9_what_cannot_be_a_network") else {
        return;
    };
    let stage = lab.stage();
    let wireguard = stage.path("wg.conf");
    std::fs::write(&wireguard, "[Interface]\nPostUp = sh\n").unwrap();
    let wireguard = format!("--wireguard={}", wireguard.display());
    let refused = |words: &[&str]| {
        let ran = stage.kiln(&[&["--json"], words].concat()).expect_code(125);
        text(&ran.error()["code"])
    };
    for (option, code) in [
        ("--subnet=10.0.0.0/31", "INVALID_SUBNET"),
        ("--subnet=203.0.113.0/25", "INVALID_SUBNET"),
        ("--rule=allow icmp any 80", "INVALID_FIREWALL_CONFIG"),
        (&wireguard, "INVALID_WIREGUARD_CONFIG"),
        ("--wireguard-existing=not-there", "WIREGUARD_SETUP_FAILED"),
        (
            "--wireguard-existing=sixteen-letters!",
            "INVALID_INTERFACE_NAME",
        ),
    ] {
        assert_eq!(
            refused(&["network", "create", "lan", option]),
            code,
            "{option}"
        );
    }
    assert_eq!(refused(&["network", "create", "none"]), "INVALID_SPEC");
    assert_eq!(refused(&["network", "rm", "lan"]), "NETWORK_NOT_FOUND");
    let run = ["run", "--network=lan", "--", "true"];
    assert_eq!(refused(&run), "NETWORK_NOT_FOUND");
    // Nothing is left of any of them, and a name is taken once.
    let tiny = ["network", "create", "tiny", "--subnet=172.31.7.5/30"];
    stage.kiln(&tiny).expect_code(0);
    assert_eq!(inspect(&stage, "tiny")["subnet"], "172.31.7.4/30");
    assert_eq!(refused(&["network", "create", "tiny"]), "NAME_TAKEN");
    let overlap = ["network", "create", "other", "--subnet=172.31.0.0/16"];
    assert_eq!(refused(&overlap), "INVALID_SUBNET");
    // One guest fits a /30 beside the gateway.
    let only = sandbox(&stage, &["--network=tiny"]);
    let too_many = [&["run", "--network=tiny"][..], &lab::SMALL, &["--", "true"]].concat();
    assert_eq!(refused(&too_many), "IP_EXHAUSTED");
    stage.kiln(&["rm", "--force", &only]).expect_code(0);
    // A network that nobody is in goes with the daemon and comes back when it is wanted.
    lab.assert_host_is_clean(&stage);
    assert_eq!(inspect(&stage, "tiny")["interface"], Value::Null);
    let again = sandbox(&stage, &["--network=tiny"]);
    assert_eq!(
        ask(&stage, &again, &[&format!("tcp:{ALLOWED}:80")]),
        "answered"
    );
    stage.kiln(&["rm", "--force", &again]).expect_code(0);
    stage.kiln(&["network", "rm", "tiny"]).expect_code(0);
    lab.assert_host_is_clean(&stage);
}

#[test]
fn a8_2_a_network_leaves_by_a_tunnel_that_exists_and_by_nothing_else() {
    let Some(lab) = Lab::new("a8_2_a_network_leaves_by_a_tunnel") else {
        return;
    };
    // Somebody's tunnel: what it carries does not matter to how it is used.
    let (host, world) = (&lab.host, &lab.world);
    lab::ip(&format!(
        "-n {host} link add wgx0 mtu 1380 type veth peer name wgx0 netns {world}"
    ));
    lab::ip(&format!("-n {host} addr add 10.77.0.2/24 dev wgx0"));
    lab::ip(&format!("-n {world} addr add 10.77.0.1/24 dev wgx0"));
    for namespace in [host, world] {
        lab::ip(&format!("-n {namespace} link set wgx0 up"));
    }
    let stage = lab.stage();
    let create = [
        "network",
        "create",
        "vpn",
        "--wireguard-existing=wgx0",
        "--json",
    ];
    let made = stage.kiln(&create).expect_code(0).json();
    assert_eq!(made["wireguard"]["table"], 51820, "{made}");
    assert_eq!(made["wireguard"]["fail_closed"], true);
    let id = sandbox(&stage, &["--network=vpn"]);
    assert_eq!(inspect(&stage, &id)["mtu"], 1380);
    // The way back leads only through the tunnel, too.
    lab::ip(&format!("-n {world} route add blackhole {HOST}"));
    let question = format!("tcp:{ALLOWED}:80");
    assert_eq!(ask(&stage, &id, &[&question]), "answered");
    lab::ip(&format!("-n {world} route del blackhole {HOST}"));
    lab::ip(&format!("-n {host} link set wgx0 down"));
    assert_ne!(ask(&stage, &id, &[&question]), "answered", "closed");
    // Also for the daemon that comes after one that died.
    stage.kill_daemon();
    assert_ne!(ask(&stage, &id, &[&question]), "answered", "closed");
    lab::ip(&format!("-n {host} link set wgx0 up"));
    eventually("the tunnel is used again", || {
        ask(&stage, &id, &[&question]) == "answered"
    });

    // One of our own: its key is in one file, which nobody else reads, while it is there.
    let key = "yAnz5TF+lXXJte14tji3zlMNq+hd2rYUIgJBgB3fBmk=";
    let text = format!(
        "[Interface]\nPrivateKey = {key}\nAddress = 10.78.0.2/32\n\
         [Peer]\nPublicKey = {key}\nAllowedIPs = 0.0.0.0/0\n"
    );
    let file = stage.path("wg.conf");
    std::fs::write(&file, text).unwrap();
    let option = format!("--wireguard={}", file.display());
    let ran = stage.kiln(&["network", "create", "own", &option, "--json"]);
    let kept = stage.data().join("networks");
    if ran.code == Some(0) {
        assert_eq!(e2e::names_in(&kept), ["own.conf"]);
        stage.kiln(&["network", "rm", "own"]).expect_code(0);
    } else {
        e2e::skip("a8_1, a tunnel of our own", "this kernel has no WireGuard");
        let error = ran.error();
        assert_eq!(error["code"], "WIREGUARD_SETUP_FAILED", "{error}");
        assert!(!error.to_string().contains(key), "{error}");
    }
    assert!(e2e::names_in(&kept).is_empty(), "no key is left");
    let log = std::fs::read_to_string(stage.data().join("daemon.log")).unwrap();
    assert!(!log.contains(key), "{log}");

    stage.kiln(&["rm", "--force", &id]).expect_code(0);
    stage.kiln(&["network", "rm", "vpn"]).expect_code(0);
    let rules = output(&["ip", "-n", host, "rule"]);
    assert!(!rules.contains("51820"), "{rules}");
    assert!(
        output(&["ip", "-n", host, "-o", "link"]).contains("wgx0"),
        "theirs stays"
    );
    lab::ip(&format!("-n {host} link del wgx0"));
    lab.assert_host_is_clean(&stage);
}

#[test]
fn b4_4_b4_5_udp_is_published_and_bandwidth_is_capped_both_ways() {
    let Some(mut lab) = Lab::new("b4_4_b4_5_udp_and_bandwidth") else {
        return;
    };
    let world = lab.world.clone();
    lab.serve(&world, &["stream", "7000"]);
    let stage = lab.stage();
    let id = sandbox(
        &stage,
        &[
            "--network=default",
            "--publish=5300:5353/udp",
            "--bandwidth=8mbit/4mbit",
        ],
    );
    send_in(&stage, &id);
    run_in_guest(&stage, &id, "echo 5353");
    for (from, at) in [
        (&lab.world, "203.0.113.2:5300"),
        (&lab.host, "203.0.113.2:5300"),
        (&lab.host, "127.0.0.1:5300"),
    ] {
        eventually("the published UDP port answers", || {
            tell(from, at) == "hello"
        });
    }
    let rate = |direction: &str| -> u64 {
        let of = format!("{ALLOWED}:7000");
        let words = ["exec", &id, "--", "/world", "rate", &of, direction, "4"];
        let ran = stage.kiln(&words).expect_code(0);
        ran.text().trim().parse().unwrap()
    };
    // The burst of the first moment is above; half is what a busy emulated guest may lose.
    for (direction, kbit) in [("down", 8000), ("up", 4000)] {
        let measured = rate(direction);
        assert!(
            (kbit / 2..kbit * 5 / 4).contains(&measured),
            "{direction}: {measured} of {kbit} kbit/s"
        );
    }
    // Without the limits the same guest is faster: they are what was measured.
    let update = ["network", "update", &id, "--publish=5301:5353/udp"];
    stage.kiln(&update).expect_code(0);
    for (direction, kbit) in [("down", 8000), ("up", 4000)] {
        let measured = rate(direction);
        assert!(measured > kbit * 5 / 4, "{direction}: {measured} kbit/s");
    }
    assert_eq!(
        tell(&lab.world, "203.0.113.2:5300"),
        "",
        "no longer published"
    );
    assert_eq!(tell(&lab.world, "203.0.113.2:5301"), "hello");
    stage.kiln(&["rm", "--force", &id]).expect_code(0);
    lab.assert_host_is_clean(&stage);
}

#[test]
fn b4_4_b4_5_a_members_ports_and_limits_change_while_it_runs() {
    let Some(lab) = Lab::new("b4_4_b4_5_a_members_ports_and_limits") else {
        return;
    };
    let stage = lab.stage();
    stage.kiln(&["network", "create", "lan"]).expect_code(0);
    let id = sandbox(
        &stage,
        &[
            "--network=lan",
            "--publish=5300:5353/udp",
            "--bandwidth=8mbit/4mbit",
        ],
    );
    send_in(&stage, &id);
    run_in_guest(&stage, &id, "echo 5353");
    let answers = |port: u16| tell(&lab.world, &format!("203.0.113.2:{port}")) == "hello";
    eventually("the published UDP port answers", || answers(5300));
    let limits = || {
        let queues = ["ip", "netns", "exec", &lab.host, "tc", "qdisc"];
        let set = "nft list set bridge".split(' ');
        let tables = output(&["ip", "netns", "exec", &lab.host, "nft", "list", "tables"]);
        let table = tables
            .lines()
            .find_map(|line| line.strip_prefix("table bridge "));
        let nft = ["ip", "netns", "exec", &lab.host].into_iter().chain(set);
        let nft: Vec<&str> = nft.chain([table.unwrap(), "port_rate"]).collect();
        (output(&queues), output(&nft))
    };
    let (queues, rates) = limits();
    assert!(queues.contains("rate 8Mbit"), "{queues}");
    assert!(rates.contains("limit rate over 500000 bytes"), "{rates}");
    // Rules are the network's; what is told of them is refused before anything changes.
    let update = |words: &[&str]| {
        let all = [&["--json", "network", "update", &id][..], words].concat();
        stage.kiln(&all)
    };
    let refused = update(&["--deny-cidr=192.0.2.0/24", "--publish=5302:5353/udp"]);
    let error = refused.expect_code(125).error();
    assert_eq!(error["code"], "INVALID_FIREWALL_CONFIG", "{error}");
    assert!(
        text(&error["message"]).contains("network update lan"),
        "{error}"
    );
    assert!(answers(5300));
    // And these are no network's.
    let lan = stage.kiln(&["--json", "network", "update", "lan", "--bandwidth=1mbit"]);
    let error = lan.expect_code(125).error();
    assert!(
        text(&error["message"]).contains("for each sandbox"),
        "{error}"
    );
    update(&["--publish=5301:5353/udp", "--bandwidth=2mbit"]).expect_code(0);
    eventually("the other port answers", || answers(5301));
    assert!(!answers(5300), "no longer published");
    // The next daemon finds it so, and changes it as well.
    stage.kill_daemon();
    let policy = inspect(&stage, &id)["policy"].clone();
    assert_eq!(policy["publish"][0], "5301:5353/udp", "{policy}");
    assert!(answers(5301));
    let (queues, rates) = limits();
    assert!(queues.contains("rate 2Mbit"), "{queues}");
    assert!(rates.contains("limit rate over 250000 bytes"), "{rates}");
    update(&["--network-policy=allow-all"]).expect_code(125);
    update(&["--publish=5302:5353/udp"]).expect_code(0);
    eventually("the last port answers", || answers(5302));
    let (queues, rates) = limits();
    assert!(
        !queues.contains("tbf") && !rates.contains("elements"),
        "{queues}{rates}"
    );
    stage.kiln(&["rm", "--force", &id]).expect_code(0);
    stage.kiln(&["network", "rm", "lan"]).expect_code(0);
    lab.assert_host_is_clean(&stage);
}
