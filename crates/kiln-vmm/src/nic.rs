//! Network interfaces of a machine: names, addresses and limits. The TAP itself is somebody else's.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// One network interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Nic {
    /// Name of the device towards the engine: `[A-Za-z0-9_]`, unique within the machine.
    pub id: String,
    /// Name of an existing TAP in [`MachineSpec::netns`](crate::MachineSpec::netns). A TAP with
    /// an owner belongs to the VMM's user ([`JailSpec::uid`](crate::jail::JailSpec::uid)).
    pub tap: String,
    /// The guest's address.
    pub mac: MacAddress,
    /// Limit of what the guest receives; engines without limiters refuse one.
    pub rx_limit: Option<RateLimit>,
    /// Limit of what the guest sends.
    pub tx_limit: Option<RateLimit>,
}

/// A limiter of bandwidth and operations. What is `None` is not limited, or not changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RateLimit {
    /// Of bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bandwidth: Option<TokenBucket>,
    /// Of operations.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ops: Option<TokenBucket>,
}

/// Tokens that come back with time; a size or refill time of 0 lifts the limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenBucket {
    /// How many tokens it holds.
    pub size: u64,
    /// Tokens given once, on top.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub one_time_burst: Option<u64>,
    /// Milliseconds in which it fills up.
    #[serde(rename = "refill_time")]
    pub refill_ms: u64,
}

/// An Ethernet address of one interface.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MacAddress([u8; 6]);

/// Text or bytes that are no address of one interface.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no unicast Ethernet address such as 06:00:ac:1e:00:02")]
pub struct MacAddressError(pub String);

impl MacAddress {
    /// The address of these bytes.
    ///
    /// # Errors
    /// It is a group's.
    pub fn new(bytes: [u8; 6]) -> Result<Self, MacAddressError> {
        let address = Self(bytes);
        if bytes[0] & 1 == 1 {
            return Err(MacAddressError(address.to_string()));
        }
        Ok(address)
    }

    /// Its bytes.
    #[must_use]
    pub fn octets(self) -> [u8; 6] {
        self.0
    }
}

impl fmt::Display for MacAddress {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, f] = self.0;
        write!(formatter, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}")
    }
}

impl fmt::Debug for MacAddress {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, formatter)
    }
}

impl FromStr for MacAddress {
    type Err = MacAddressError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refused = || MacAddressError(text.chars().take(40).collect());
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts.next().filter(|part| part.len() == 2);
            let part = part.filter(|part| part.bytes().all(|c| c.is_ascii_hexdigit()));
            *byte = part
                .and_then(|part| u8::from_str_radix(part, 16).ok())
                .ok_or_else(refused)?;
        }
        if parts.next().is_some() {
            return Err(refused());
        }
        Self::new(bytes)
    }
}

impl TryFrom<String> for MacAddress {
    type Error = MacAddressError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<MacAddress> for String {
    fn from(address: MacAddress) -> Self {
        address.to_string()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn only_addresses_of_one_interface_are_taken() {
        assert!("06:00:ac:1e:00:02".parse::<MacAddress>().is_ok());
        for wrong in [
            "",
            "06:00:ac:1e:00",
            "06:00:ac:1e:00:02:03",
            "6:0:ac:1e:0:2",
            "+6:00:ac:1e:00:02",
            "01:00:5e:00:00:01",
            "ff:ff:ff:ff:ff:ff",
        ] {
            assert!(wrong.parse::<MacAddress>().is_err(), "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn text_reads_back(mut bytes in any::<[u8; 6]>(), noise in ".{0,20}") {
            bytes[0] &= 0xfe;
            let address = MacAddress::new(bytes).unwrap();
            prop_assert_eq!(address.to_string().parse::<MacAddress>().unwrap(), address);
            let _ = noise.parse::<MacAddress>();
        }
    }
}
