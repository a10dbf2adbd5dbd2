//! A host of its own for a scenario: a network namespace with the daemon in it, and a second one
//! that plays the internet. Nothing of this machine's network is touched.

#![allow(dead_code, unreachable_pub, reason = "shared by several test binaries")]

use std::fs;
use std::process::{Child, Command, Stdio};

use e2e::{Stage, eventually, signal, skip};
use rustix::process::Signal;

pub const HOST: &str = "203.0.113.2";
pub const RESOLVER: &str = "198.51.100.53";
pub const ALLOWED: &str = "198.51.100.10";
pub const OTHER: &str = "198.51.100.20";
pub const PRIVATE: &str = "10.99.0.1";
pub const METADATA: &str = "169.254.169.254";
/// The guest's gateway and resolver, the same in every sandbox.
pub const GATEWAY: &str = "198.19.255.1";
pub const SMALL: [&str; 4] = ["--memory", "128M", "--tmpfs", "--engine=qemu"];

/// Two namespaces, and servers in them.
pub struct Lab {
    pub host: String,
    pub world: String,
    servers: Vec<Child>,
}

impl Lab {
    /// `None`, said loudly, where there can be none.
    pub fn new(test: &str) -> Option<Self> {
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

    pub fn serve(&mut self, namespace: &str, words: &[&str]) {
        self.servers.push(inside(namespace, words).spawn().unwrap());
    }

    /// What a server says to a client in this namespace; nothing if it is not reached.
    pub fn fetch(&self, namespace: &str, from: &str) -> String {
        let ran = inside(namespace, &["fetch", from])
            .stderr(Stdio::null())
            .output()
            .unwrap();
        String::from_utf8(ran.stdout).unwrap()
    }

    pub fn stage(&self) -> Stage {
        Stage::new().in_network_namespace(&self.host)
    }

    /// The daemon leaves, and the host is as it was.
    #[track_caller]
    pub fn assert_host_is_clean(&self, stage: &Stage) {
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

pub fn inside(namespace: &str, words: &[&str]) -> Command {
    let mut command = Command::new("ip");
    command
        .args(["netns", "exec", namespace, env!("CARGO_BIN_EXE_world")])
        .args(words)
        .stdin(Stdio::null());
    command
}

#[track_caller]
pub fn ip(words: &str) {
    let done = Command::new("ip").args(words.split(' ')).output().unwrap();
    assert!(done.status.success(), "ip {words}: {done:?}");
}

#[track_caller]
pub fn output(words: &[&str]) -> String {
    let ran = Command::new(words[0]).args(&words[1..]).output().unwrap();
    assert!(ran.status.success(), "{words:?}: {ran:?}");
    String::from_utf8(ran.stdout).unwrap()
}

pub fn sandbox(stage: &Stage, options: &[&str]) -> String {
    stage.sandbox(&[&SMALL[..], options].concat())
}

/// What the guest's agent finds, one word per question.
#[track_caller]
pub fn ask(stage: &Stage, sandbox: &str, questions: &[&str]) -> String {
    let words = [&["exec", sandbox, "--", "/proc/1/exe", "--ask"], questions].concat();
    let ran = stage.kiln(&words).expect_code(0);
    ran.text().trim_end().replace('\n', " ")
}

/// The stage hand's own server, sent in: the image has none.
pub fn serve_in_guest(stage: &Stage, id: &str) {
    send_in(stage, id);
    run_in_guest(stage, id, "serve 80 'from the guest'");
}

/// Starts one of the stage hand's servers, which goes on by itself.
pub fn run_in_guest(stage: &Stage, id: &str, words: &str) {
    let serve = format!("/world {words} > /dev/null 2>&1 &");
    let start = ["exec", id, "--", "setsid", "sh", "-c", &serve];
    stage.kiln(&start).expect_code(0);
}

/// The stage hand itself, as `/world`: the image has no such programs.
pub fn send_in(stage: &Stage, id: &str) {
    let program = fs::File::open(env!("CARGO_BIN_EXE_world")).unwrap();
    let save = "cat > /world && chmod +x /world";
    let sent = stage
        .command(&["exec", "-i", id, "--", "sh", "-c", save])
        .stdin(program)
        .output()
        .unwrap();
    assert!(sent.status.success(), "{sent:?}");
}
