//! Networks of real guests, on a host of their own: see [`lab`].

#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::panic,
    reason = "a scenario fails by panicking, its helpers too"
)]

mod lab;

use e2e::{eventually, signal};
use lab::{
    ALLOWED, GATEWAY, HOST, Lab, METADATA, OTHER, PRIVATE, RESOLVER, SMALL, ask, output, sandbox,
    serve_in_guest,
};
use rustix::process::Signal;

#[test]
fn b3_5_names_resolve_and_the_internet_is_all_that_is_reached() {
    let Some(lab) = Lab::new("b3_5_names_resolve") else {
        return;
    };
    let stage = lab.stage();
    let id = sandbox(&stage, &["--network=default"]);
    let internet = format!("tcp:{ALLOWED}:80");
    let ping = format!("ping:{ALLOWED}");
    let name = format!("name:{GATEWAY}:allowed.example");
    let private = format!("tcp:{PRIVATE}:80");
    let metadata = format!("tcp:{METADATA}:80");
    let service = format!("tcp:{HOST}:8000");
    let gateway = format!("tcp:{GATEWAY}:8000");
    let open = [internet.as_str(), &ping, &name];
    let closed = [private.as_str(), &metadata, &service, &gateway];
    assert_eq!(ask(&stage, &id, &open), "answered answered answered");
    for question in closed {
        assert_ne!(ask(&stage, &id, &[question]), "answered", "{question}");
    }
    // The image's own programs resolve and connect as well.
    let curl = ["exec", &id, "--", "getent", "hosts", "allowed.example"];
    assert!(stage.kiln(&curl).expect_code(0).text().contains(ALLOWED));
    // The same probe succeeds once it is allowed, on the running guest.
    let allow = ["network", "update", &id, "--allow-cidr", PRIVATE];
    stage.kiln(&allow).expect_code(0);
    assert_eq!(ask(&stage, &id, &[&private]), "answered");
    assert_ne!(ask(&stage, &id, &[&internet]), "answered");
    let deny = ["network", "update", &id, "--network-policy", "deny-all"];
    stage.kiln(&deny).expect_code(0);
    for question in open.iter().chain(&closed) {
        assert_ne!(ask(&stage, &id, &[question]), "answered", "{question}");
    }
    // A policy that is refused changes nothing.
    let wrong = ["network", "update", &id, "--json", "--deny-cidr", "x"];
    let refused = stage.kiln(&wrong).expect_code(125);
    assert_eq!(refused.error()["code"], "INVALID_FIREWALL_CONFIG");
    assert_ne!(ask(&stage, &id, &[&internet]), "answered");
    stage.kiln(&["rm", "--force", &id]).expect_code(0);
    lab.assert_host_is_clean(&stage);
}

#[test]
fn b1_6_names_ports_and_the_proof() {
    let Some(lab) = Lab::new("b1_6_names_ports_and_the_proof") else {
        return;
    };
    let stage = lab.stage();
    let id = sandbox(
        &stage,
        &[
            "--allow-domain=allowed.example",
            "--publish=8080:80",
            "--network=default",
        ],
    );
    let named = format!("tcp:{ALLOWED}:80");
    let other = format!("tcp:{OTHER}:80");
    let resolve = |name: &str| ask(&stage, &id, &[&format!("name:{GATEWAY}:{name}")]);
    // An address is closed until its name was asked for.
    assert_eq!(ask(&stage, &id, &[&named]), "silent");
    assert_eq!(resolve("allowed.example"), "answered");
    assert_eq!(ask(&stage, &id, &[&named, &other]), "answered silent");
    assert_eq!(resolve("denied.example"), "refused");
    // Whoever is asked, our own resolver answers.
    let elsewhere = format!("name:{RESOLVER}:denied.example");
    assert_eq!(ask(&stage, &id, &[&elsewhere]), "refused");

    serve_in_guest(&stage, &id);
    for (from, at) in [
        (&lab.world, "203.0.113.2:8080"),
        (&lab.host, "203.0.113.2:8080"),
        (&lab.host, "127.0.0.1:8080"),
    ] {
        eventually("the published port answers", || {
            lab.fetch(from, at) == "from the guest"
        });
    }

    let proofs = stage.kiln(&["network", "verify", &id, "--json"]);
    let proofs = proofs.expect_code(0).json();
    let outcome = |about: &str| {
        let proofs = proofs.as_array().unwrap();
        let proof = proofs.iter().find(|proof| proof["about"] == about);
        proof.unwrap_or_else(|| panic!("no {about}"))["outcome"].clone()
    };
    for about in [
        "a service of the host",
        "an allowed name",
        "a published port",
    ] {
        assert_eq!(outcome(about), "holds", "{about}: {proofs}");
    }
    let inspected = stage.kiln(&["network", "inspect", &id, "--json"]);
    let inspected = inspected.expect_code(0).json();
    assert_eq!(inspected["connected"], true);
    assert_eq!(inspected["policy"]["publish"][0], "8080:80");

    let interface = inspected["interface"].as_str().unwrap();
    let rules = || output(&["ip", "netns", "exec", &lab.host, "nft", "list", "ruleset"]);
    assert!(rules().contains(interface));
    stage.kiln(&["stop", &id]).expect_code(0);
    assert!(!rules().contains(interface), "rules are left");
    assert_eq!(lab.fetch(&lab.world, "203.0.113.2:8080"), "");
    stage.kiln(&["rm", &id]).expect_code(0);
    lab.assert_host_is_clean(&stage);
}

