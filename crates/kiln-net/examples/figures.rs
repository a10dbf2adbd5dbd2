//! Takes the samples for `cargo xtask bench network`, in namespaces of its own, and prints them as
//! one JSON object of lists. Needs root; leaves nothing.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    reason = "a measuring stand: what fails ends it"
)]

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd};
use std::process::Command;
use std::time::{Duration, Instant};

use kiln_net::dns::DnsOptions;
use kiln_net::policy::{Policy, PolicySpec};
use kiln_net::{
    HostNetwork, HostOptions, Identity, Label, NetNamespace, Network, NetworkSpec, TapOwner,
};

const OTHERS: u32 = 500;
const CYCLES: u32 = 3;
const ROUNDS: u32 = 15;
const COMMAND_ROUNDS: u32 = 8;
const THROUGHPUT_ROUNDS: usize = 24;
const UPDATES: u32 = 40;
const CHUNK_LEN: usize = 256 << 10;
const TRANSFER: Duration = Duration::from_millis(400);
/// The kernel frees what was closed after the call; the next sample should not pay for it.
const SETTLE: Duration = Duration::from_millis(40);
const SERVER: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 2);

const POLICY: &str = r#"{"allowed_domains":["*.example.com"],"denied_cidrs":["198.51.100.0/24"],
    "allowed_cidrs":["203.0.113.0/24","1.0.0.0/8","10.9.0.0/16"],
    "publish":["8080:80"],"bandwidth":{"download":"100mbit","upload":"50mbit"}}"#;
const CHANGED: &str = r#"{"allowed_domains":["*.example.com","example.org"],
    "allowed_cidrs":["203.0.113.0/24","1.0.0.0/8"],
    "publish":["8080:80"],"bandwidth":{"download":"100mbit","upload":"50mbit"}}"#;

/// What most of the others are like: names of their own under the same rules.
fn kin(slot: u32) -> String {
    format!(
        r#"{{"allowed_cidrs":["203.0.113.0/24","1.0.0.0/8"],"allowed_domains":["s{slot}.example"]}}"#
    )
}

/// Others of which no two have the same rules, either.
fn strangers(slot: u32) -> String {
    let [_, _, high, low] = slot.to_be_bytes();
    kin(slot).replace("1.0.0.0/8", &format!("1.{high}.{low}.0/24"))
}

/// The same network, by the usual programs: as the installers and scripts of this trade do it.
const COMMANDS: &str = "
ip netns add $N
ip link add $V type veth peer name eth0 netns $N
ip address add 10.200.7.1/30 dev $V
ip link set $V up
ip netns exec $N ip tuntap add dev tap0 mode tap user 10000 group 10000
ip -n $N address add 198.19.7.1/30 dev tap0
ip -n $N address add 10.200.7.2/30 dev eth0
ip -n $N link set lo up
ip -n $N link set tap0 up
ip -n $N link set eth0 up
ip -n $N route add default via 10.200.7.1
ip route add 198.19.7.0/30 via 10.200.7.2
ip netns exec $N sysctl -qw net.ipv4.ip_forward=1
tc -n $N qdisc add dev tap0 root tbf rate 100mbit burst 1mb latency 50ms
tc -n $N qdisc add dev eth0 root tbf rate 50mbit burst 1mb latency 50ms
ip netns exec $N iptables -t nat -A POSTROUTING -o eth0 -j MASQUERADE
iptables -t nat -A POSTROUTING -s 10.200.7.0/30 -j MASQUERADE
iptables -t nat -A PREROUTING -p tcp --dport 8080 -j DNAT --to 10.200.7.2:80
iptables -A FORWARD -i $V -d 198.51.100.0/24 -j DROP
iptables -A FORWARD -i $V -d 203.0.113.0/24 -j ACCEPT
iptables -A FORWARD -i $V -d 1.0.0.0/8 -j ACCEPT
iptables -A FORWARD -i $V -d 10.9.0.0/16 -j ACCEPT
iptables -A FORWARD -i $V -j DROP
iptables -A FORWARD -o $V -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT
";
const UNDO: &str = "ip link delete $V 2>/dev/null; ip netns delete $N 2>/dev/null
iptables -F FORWARD; iptables -t nat -F; true";

