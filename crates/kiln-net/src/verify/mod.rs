//! Proof on demand: questions whose answers show whether a sandbox's policy is really enforced.
//!
//! Owns which questions are asked, from which side, what they should find, and what an answer (or
//! none) proves. A question that is asked inside the guest is asked by the host, too: silence proves
//! something only where the host gets an answer. Does not know how a program is run in the guest;
//! the caller carries [`Question`]s in and [`Observed`] out.
//!
//! ```no_run
//! # fn ask_in_the_guest(_: &kiln_net::verify::Question) -> kiln_net::verify::Observed { kiln_net::verify::Observed::Silent }
//! # fn example(network: &kiln_net::Network) -> Result<(), kiln_net::verify::VerifyError> {
//! let verification = network.verification()?;
//! for probe in verification.probes() {
//!     let finding = match probe.from {
//!         kiln_net::verify::Side::Guest => verification.judge(probe, ask_in_the_guest(&probe.question)),
//!         kiln_net::verify::Side::Host => verification.judge_from_host(probe),
//!     };
//!     println!("{} {} {:?}", probe.about, probe.question, finding);
//! }
//! # Ok(()) }
//! ```

mod ask;
mod beacon;
mod judge;
mod plan;

use std::fmt;
use std::net::{Ipv4Addr, SocketAddrV4};

use serde::{Deserialize, Serialize};

pub use ask::ask;
pub use judge::Finding;
pub use plan::Surroundings;

use crate::host::Shared;
use crate::netlink::NetlinkError;
use crate::network::{BridgeNetwork, MemberRecord, Network};
use crate::policy::Policy;
use beacon::Beacon;

/// Something that can be asked of a network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Question {
    /// Does a TCP connection come about?
    Tcp(SocketAddrV4),
    /// Is an echo request answered?
    Ping(Ipv4Addr),
    /// Does this resolver give an address for the name?
    Name {
        /// Who is asked, by UDP.
        resolver: Ipv4Addr,
        /// For what.
        name: String,
    },
}

impl fmt::Display for Question {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(to) => write!(f, "tcp {to}"),
            Self::Ping(to) => write!(f, "ping {to}"),
            Self::Name { resolver, name } => write!(f, "name {name} at {resolver}"),
        }
    }
}

/// Where a question is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Side {
    /// Inside the guest.
    Guest,
    /// On the host.
    Host,
}

/// What the policy says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Expected {
    /// An answer comes.
    Open,
    /// None does.
    Closed,
}

/// What came back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Observed {
    /// A connection, an echo, an address.
    Answered,
    /// A reset, "unreachable", or "no such name".
    Refused,
    /// Nothing.
    Silent,
}

/// One line of the table that `kiln network verify` prints.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Probe {
    /// What it is about, for people.
    pub about: String,
    /// Where it is asked.
    pub from: Side,
    /// What is asked.
    pub question: Question,
    /// What the policy says.
    pub expected: Expected,
}

/// Why nothing can be verified.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VerifyError {
    /// The host's surroundings are not known.
    #[error("cannot list the host's addresses and sandboxes")]
    Netlink(#[from] NetlinkError),
    /// There is nothing on the host to be found.
    #[error("cannot listen on the host's own address {address}")]
    Beacon {
        /// Where.
        address: Ipv4Addr,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

/// The questions for one sandbox, and listeners on the host that must not be found. They listen
/// until this is dropped.
#[derive(Debug)]
pub struct Verification {
    probes: Vec<Probe>,
    /// Whom the host asks for names.
    resolver: Option<Ipv4Addr>,
    _beacons: Vec<Beacon>,
}

impl Network {
    /// Prepare the questions. Call it in the host's network namespace.
    ///
    /// # Errors
    /// [`VerifyError`].
    pub fn verification(&self) -> Result<Verification, VerifyError> {
        let who = Asked {
            address: self.address(),
            resolver: self.guest().resolver,
            peers: Vec::new(),
        };
        verification(&self.rules.host, self.policy(), &who)
    }
}

impl BridgeNetwork {
    /// As [`Network::verification`], for one of the members.
    ///
    /// # Errors
    /// [`VerifyError`].
    pub fn verification(&self, member: &MemberRecord) -> Result<Verification, VerifyError> {
        let policy = Policy {
            publish: member.publish.clone(),
            ..self.policy().clone()
        };
        let who = Asked {
            address: member.address,
            resolver: self.subnet().gateway(),
            peers: self.reachable_members(member.address),
        };
        verification(&self.rules.host, &policy, &who)
    }
}

/// Whose network is verified.
struct Asked {
    address: Ipv4Addr,
    resolver: Ipv4Addr,
    /// Whom it reaches although they are sandboxes.
    peers: Vec<Ipv4Addr>,
}

fn verification(host: &Shared, policy: &Policy, who: &Asked) -> Result<Verification, VerifyError> {
    let beacons = beacon::on_all(&host_addresses(host)?)?;
    let surroundings = Surroundings {
        resolver: who.resolver,
        listeners: beacons.iter().map(|beacon| beacon.address).collect(),
        neighbours: neighbours(host, who)?,
        peers: who
            .peers
            .iter()
            .copied()
            .take(plan::MOST_OF_A_KIND)
            .collect(),
    };
    Ok(Verification {
        probes: plan::plan(policy, &surroundings),
        resolver: host.gate.first_resolver(),
        _beacons: beacons,
    })
}

fn host_addresses(host: &Shared) -> Result<Vec<Ipv4Addr>, NetlinkError> {
    let mut links = host.links();
    let ours = |name: &str| name.starts_with(host.identity.prefix());
    let theirs: Vec<u32> = links
        .links()?
        .iter()
        .filter(|link| !ours(&link.name))
        .map(|link| link.index)
        .collect();
    let addresses = links.addresses()?.into_iter();
    let mut all: Vec<Ipv4Addr> = addresses
        .filter(|a| theirs.contains(&a.index) && !a.address.is_loopback())
        .map(|a| a.address)
        .collect();
    all.dedup();
    all.truncate(plan::MOST_OF_A_KIND);
    Ok(all)
}

fn neighbours(host: &Shared, who: &Asked) -> Result<Vec<Ipv4Addr>, NetlinkError> {
    let mut all = crate::recover::sources(host)?;
    all.retain(|address| *address != who.address && !who.peers.contains(address));
    all.truncate(plan::MOST_OF_A_KIND);
    Ok(all)
}

impl Verification {
    /// What to ask.
    pub fn probes(&self) -> &[Probe] {
        &self.probes
    }

    /// What the guest's answer proves; the host asks the same now, to know what silence means.
    /// Blocking, for a few seconds at most.
    pub fn judge(&self, probe: &Probe, observed: Observed) -> Finding {
        judge::from_guest(probe.expected, observed, || self.control(&probe.question))
    }

    /// Ask and judge a question of the host's side. Blocking, too.
    pub fn judge_from_host(&self, probe: &Probe) -> Finding {
        judge::from_host(probe.expected, ask(&probe.question))
    }

    fn control(&self, question: &Question) -> Observed {
        match (question, self.resolver) {
            (Question::Name { name, .. }, Some(resolver)) => ask(&Question::Name {
                resolver,
                name: name.clone(),
            }),
            (Question::Name { .. }, None) => Observed::Silent,
            _ => ask(question),
        }
    }
}