#[test]
fn a_network_outlives_its_daemon_but_not_its_machine() {
    let Some(lab) = Lab::new("a_network_outlives_its_daemon_but_not_its_machine") else {
        return;
    };
    let stage = lab.stage();
    let id = sandbox(
        &stage,
        &["--network=default", "--allow-domain=allowed.example"],
    );
    let questions = [
        format!("tcp:{OTHER}:80"),
        format!("name:{GATEWAY}:allowed.example"),
    ];
    let questions = questions.each_ref().map(String::as_str);
    stage.kill_daemon();
    assert_eq!(ask(&stage, &id, &questions), "silent answered");
    let named = format!("tcp:{ALLOWED}:80");
    assert_eq!(ask(&stage, &id, &[&named]), "answered");
    // Somebody flushes everybody's tables: closed at once, and put back soon.
    let flush = ["ip", "netns", "exec", &lab.host, "nft", "flush", "ruleset"];
    output(&flush);
    assert_eq!(ask(&stage, &id, &[&named]), "silent");
    eventually("the network is back", || {
        ask(&stage, &id, &[questions[1]]) == "answered" && ask(&stage, &id, &[&named]) == "answered"
    });
    assert_eq!(ask(&stage, &id, &[questions[0]]), "silent");
    // Both die: the next daemon finds what they left, and removes it.
    let machine = &stage.sandboxes()[0]["pid"];
    let machine = u32::try_from(machine.as_u64().unwrap()).unwrap();
    stage.kill_daemon();
    signal(machine, Signal::KILL);
    stage.kiln(&["rm", "--force", &id]).expect_code(0);
    lab.assert_host_is_clean(&stage);
}

#[test]
fn other_firewalls_are_passed_or_named_and_left_as_they_were() {
    let Some(lab) = Lab::new("other_firewalls_are_passed_or_named") else {
        return;
    };
    let nft = |words: &str| {
        let command = ["ip", "netns", "exec", &lab.host, "nft"];
        output(&[&command[..], &[words]].concat())
    };
    // As Docker and ufw leave it: what they do not know is dropped.
    nft("add table ip filter");
    for (chain, hook) in [("FORWARD", "forward"), ("INPUT", "input")] {
        nft(&format!(
            "add chain ip filter {chain} {{ type filter hook {hook} priority 0; policy drop; }}"
        ));
    }
    nft("add rule ip filter INPUT ct state established accept");
    nft("add rule ip filter INPUT iif lo accept");
    let theirs = nft("list table ip filter");
    let stage = lab.stage();
    let id = sandbox(&stage, &["--network=default"]);
    let questions = [
        format!("tcp:{ALLOWED}:80"),
        format!("name:{GATEWAY}:allowed.example"),
        format!("tcp:{PRIVATE}:80"),
    ];
    let questions = questions.each_ref().map(String::as_str);
    assert_eq!(ask(&stage, &id, &questions), "answered answered silent");
    assert_ne!(nft("list table ip filter"), theirs, "two rules of ours");
    let warned = |id: &str| {
        let all = stage.sandboxes();
        let it = all.iter().find(|it| it["id"] == id).unwrap();
        it["warnings"].to_string().contains("firewall-cmd")
    };
    assert!(!warned(&id));
    // firewalld has to be told by its own means, and we say how.
    nft("add table inet firewalld");
    nft("add chain inet firewalld filter_FORWARD { type filter hook forward priority 10; }");
    let info = stage.kiln(&["info", "--json"]).expect_code(0).text();
    assert!(info.contains("firewall-cmd"), "{info}");
    let second = sandbox(&stage, &["--network=default"]);
    assert!(warned(&second));
    nft("delete table inet firewalld");
    stage.kiln(&["rm", "--force", &id, &second]).expect_code(0);
    stage.assert_nothing_left();
    signal(stage.daemon_pid(), Signal::TERM);
    eventually("theirs is as it was", || {
        nft("list tables") == "table ip filter\n" && nft("list table ip filter") == theirs
    });
}