fn main() {
    let mut samples: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
    let stand = Stand::new();
    if stand.knows("iptables") {
        stand.commands(&mut samples);
    }
    // In turns: what else the machine does slows both alike.
    for cycle in 1..=CYCLES {
        stand.inside(|| stand.times(["setup_ms", "teardown_ms"], &mut samples));
        let others = stand.crowd(strangers);
        stand.inside(|| stand.times(["setup_500_unlike_ms", "teardown_500_ms"], &mut samples));
        drop(others);
        stand.wait_until_empty();
        let others = stand.crowd(kin);
        stand.inside(|| stand.times(["setup_500_ms", "teardown_500_ms"], &mut samples));
        if cycle == CYCLES {
            stand.inside(|| stand.updates(&mut samples));
            throughput(&Stand::new(), &stand, &mut samples);
        }
        drop(others);
        stand.wait_until_empty();
    }
    println!("{}", serde_json::to_string(&samples).unwrap());
}

/// A host with an uplink and a server behind it.
struct Stand {
    host: NetNamespace,
    server: NetNamespace,
    kiln: HostNetwork,
}

impl Stand {
    fn new() -> Self {
        let (host, ()) = NetNamespace::create(|| ()).unwrap();
        let (server, ()) = NetNamespace::create(|| ()).unwrap();
        let there = path(&server);
        host.run(|| {
            sh(&format!(
                "ip link set lo up; ip link add up0 type veth peer name in0 netns {there}
                 ip address add 203.0.113.1/24 dev up0; ip link set up0 up
                 ip route add default via {SERVER}"
            ));
        })
        .unwrap();
        server
            .run(|| {
                sh(&format!(
                    "ip address add {SERVER}/24 dev in0; ip link set in0 up; ip link set lo up"
                ))
            })
            .unwrap();
        let options = HostOptions {
            identity: Identity::standard(),
            pool: None,
            dns: DnsOptions::default(),
        };
        let kiln = host.run(|| HostNetwork::open(options)).unwrap().unwrap();
        Self { host, server, kiln }
    }

    /// To be called inside the host.
    fn network(&self, slot: u32, policy: &str) -> Network {
        let spec = NetworkSpec {
            label: Label::new("figures"),
            hostname: None,
            owner: TapOwner {
                uid: 10_000,
                gid: 10_000,
            },
            policy: checked(policy),
            via: None,
        };
        let record = self.kiln.reserve(slot).unwrap();
        Network::create(&self.kiln, record, spec).unwrap()
    }

    fn crowd(&self, policy: fn(u32) -> String) -> Vec<Network> {
        let network = |slot| self.network(slot, &policy(slot));
        self.inside(|| (1..=OTHERS).map(network).collect())
    }

    fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        self.host.run(work).unwrap()
    }

    fn times(&self, keys: [&'static str; 2], samples: &mut BTreeMap<&str, Vec<f64>>) {
        for _ in 0..ROUNDS {
            let started = Instant::now();
            let network = self.network(0, POLICY);
            samples.entry(keys[0]).or_default().push(ms(started));
            let started = Instant::now();
            network.close().unwrap();
            samples.entry(keys[1]).or_default().push(ms(started));
            std::thread::sleep(SETTLE);
        }
    }

    fn knows(&self, program: &str) -> bool {
        let asked = Command::new(program).arg("--version").output();
        asked.is_ok_and(|output| output.status.success())
    }

    fn commands(&self, samples: &mut BTreeMap<&str, Vec<f64>>) {
        let names = format!("N=klnbench{0}; V=vb{0}\n", std::process::id());
        for _ in 0..COMMAND_ROUNDS {
            let script = format!("{names}{COMMANDS}");
            let started = Instant::now();
            self.host.run(|| sh(&script)).unwrap();
            samples.entry("commands_ms").or_default().push(ms(started));
            self.host.run(|| sh(&format!("{names}{UNDO}"))).unwrap();
            std::thread::sleep(SETTLE);
        }
    }

    /// The kernel frees namespaces some time after their last user is gone.
    fn wait_until_empty(&self) {
        let gone = "while ip -o link | grep -q ': kln'; do sleep 0.05; done";
        self.host.run(|| sh(gone)).unwrap();
    }

    fn updates(&self, samples: &mut BTreeMap<&str, Vec<f64>>) {
        let mut network = self.network(0, POLICY);
        for round in 0..UPDATES {
            let wanted = checked(if round % 2 == 0 { CHANGED } else { POLICY });
            let started = Instant::now();
            network.update(wanted).unwrap();
            samples.entry("update_ms").or_default().push(ms(started));
        }
        network.close().unwrap();
    }

    /// Megabits per second from inside the sandbox's namespace to the server.
    fn mbit(&self, network: &Network, port: u16) -> f64 {
        let listener = self
            .server
            .run(|| TcpListener::bind((SERVER, port)).unwrap())
            .unwrap();
        let mut near = network
            .namespace()
            .run(|| TcpStream::connect((SERVER, port)).unwrap())
            .unwrap();
        let (mut far, _) = listener.accept().unwrap();
        let reader = std::thread::spawn(move || {
            let mut buffer = vec![0; CHUNK_LEN];
            let mut bytes = 0_usize;
            while let Ok(length @ 1..) = far.read(&mut buffer) {
                bytes += length;
            }
            bytes
        });
        let chunk = vec![0; CHUNK_LEN];
        let started = Instant::now();
        while started.elapsed() < TRANSFER {
            near.write_all(&chunk).unwrap();
        }
        drop(near);
        let bytes = reader.join().unwrap();
        bytes as f64 * 8.0 / started.elapsed().as_secs_f64() / 1e6
    }
}

/// One sandbox's throughput, alone and among many, in turns: a busy machine slows both alike.
fn throughput(one: &Stand, crowd: &Stand, samples: &mut BTreeMap<&str, Vec<f64>>) {
    let sender = |stand: &Stand, slot| {
        let network = stand.inside(|| stand.network(slot, &kin(slot)));
        // The namespace itself sends: its own table would stop that, and is the same for all.
        network.namespace().run(|| sh("nft flush ruleset")).unwrap();
        network
    };
    let (alone, among) = (sender(one, 1), sender(crowd, OTHERS + 1));
    for (round, port) in (9000..).take(THROUGHPUT_ROUNDS).enumerate() {
        // Neither is always the first.
        let (first, second) = if round % 2 == 0 {
            let first = one.mbit(&alone, port);
            (first, crowd.mbit(&among, port))
        } else {
            let second = crowd.mbit(&among, port);
            (one.mbit(&alone, port), second)
        };
        samples
            .entry("throughput_one_mbit")
            .or_default()
            .push(first);
        samples
            .entry("throughput_500_mbit")
            .or_default()
            .push(second);
    }
}

fn checked(policy: &str) -> Policy {
    let spec: PolicySpec = serde_json::from_str(policy).unwrap();
    spec.check().unwrap()
}

fn path(namespace: &NetNamespace) -> String {
    let fd = namespace.as_fd().as_raw_fd();
    format!("/proc/{}/fd/{fd}", std::process::id())
}

fn sh(script: &str) {
    let done = Command::new("sh")
        .args(["-c", &format!("set -e\n{script}")])
        .status();
    assert!(done.unwrap().success(), "{script}");
}

fn ms(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1000.0
}
