//! Other firewalls on this host: which of them drop what they do not know, and how our interfaces
//! are let through.
//!
//! An accept of ours never overrides a drop of theirs, so two rules of ours stand in their chains:
//! from our interfaces, to our interfaces. Our own table still judges every packet.

use crate::host::HostNetwork;
use crate::netlink::NetlinkError;
use crate::nft::BaseChain;
use crate::ruleset::Rule;

const INPUT: u32 = 1;
const FORWARD: u32 = 2;
const INET: u8 = 1;
const IPV4: u8 = 2;
/// Docker leaves this chain to others, and never flushes it.
const DOCKER_USER: &str = "DOCKER-USER";
const FIREWALLD: &str = "firewalld";
/// Not `/proc/net`: that is the main thread's.
const LEGACY_TABLES: &str = "/proc/thread-self/net/ip_tables_names";

/// Something of others that stands in the way: sandboxes may have no network until it knows our
/// interfaces.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Obstacle {
    /// Family, table and chain, like `ip filter FORWARD`.
    pub chain: String,
    /// What it stops.
    pub stops: &'static str,
    /// What to do about it by hand, where [`HostNetwork::clear_the_way`] does nothing.
    pub hint: Option<String>,
}

impl HostNetwork {
    /// Chains of other programs that drop what they do not know and in which no rule lets our
    /// interfaces through.
    ///
    /// # Errors
    /// [`NetlinkError`] when the rules cannot be listed.
    pub fn obstacles(&self) -> Result<Vec<Obstacle>, NetlinkError> {
        let chains = self.shared().nft().chains()?;
        let open = self.opened()?;
        let mut found: Vec<Obstacle> = self
            .dropping(&chains)
            .into_iter()
            .filter(|chain| !open.contains(&door(chain, &chains)))
            .map(|chain| described(chain, None))
            .collect();
        let prefix = self.identity().prefix();
        let zone = chains
            .iter()
            .find(|chain| chain.table == FIREWALLD && chain.hook == Some(FORWARD));
        found.extend(zone.map(|chain| {
            let hint = format!("firewall-cmd --permanent --zone=trusted --add-interface={prefix}+ && firewall-cmd --reload");
            described(chain, Some(hint))
        }));
        found.extend(legacy(prefix));
        Ok(found)
    }

    /// Let our interfaces through the chains that drop what they do not know: one rule each way, at
    /// their head, marked as ours. What is there already is not added twice; how many were added.
    ///
    /// # Errors
    /// [`NetlinkError`]; the rules that were added stay.
    pub fn clear_the_way(&self) -> Result<usize, NetlinkError> {
        let chains = self.shared().nft().chains()?;
        let open = self.opened()?;
        let mut doors: Vec<Door> = self
            .dropping(&chains)
            .into_iter()
            .map(|chain| door(chain, &chains))
            .collect();
        doors.sort();
        doors.dedup();
        let mut added = 0;
        for door in doors.into_iter().filter(|door| !open.contains(door)) {
            for rule in self.passes(&door) {
                self.shared().nft().insert(
                    door.family,
                    &door.table,
                    &door.chain,
                    &rule,
                    self.identity().tag(),
                )?;
                added += 1;
            }
        }
        Ok(added)
    }

    /// Remove our rules from others' chains.
    ///
    /// # Errors
    /// The first [`NetlinkError`].
    pub fn withdraw(&self) -> Result<(), NetlinkError> {
        let mut nft = self.shared().nft();
        for rule in nft.rules_with(self.identity().tag(), &self.shared().base.table)? {
            nft.withdraw(&rule)?;
        }
        Ok(())
    }

    fn opened(&self) -> Result<Vec<Door>, NetlinkError> {
        let rules = self
            .shared()
            .nft()
            .rules_with(self.identity().tag(), &self.shared().base.table)?;
        let door = |rule: crate::nft::Guest| Door {
            family: rule.family,
            table: rule.table,
            chain: rule.chain,
            input: false,
        };
        // A chain with one of our rules is open; which hook it serves does not matter.
        let both = rules.into_iter().map(door).flat_map(|door| {
            let input = Door {
                input: true,
                ..door.clone()
            };
            [door, input]
        });
        Ok(both.collect())
    }

    fn dropping<'a>(&self, chains: &'a [BaseChain]) -> Vec<&'a BaseChain> {
        let ours = &self.shared().base.table;
        let in_the_way = |chain: &&BaseChain| {
            let place = matches!(chain.hook, Some(INPUT | FORWARD));
            let ipv4 = matches!(chain.family, INET | IPV4);
            chain.drops && place && ipv4 && chain.table != *ours
        };
        chains.iter().filter(in_the_way).collect()
    }

    fn passes(&self, door: &Door) -> Vec<Rule> {
        let prefix = self.identity().prefix();
        let mut rules = vec![Rule::new().entering_by(prefix).accept()];
        if !door.input {
            rules.push(Rule::new().leaving_by(prefix).accept());
        }
        rules
    }
}

/// Where our rules go, for a chain that drops.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Door {
    family: u8,
    table: String,
    chain: String,
    input: bool,
}

fn door(chain: &BaseChain, all: &[BaseChain]) -> Door {
    let input = chain.hook == Some(INPUT);
    let docker = all.iter().find(|other| {
        (other.family, &other.table) == (chain.family, &chain.table) && other.name == DOCKER_USER
    });
    let name = match docker {
        Some(docker) if !input => &docker.name,
        _ => &chain.name,
    };
    Door {
        family: chain.family,
        table: chain.table.clone(),
        chain: name.clone(),
        input,
    }
}

fn described(chain: &BaseChain, hint: Option<String>) -> Obstacle {
    let family = if chain.family == INET { "inet" } else { "ip" };
    Obstacle {
        chain: format!("{family} {} {}", chain.table, chain.name),
        stops: match chain.hook {
            Some(INPUT) => "sandboxes asking for names",
            _ => "sandboxes reaching the internet, and published ports",
        },
        hint,
    }
}

/// Rules of the old kind are invisible to nftables; whether they drop, only their own tool knows.
fn legacy(prefix: &str) -> Option<Obstacle> {
    let tables = std::fs::read_to_string(LEGACY_TABLES).ok()?;
    tables.lines().any(|table| table == "filter").then(|| Obstacle {
        chain: "iptables-legacy filter".to_owned(),
        stops: "sandboxes reaching the internet, if it drops what it does not know",
        hint: Some(format!(
            "iptables-legacy -I FORWARD -i {prefix}+ -j ACCEPT; iptables-legacy -I FORWARD -o {prefix}+ -j ACCEPT"
        )),
    })
}
