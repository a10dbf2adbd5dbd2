//! Networks of real guests, on a host of their own: a network namespace with the daemon in it,
//! and a second one that plays the internet. Nothing of this machine's network is touched.

#![allow(
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::panic,
    reason = "a scenario fails by panicking, its helpers too"
)]

use std::fs;
use std::process::{Child, Command, Stdio};

use e2e::{Stage, eventually, signal, skip};
use rustix::process::Signal;

const HOST: &str = "203.0.113.2";
const RESOLVER: &str = "198.51.100.53";
const ALLOWED: &str = "198.51.100.10";
const OTHER: &str = "198.51.100.20";
const PRIVATE: &str = "10.99.0.1";
const METADATA: &str = "169.254.169.254";
/// The guest's gateway and resolver, the same in every sandbox.
const GATEWAY: &str = "198.19.255.1";
const SMALL: [&str; 4] = ["--memory", "128M", "--tmpfs", "--engine=qemu"];

/// Two namespaces, and servers in them.
struct Lab {
    host: String,
    world: String,
    servers: Vec<Child>,
}

impl Lab {
    /// `None`, said loudly, where there can be none.
    fn new(test: &str) -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            skip(test, "network namespaces take root");
            return None;
        }
        for tool in ["ip", "nft"] {
            if Command::new(tool).arg("-V").output().is_err() {
                skip(test, &format!("there is no {tool} on this machine"));
                return None;
            }
        }
        let tag = format!("kt{:x}", std::process::id() ^ hash(test));
        let mut lab = Self {
            host: format!("{tag}h"),
            world: format!("{tag}w"),
            servers: Vec::new(),
        };
        lab.build();
        Some(lab)
    }

    fn build(&mut self) {
        let (host, world) = (self.host.clone(), self.world.clone());
        // Only this namespace's daemon sees this file as /etc/resolv.conf.
        let etc = format!("/etc/netns/{host}");
        fs::create_dir_all(&etc).unwrap();
        fs::write(
            format!("{etc}/resolv.conf"),
            format!("nameserver {RESOLVER}\n"),
        )
        .unwrap();
        for name in [&host, &world] {
            ip(&format!("netns add {name}"));
            ip(&format!("-n {name} link set lo up"));
        }
        ip(&format!(
            "link add up0 netns {host} type veth peer name up0 netns {world}"
        ));
        ip(&format!("-n {host} addr add {HOST}/24 dev up0"));
        ip(&format!("-n {world} addr add 203.0.113.1/24 dev up0"));
        for name in [&host, &world] {
            ip(&format!("-n {name} link set up0 up"));
        }
        ip(&format!("-n {host} route add default via 203.0.113.1"));
        for address in [RESOLVER, ALLOWED, OTHER, PRIVATE, METADATA] {
            ip(&format!("-n {world} addr add {address}/32 dev lo"));
        }
        self.serve(&world, &["serve", "80", "from the world"]);
        self.serve(&host, &["serve", "8000", "a secret of the host"]);
        let allowed = format!("allowed.example={ALLOWED}");
        let denied = format!("denied.example={OTHER}");
        self.serve(&world, &["dns", RESOLVER, &allowed, &denied]);
        // Controls: from the host all of it answers, so what a guest does not reach is kept from it.
        for from in [ALLOWED, OTHER, PRIVATE, METADATA] {
            eventually("the world answers", || {
                self.fetch(&self.host, &format!("{from}:80")) == "from the world"
            });
        }
        eventually("the host's service answers", || {
            self.fetch(&self.world, &format!("{HOST}:8000")) == "a secret of the host"
        });
    }

    fn serve(&mut self, namespace: &str, words: &[&str]) {
        self.servers.push(inside(namespace, words).spawn().unwrap());
    }

    /// What a server says to a client in this namespace; nothing if it is not reached.
    fn fetch(&self, namespace: &str, from: &str) -> String {
        let ran = inside(namespace, &["fetch", from])
            .stderr(Stdio::null())
            .output()
            .unwrap();
        String::from_utf8(ran.stdout).unwrap()
    }

    fn stage(&self) -> Stage {
        Stage::new().in_network_namespace(&self.host)
    }

    /// The daemon leaves, and the host is as it was.
    #[track_caller]
    fn assert_host_is_clean(&self, stage: &Stage) {
        stage.assert_nothing_left();
        signal(stage.daemon_pid(), Signal::TERM);
        eventually("no table is left", || {
            output(&["ip", "netns", "exec", &self.host, "nft", "list", "tables"]).is_empty()
        });
        let links = output(&["ip", "-n", &self.host, "-o", "link"]);
        assert_eq!(links.lines().count(), 2, "links are left: {links}");
        let addresses = output(&["ip", "-n", &self.host, "-4", "-o", "addr"]);
        assert_eq!(
            addresses.lines().count(),
            2,
            "addresses are left: {addresses}"
        );
        let routes = output(&["ip", "-n", &self.host, "route"]);
        assert_eq!(routes.lines().count(), 2, "routes are left: {routes}");
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for server in &mut self.servers {
            let _ = server.kill();
            let _ = server.wait();
        }
        for name in [&self.host, &self.world] {
            let _ = Command::new("ip").args(["netns", "del", name]).status();
        }
        let _ = fs::remove_dir_all(format!("/etc/netns/{}", self.host));
        // Empty unless somebody else uses it.
        let _ = fs::remove_dir("/etc/netns");
    }
}

