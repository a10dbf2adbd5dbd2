//! IPv4 arithmetic: subnets, the addresses in them, and the names and MACs derived from them.
//!
//! Pure. Knows nothing of links or of who holds which address.

use std::collections::BTreeSet;
use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Why an address, a subnet or a name was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SubnetError {
    /// Not `a.b.c.d/n` in plain decimals.
    #[error("`{text}` is not an IPv4 network like 172.30.0.0/24")]
    Malformed {
        /// What was given.
        text: String,
    },
    /// A network too small or too large for what it is meant to do.
    #[error("prefix /{prefix} is outside /1 to /30")]
    Prefix {
        /// What was given.
        prefix: u8,
    },
    /// All addresses are taken.
    #[error("no free address is left in {subnet}")]
    Exhausted {
        /// The network.
        subnet: Cidr,
    },
    /// Not a name that Linux accepts for an interface.
    #[error("`{name}` is not an interface name: 1 to 15 of a-z A-Z 0-9 . _ -, not `.` or `..`")]
    InterfaceName {
        /// What was given.
        name: String,
    },
}

/// An IPv4 network: the address has no host bits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Cidr {
    network: u32,
    prefix: u8,
}

impl Cidr {
    /// The whole of IPv4.
    pub const ALL: Self = Self {
        network: 0,
        prefix: 0,
    };

    /// A network from any address in it.
    ///
    /// # Errors
    /// [`SubnetError::Malformed`] beyond /32.
    pub fn new(address: Ipv4Addr, prefix: u8) -> Result<Self, SubnetError> {
        if prefix > 32 {
            return Err(SubnetError::Malformed {
                text: format!("{address}/{prefix}"),
            });
        }
        Ok(Self::of(address, prefix))
    }

    /// As [`Self::new`] for constants; a prefix beyond 32 counts as 32.
    pub(crate) const fn of(address: Ipv4Addr, prefix: u8) -> Self {
        let prefix = if prefix > 32 { 32 } else { prefix };
        Self {
            network: address.to_bits() & mask(prefix),
            prefix,
        }
    }

    /// One address.
    pub const fn host(address: Ipv4Addr) -> Self {
        Self::of(address, 32)
    }

    /// The network's own address.
    pub const fn network(self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.network)
    }

    /// How many leading bits are fixed.
    pub const fn prefix(self) -> u8 {
        self.prefix
    }

    /// The mask, like 255.255.255.0.
    pub const fn netmask(self) -> Ipv4Addr {
        Ipv4Addr::from_bits(mask(self.prefix))
    }

    /// First and last address.
    pub const fn bounds(self) -> (u32, u32) {
        (self.network, self.network | !mask(self.prefix))
    }

    /// Whether the address is in the network.
    pub const fn contains(self, address: Ipv4Addr) -> bool {
        address.to_bits() & mask(self.prefix) == self.network
    }

    /// Whether the other network lies wholly in this one.
    pub const fn covers(self, other: Self) -> bool {
        self.prefix <= other.prefix && self.contains(other.network())
    }

    /// Whether an address is in both.
    pub const fn overlaps(self, other: Self) -> bool {
        self.covers(other) || other.covers(self)
    }
}

const fn mask(prefix: u8) -> u32 {
    if prefix == 0 {
        0
    } else {
        u32::MAX << (32 - prefix as u32)
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network(), self.prefix)
    }
}

impl fmt::Debug for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Reads `a.b.c.d/n` or `a.b.c.d` (one address); host bits are normalised away.
impl FromStr for Cidr {
    type Err = SubnetError;

    fn from_str(text: &str) -> Result<Self, SubnetError> {
        let malformed = || SubnetError::Malformed {
            text: text.chars().take(64).collect(),
        };
        let (address, prefix) = text.split_once('/').unwrap_or((text, "32"));
        let address: Ipv4Addr = address.parse().map_err(|_| malformed())?;
        let plain = !prefix.is_empty()
            && prefix.len() <= 2
            && prefix.bytes().all(|byte| byte.is_ascii_digit())
            && (prefix == "0" || !prefix.starts_with('0'));
        let prefix: u8 = if plain {
            prefix.parse().map_err(|_| malformed())?
        } else {
            33
        };
        Self::new(address, prefix).map_err(|_| malformed())
    }
}