#[test]
fn what_cannot_be_is_refused_before_anything_is_made() {
    let Some(lab) = Lab::new("what_cannot_be_is_refused_before_anything_is_made") else {
        return;
    };
    let stage = lab.stage();
    let wrong = [
        "--network-policy=allow-all",
        "--deny-cidr=x",
        "--publish=99999:1",
    ];
    let words = [
        &["run", "--json", "--network=default"],
        &wrong[..],
        &["--", "true"],
    ]
    .concat();
    let error = stage.kiln(&words).expect_code(125).error();
    assert_eq!(error["code"], "INVALID_SPEC");
    for field in ["denied_cidrs", "publish"] {
        assert!(
            error["message"].as_str().unwrap().contains(field),
            "{error}"
        );
    }
    let nothing = ["run", "--network=none", "--", "ls", "/sys/class/net"];
    let ran = stage.kiln(&[&nothing[..2], &SMALL, &nothing[2..]].concat());
    assert_eq!(ran.expect_code(0).text(), "lo\n");
    // Nor has its VMM, if the guest should take it over.
    let id = sandbox(&stage, &["--network=none"]);
    let machine = stage.sandboxes()[0]["pid"].as_u64().unwrap();
    let namespace = |pid: u64| std::fs::read_link(format!("/proc/{pid}/ns/net")).unwrap();
    assert_ne!(namespace(machine), namespace(stage.daemon_pid().into()));
    let inside = [
        "nsenter",
        &format!("--net=/proc/{machine}/ns/net"),
        "ip",
        "-o",
        "link",
    ];
    assert_eq!(output(&inside).lines().count(), 1, "loopback only");
    stage.kiln(&["rm", "--force", &id]).expect_code(0);
    // A sandbox without a network leaves the host's alone.
    let tables = output(&["ip", "netns", "exec", &lab.host, "nft", "list", "tables"]);
    assert_eq!(tables, "");
    // A taken port: the launch fails whole, and says why.
    let taken = ["run", "--json", "--network=default", "--publish=8000:80"];
    let words = [&taken[..], &SMALL, &["--", "true"]].concat();
    let error = stage.kiln(&words).expect_code(125).error();
    assert_eq!(error["code"], "PORT_TAKEN", "{error}");
    lab.assert_host_is_clean(&stage);
}

/// As a daemon leaves it that dies between making an interface and writing it down.
#[test]
fn interfaces_that_no_network_has_are_told_of_and_removed_and_strangers_stay() {
    let Some(lab) = Lab::new("interfaces_that_no_network_has") else {
        return;
    };
    let stage = lab.stage();
    let id = sandbox(&stage, &["--network=default"]);
    let inspected = stage.kiln(&["network", "inspect", &id, "--json"]);
    let inspected = inspected.expect_code(0).json();
    let ours = inspected["interface"].as_str().unwrap();
    let link = |words: &[&str]| output(&[&["ip", "-n", &lab.host, "link"][..], words].concat());
    let shown = link(&["show", "dev", ours]);
    let alias = shown.split("alias ").nth(1).unwrap();
    let tag = alias.split('/').next().unwrap();
    let ghost = format!("{}zzzz-zzz", &ours[..3]);
    let stranger = format!("{}yyyy-yyy", &ours[..3]);
    for name in [&ghost, &stranger] {
        link(&["add", name, "type", "bridge"]);
    }
    link(&["set", &ghost, "alias", &format!("{tag}/ghost")]);

    let gc = |options: &[&str]| {
        let ran = stage.kiln(&[&["gc", "--json"][..], options].concat());
        ran.expect_code(0).json()
    };
    let told = gc(&["--dry-run"]);
    let all = told.as_array().unwrap();
    assert_eq!(all.len(), 1, "{told}");
    assert_eq!(all[0]["kind"], "interface");
    assert_eq!(all[0]["path"], format!("/sys/class/net/{ghost}"));
    assert!(link(&["show"]).contains(&ghost), "it was only told of");
    assert_eq!(gc(&[])[0]["removed"], true);
    let left = link(&["show"]);
    assert!(!left.contains(&ghost) && left.contains(&stranger), "{left}");
    assert_eq!(gc(&[]), serde_json::json!([]));
    let internet = format!("tcp:{ALLOWED}:80");
    assert_eq!(ask(&stage, &id, &[&internet]), "answered");
    link(&["del", &stranger]);
    stage.kiln(&["rm", "--force", &id]).expect_code(0);
    lab.assert_host_is_clean(&stage);
}