fn hash(text: &str) -> u32 {
    text.bytes().fold(0_u32, |sum, byte| {
        sum.wrapping_mul(31).wrapping_add(byte.into())
    }) & 0xff_ffff
}

fn inside(namespace: &str, words: &[&str]) -> Command {
    let mut command = Command::new("ip");
    command
        .args(["netns", "exec", namespace, env!("CARGO_BIN_EXE_world")])
        .args(words)
        .stdin(Stdio::null());
    command
}

#[track_caller]
fn ip(words: &str) {
    let done = Command::new("ip").args(words.split(' ')).output().unwrap();
    assert!(done.status.success(), "ip {words}: {done:?}");
}

#[track_caller]
fn output(words: &[&str]) -> String {
    let ran = Command::new(words[0]).args(&words[1..]).output().unwrap();
    assert!(ran.status.success(), "{words:?}: {ran:?}");
    String::from_utf8(ran.stdout).unwrap()
}

fn sandbox(stage: &Stage, options: &[&str]) -> String {
    stage.sandbox(&[&SMALL[..], options].concat())
}

/// What the guest's agent finds, one word per question.
#[track_caller]
fn ask(stage: &Stage, sandbox: &str, questions: &[&str]) -> String {
    let words = [&["exec", sandbox, "--", "/proc/1/exe", "--ask"], questions].concat();
    let ran = stage.kiln(&words).expect_code(0);
    ran.text().trim_end().replace('\n', " ")
}

#[test]
fn a_sandbox_reaches_the_internet_and_nothing_else_unless_told() {
    let Some(lab) = Lab::new("a_sandbox_reaches_the_internet_and_nothing_else_unless_told") else {
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
fn names_ports_and_the_proof() {
    let Some(lab) = Lab::new("names_ports_and_the_proof") else {
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

/// The stage hand's own server, sent in: the image has none.
fn serve_in_guest(stage: &Stage, id: &str) {
    let program = fs::File::open(env!("CARGO_BIN_EXE_world")).unwrap();
    let save = "cat > /world && chmod +x /world";
    let sent = stage
        .command(&["exec", "-i", id, "--", "sh", "-c", save])
        .stdin(program)
        .output()
        .unwrap();
    assert!(sent.status.success(), "{sent:?}");
    let serve = "/world serve 80 'from the guest' > /dev/null 2>&1 &";
    let start = ["exec", id, "--", "setsid", "sh", "-c", serve];
    stage.kiln(&start).expect_code(0);
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
    signal(stage.daemon_pid(), Signal::KILL);
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
    signal(stage.daemon_pid(), Signal::KILL);
    signal(machine, Signal::KILL);
    stage.kiln(&["rm", "--force", &id]).expect_code(0);
    lab.assert_host_is_clean(&stage);
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