impl Serialize for Cidr {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Cidr {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// A network with room for a gateway and guests: prefix 1 to 30 (A6.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(transparent)]
pub struct Subnet(Cidr);

impl Subnet {
    /// Take a network that is neither everything nor too small.
    ///
    /// # Errors
    /// [`SubnetError::Prefix`] outside /1 to /30.
    pub fn new(cidr: Cidr) -> Result<Self, SubnetError> {
        if (1..=30).contains(&cidr.prefix) {
            Ok(Self(cidr))
        } else {
            Err(SubnetError::Prefix {
                prefix: cidr.prefix,
            })
        }
    }

    /// The network.
    pub fn cidr(self) -> Cidr {
        self.0
    }

    /// The first usable address (A6.2).
    pub fn gateway(self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.0.network + 1)
    }

    /// How many guests fit: all usable addresses but the gateway's.
    pub fn guests(self) -> u32 {
        let (first, last) = self.0.bounds();
        last - first - 2
    }

    /// The guest address number `index`, from the second usable address on.
    pub fn guest(self, index: u32) -> Option<Ipv4Addr> {
        (index < self.guests()).then(|| Ipv4Addr::from_bits(self.0.network + 2 + index))
    }

    /// Whether an address is one for guests.
    pub fn has_guest(self, address: Ipv4Addr) -> bool {
        let (first, last) = self.0.bounds();
        (first + 2..last).contains(&address.to_bits())
    }

    /// The lowest guest address that is not taken (A6.2).
    ///
    /// # Errors
    /// [`SubnetError::Exhausted`] when there is none.
    pub fn next_free(self, taken: &BTreeSet<Ipv4Addr>) -> Result<Ipv4Addr, SubnetError> {
        let first = self.0.network + 2;
        let mut candidate = first;
        for address in taken.range(Ipv4Addr::from_bits(first)..) {
            if address.to_bits() != candidate {
                break;
            }
            candidate += 1;
        }
        self.guest(candidate - first)
            .ok_or(SubnetError::Exhausted { subnet: self.0 })
    }
}

impl FromStr for Subnet {
    type Err = SubnetError;

    fn from_str(text: &str) -> Result<Self, SubnetError> {
        if !text.contains('/') {
            return Err(SubnetError::Malformed {
                text: text.chars().take(64).collect(),
            });
        }
        Self::new(text.parse()?)
    }
}

impl<'de> Deserialize<'de> for Subnet {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// A name that Linux accepts for a network interface.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct InterfaceName(String);

/// `IFNAMSIZ` without the terminating zero.
pub(crate) const INTERFACE_NAME_LEN: usize = 15;

impl InterfaceName {
    /// Check a name.
    ///
    /// # Errors
    /// [`SubnetError::InterfaceName`].
    pub fn new(name: impl Into<String>) -> Result<Self, SubnetError> {
        let name = name.into();
        let fits = (1..=INTERFACE_NAME_LEN).contains(&name.len());
        let plain = name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
        if fits && plain && name != "." && name != ".." {
            Ok(Self(name))
        } else {
            Err(SubnetError::InterfaceName {
                name: name.chars().take(64).collect(),
            })
        }
    }

