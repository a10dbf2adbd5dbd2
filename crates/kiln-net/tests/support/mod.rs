//! A private host with an uplink and an internet behind it, and guests on real TAPs: all in
//! namespaces that vanish with the test.
#![allow(
    dead_code,
    unsafe_code,
    reason = "shared by several test binaries; TUN and ICMP need ioctls"
)]

pub mod guest;
pub mod probe;
pub mod rate;
pub mod server;
pub mod spoof;

use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd};
use std::process::Command;

use kiln_net::dns::DnsOptions;
use kiln_net::policy::{Policy, PolicySpec};
use kiln_net::{
    HostNetwork, HostOptions, Identity, Label, NetNamespace, Network, NetworkSpec, TapOwner,
};

pub use guest::Guest;

/// The test host's address on the uplink.
pub const HOST: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);
/// The router on the other side, which is also a server.
pub const SERVER: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 2);
pub const OTHER: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 10);
pub const THIRD: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 11);
pub const PRIVATE: Ipv4Addr = Ipv4Addr::new(10, 9, 9, 9);
pub const METADATA: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);
pub const PUBLIC_DNS: Ipv4Addr = Ipv4Addr::new(8, 8, 8, 8);

/// Tests that need privileges say so and return.
pub fn privileged(test: &str) -> bool {
    let able = rustix::process::geteuid().is_root()
        && std::fs::OpenOptions::new()
            .read(true)
            .write(true)
            .open("/dev/net/tun")
            .is_ok()
        && NetNamespace::create(|| ()).is_ok();
    if !able {
        eprintln!("SKIPPED: {test}: needs root, /dev/net/tun and network namespaces");
    }
    able
}

/// Tests that need a program of this machine say so and return.
pub fn has(test: &str, program: &str) -> bool {
    let there = Command::new(program).arg("--version").output().is_ok();
    if !there {
        eprintln!("SKIPPED: {test}: there is no {program}");
    }
    there
}

pub struct Lab {
    pub host: NetNamespace,
    pub internet: NetNamespace,
    pub kiln: HostNetwork,
    _servers: Vec<server::Server>,
}

impl Lab {
    pub fn new() -> Self {
        Self::with(DnsOptions::default())
    }

    pub fn with(dns: DnsOptions) -> Self {
        let (host, ()) = NetNamespace::create(|| ()).unwrap();
        let (internet, ()) = NetNamespace::create(|| ()).unwrap();
        wire(&host, &internet);
        let servers = server::start_all(&internet);
        let kiln = host
            .run(|| HostNetwork::open(options(Identity::standard(), dns)))
            .unwrap()
            .unwrap();
        Self {
            host,
            internet,
            kiln,
            _servers: servers,
        }
    }

    pub fn network(&self, slot: u32, policy: &str) -> Network {
        self.try_network(slot, policy).unwrap()
    }

    pub fn try_network(&self, slot: u32, policy: &str) -> Result<Network, kiln_net::NetworkError> {
        self.host
            .run(|| create(&self.kiln, slot, spec(slot, policy)))
            .unwrap()
    }

    pub fn guest(&self, network: &Network) -> Guest {
        Guest::start(network)
    }

    pub fn update(&self, network: &mut Network, policy: &str) {
        self.try_update(network, policy).unwrap();
    }

    pub fn try_update(
        &self,
        network: &mut Network,
        text: &str,
    ) -> Result<(), kiln_net::NetworkError> {
        self.host.run(|| network.update(policy(text))).unwrap()
    }

    /// A command of another tool, as second opinion, inside the host.
    pub fn host_sh(&self, script: &str) -> String {
        self.host.run(|| sh(script)).unwrap()
    }

    /// A path by which `ip` finds the internet's namespace.
    pub fn internet_netns_path(&self) -> String {
        format!(
            "/proc/{}/fd/{}",
            std::process::id(),
            self.internet.as_fd().as_raw_fd()
        )
    }

    pub fn internet_sh(&self, script: &str) -> String {
        self.internet.run(|| sh(script)).unwrap()
    }
}

pub fn options(identity: Identity, dns: DnsOptions) -> HostOptions {
    HostOptions {
        identity,
        pool: None,
        dns,
    }
}

pub fn policy(text: &str) -> Policy {
    serde_json::from_str::<PolicySpec>(text)
        .unwrap()
        .check()
        .unwrap()
}

pub fn create(
    kiln: &HostNetwork,
    slot: u32,
    spec: NetworkSpec,
) -> Result<Network, kiln_net::NetworkError> {
    let record = kiln.reserve(slot)?;
    Network::create(kiln, record, spec)
}

pub fn spec(slot: u32, text: &str) -> NetworkSpec {
    NetworkSpec {
        label: Label::new(&format!("sandbox-{slot}")),
        hostname: None,
        owner: TapOwner {
            uid: 10_000,
            gid: 10_000,
        },
        policy: policy(text),
        via: None,
    }
}

pub fn sh(script: &str) -> String {
    let output = Command::new("sh").args(["-ec", script]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "{script}\n{text}\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    text
}

fn wire(host: &NetNamespace, internet: &NetNamespace) {
    let there = format!(
        "/proc/{}/fd/{}",
        std::process::id(),
        internet.as_fd().as_raw_fd()
    );
    host.run(|| {
        sh(&format!(
            "ip link set lo up
             ip link add up0 type veth peer name inet0 netns {there}
             ip address add {HOST}/24 dev up0; ip link set up0 up
             ip route add default via {SERVER}"
        ))
    })
    .unwrap();
    internet
        .run(|| {
            let extra: String = [OTHER, THIRD, PRIVATE, METADATA, PUBLIC_DNS]
                .iter()
                .map(|address| format!("ip address add {address}/32 dev lo\n"))
                .collect();
            sh(&format!(
                "ip link set lo up\n{extra}
                 ip address add {SERVER}/24 dev inet0; ip link set inet0 up
                 ip route add 198.18.0.0/15 via {HOST}"
            ))
        })
        .unwrap();
}

pub fn at(address: Ipv4Addr, port: u16) -> SocketAddr {
    SocketAddr::from((address, port))
}
