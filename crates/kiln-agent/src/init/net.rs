//! The guest's network card, as the host says: `kiln.net=ADDRESS/PREFIX,GATEWAY,RESOLVER,MTU`.
//!
//! What the host says is a value ([`Network`]), apart from how it comes here: a restored guest
//! that must move to other addresses can be told by a message.

use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::path::Path;
use std::str::FromStr;

use crate::console;
use crate::sys::network::{self, Card};

const CARD: &str = "eth0";
/// Least that IPv4 works with (RFC 791), and what fits a virtio card.
const MTUS: std::ops::RangeInclusive<u32> = 576..=65_535;
const RESOLV_CONF: &str = "/etc/resolv.conf";
/// On the same filesystem, so that it can be renamed over whatever was there.
const NEW_RESOLV_CONF: &str = "/etc/.resolv.conf.kiln";

/// What the host says of the network card.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Network {
    pub(crate) address: Ipv4Addr,
    pub(crate) prefix: u8,
    pub(crate) gateway: Ipv4Addr,
    pub(crate) resolver: Ipv4Addr,
    pub(crate) mtu: u32,
}

impl FromStr for Network {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let parts: Vec<&str> = text.split(',').take(5).collect();
        let [address, gateway, resolver, mtu] = parts[..] else {
            return Err(());
        };
        let (address, prefix) = address.split_once('/').ok_or(())?;
        let number = |text: &str| {
            let plain = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
            plain.then_some(text)?.parse::<u32>().ok()
        };
        Ok(Self {
            address: address.parse().map_err(|_| ())?,
            prefix: number(prefix)
                .and_then(|prefix| u8::try_from(prefix).ok())
                .filter(|prefix| (1..=30).contains(prefix))
                .ok_or(())?,
            gateway: gateway.parse().map_err(|_| ())?,
            resolver: resolver.parse().map_err(|_| ())?,
            mtu: number(mtu).filter(|mtu| MTUS.contains(mtu)).ok_or(())?,
        })
    }
}

impl Network {
    fn netmask(&self) -> Ipv4Addr {
        Ipv4Addr::from_bits(u32::MAX << (32 - u32::from(self.prefix.clamp(1, 32))))
    }
}

/// Sets the card up. What fails is reported; the guest is usable without.
pub(crate) fn apply(network: &Network) {
    no_ipv6();
    let card = Card {
        name: CARD,
        address: network.address,
        netmask: network.netmask(),
        gateway: network.gateway,
        mtu: network.mtu,
    };
    report("set up the network card", network::bring_up(&card));
    report("name the resolver", write_resolv_conf(network.resolver));
}

/// There is none outside: without it nobody waits for answers that cannot come.
fn no_ipv6() {
    // A kernel without IPv6 has no such file.
    let _ = fs::write(format!("/proc/sys/net/ipv6/conf/{CARD}/disable_ipv6"), "1");
}

/// Renamed into place: images have links there that lead to services that do not run.
fn write_resolv_conf(resolver: Ipv4Addr) -> io::Result<()> {
    if !Path::new("/etc").is_dir() {
        fs::create_dir("/etc")?;
    }
    fs::write(NEW_RESOLV_CONF, format!("nameserver {resolver}\n"))?;
    fs::rename(NEW_RESOLV_CONF, RESOLV_CONF)
}

fn report(what: &str, result: io::Result<()>) {
    if let Err(error) = result {
        console::warn(format_args!("cannot {what}: {error}"));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_hosts_words_are_understood() {
        let network: Network = "198.19.255.2/30,198.19.255.1,198.19.255.1,1420"
            .parse()
            .unwrap();
        assert_eq!(network.address, Ipv4Addr::new(198, 19, 255, 2));
        assert_eq!(network.netmask(), Ipv4Addr::new(255, 255, 255, 252));
        assert_eq!((network.prefix, network.mtu), (30, 1420));
    }

    #[test]
    fn everything_else_is_refused() {
        for text in [
            "",
            "198.19.255.2",
            "198.19.255.2/30",
            "198.19.255.2/30,198.19.255.1,198.19.255.1",
            "198.19.255.2/30,198.19.255.1,198.19.255.1,1420,1",
            "198.19.255.2/0,198.19.255.1,198.19.255.1,1420",
            "198.19.255.2/31,198.19.255.1,198.19.255.1,1420",
            "198.19.255.2/+30,198.19.255.1,198.19.255.1,1420",
            "198.19.255.2/30,gateway,198.19.255.1,1420",
            "198.19.255.2/30,198.19.255.1,198.19.255.1,100",
            "198.19.255.2/30,198.19.255.1,198.19.255.1,99999999999",
        ] {
            assert_eq!(text.parse::<Network>(), Err(()), "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_survived(text in "[0-9./,a]{0,80}") {
            if let Ok(network) = text.parse::<Network>() {
                prop_assert!(MTUS.contains(&network.mtu));
                let _ = network.netmask();
            }
        }
    }
}