    /// A TAP's name: deterministic from VM and interface (A6.3).
    ///
    /// # Errors
    /// [`SubnetError::InterfaceName`] when the prefix is too long or has characters that a name
    /// cannot have.
    pub fn for_tap(prefix: &str, vm: &str, interface: &str) -> Result<Self, SubnetError> {
        let hash = stable_hash(&[b"tap", vm.as_bytes(), interface.as_bytes()]);
        Self::new(format!("{prefix}t{:010x}", hash & 0xff_ffff_ffff))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for InterfaceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for InterfaceName {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::new(String::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}

/// A hardware address.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MacAddr(pub [u8; 6]);

impl MacAddr {
    /// Deterministic from VM and interface, locally administered, `02:…` (A6.3).
    pub fn for_guest(vm: &str, interface: &str) -> Self {
        let [_, _, _, a, b, c, d, e] =
            stable_hash(&[b"mac", vm.as_bytes(), interface.as_bytes()]).to_be_bytes();
        Self([0x02, a, b, c, d, e])
    }
}

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for MacAddr {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for MacAddr {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let mut octets = text.split(':').map(|part| match part.len() {
            2 => u8::from_str_radix(part, 16).ok(),
            _ => None,
        });
        let address = std::array::from_fn(|_| octets.next().flatten());
        match (address, octets.next()) {
            ([Some(a), Some(b), Some(c), Some(d), Some(e), Some(f)], None) => {
                Ok(Self([a, b, c, d, e, f]))
            }
            _ => Err(serde::de::Error::custom("not a MAC like 02:00:00:00:00:01")),
        }
    }
}

/// FNV-1a over length-prefixed parts: stable across versions, as names on a host must be.
pub(crate) fn stable_hash(parts: &[&[u8]]) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for part in parts {
        let length = (part.len() as u64).to_le_bytes();
        for byte in length.iter().chain(part.iter()) {
            hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }
    // The low bits of FNV mix poorly for short inputs; fold the high ones in.
    hash ^ (hash >> 29)
}

/// A number in base 36, at least `width` digits.
pub(crate) fn base36(mut number: u64, width: usize) -> String {
    let mut digits = Vec::new();
    while number > 0 || digits.len() < width {
        let digit = (number % 36) as u8;
        digits.push(if digit < 10 {
            b'0' + digit
        } else {
            b'a' + digit - 10
        });
        number /= 36;
    }
    digits
        .iter()
        .rev()
        .map(|digit| char::from(*digit))
        .collect()
}

/// The static address as a kernel argument (A6.5), for guests without an agent.
pub fn kernel_ip_argument(
    guest: Ipv4Addr,
    gateway: Ipv4Addr,
    netmask: Ipv4Addr,
    interface: &InterfaceName,
) -> String {
    format!("ip={guest}::{gateway}:{netmask}::{interface}:off")
}

/// A set of addresses as sorted, disjoint, inclusive ranges.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ranges(Vec<(u32, u32)>);

impl Ranges {
    /// All addresses of some networks.
    pub fn of(cidrs: impl IntoIterator<Item = Cidr>) -> Self {
        Self::merged(cidrs.into_iter().map(Cidr::bounds).collect())
    }

    /// All addresses of some sets.
    pub fn union(sets: impl IntoIterator<Item = Self>) -> Self {
        Self::merged(sets.into_iter().flat_map(|set| set.0).collect())
    }

    fn merged(mut bounds: Vec<(u32, u32)>) -> Self {
        bounds.sort_unstable();
        let mut merged: Vec<(u32, u32)> = Vec::new();
        for (first, last) in bounds {
            match merged.last_mut() {
                Some(previous) if first <= previous.1.saturating_add(1) => {
                    previous.1 = previous.1.max(last);
                }
                _ => merged.push((first, last)),
            }
        }
        Self(merged)
    }

    /// Without the addresses of another set.
    #[must_use]
    pub fn without(&self, removed: &Self) -> Self {
        let mut kept = self.0.clone();
        for &(from, to) in &removed.0 {
            kept = kept
                .into_iter()
                .flat_map(|range| cut(range, from, to))
                .collect();
        }
        Self(kept)
    }

    /// Whether an address is in the set.
    pub fn contains(&self, address: Ipv4Addr) -> bool {
        let bits = address.to_bits();
        self.0
            .iter()
            .any(|(first, last)| (*first..=*last).contains(&bits))
    }

    /// The ranges, first and last address each.
    pub fn as_slice(&self) -> &[(u32, u32)] {
        &self.0
    }

    /// Whether the set has no address.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

fn cut((first, last): (u32, u32), from: u32, to: u32) -> impl Iterator<Item = (u32, u32)> {
    let apart = to < first || from > last;
    let whole = apart.then_some((first, last));
    let below = (!apart && from > first).then(|| (first, from - 1));
    let above = (!apart && to < last).then(|| (to + 1, last));
    whole.into_iter().chain(below).chain(above)
}

#[cfg(test)]
#[path = "subnet_tests.rs"]
mod tests;
