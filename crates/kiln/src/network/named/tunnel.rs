//! A tunnel as it is asked for and as it is stored: the one without its key.

use std::fmt;

use kiln_net::subnet::InterfaceName;
use kiln_net::wireguard::{Config, DEFAULT_TABLE, EgressSpec};
use serde::{Deserialize, Serialize};

use crate::error::{Error, ErrorCode};

/// What the names of our own tunnels begin with, where the user chose none.
const PREFIX: &str = "wg-";

/// Text that is never shown.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Keeps it.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    pub(super) fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// Which tunnel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Tunnel {
    /// Made by Kiln of `wg-quick` text, and deleted with the network.
    Managed {
        /// Its interface; `wg-` and the network's name when unset.
        interface: Option<String>,
        /// The text, with its keys.
        config: Secret,
    },
    /// An interface of somebody else: used, never changed, never deleted.
    Existing {
        /// Its name.
        interface: String,
    },
}

/// The way out of a network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WireGuard {
    /// Which tunnel.
    pub tunnel: Tunnel,
    /// The routing table; a free one from 51820 on when unset.
    pub table: Option<u32>,
    /// Everything goes through the tunnel; else what its peers allow.
    pub route_all: bool,
    /// What cannot go through the tunnel is dropped.
    pub fail_closed: bool,
}

impl WireGuard {
    /// Everything through an interface that exists, or nowhere.
    pub fn existing(interface: impl Into<String>) -> Self {
        Self {
            tunnel: Tunnel::Existing {
                interface: interface.into(),
            },
            table: None,
            route_all: true,
            fail_closed: true,
        }
    }
}

/// What is stored of a tunnel.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct TunnelSpec {
    pub(crate) interface: InterfaceName,
    pub(crate) managed: bool,
    pub(crate) table: u32,
    pub(crate) route_all: bool,
    pub(crate) fail_closed: bool,
}

impl TunnelSpec {
    /// The tunnel to bring up, with the text of one of ours.
    pub(super) fn egress(&self, text: Option<&Secret>) -> Result<EgressSpec, Error> {
        let interface = self.interface.clone();
        let tunnel = match text {
            None => kiln_net::wireguard::Tunnel::Existing { interface },
            Some(text) => kiln_net::wireguard::Tunnel::Managed {
                interface,
                config: parse(text)
                    .map_err(|fault| Error::new(ErrorCode::InvalidWireGuard, fault))?,
            },
        };
        Ok(EgressSpec {
            tunnel,
            table: self.table,
            route_all: self.route_all,
            fail_closed: self.fail_closed,
        })
    }
}

/// A tunnel that may be made; its table may still have to be chosen.
pub(super) struct Checked {
    pub(super) interface: InterfaceName,
    pub(super) text: Option<Secret>,
    pub(super) table: Option<u32>,
    pub(super) route_all: bool,
    pub(super) fail_closed: bool,
}

impl Checked {
    /// As it is stored, with the first table that nobody has among `taken` if none was asked for.
    pub(super) fn spec(&self, taken: &[u32]) -> TunnelSpec {
        let free = (DEFAULT_TABLE..).find(|table| !taken.contains(table));
        TunnelSpec {
            interface: self.interface.clone(),
            managed: self.text.is_some(),
            table: self.table.or(free).unwrap_or(DEFAULT_TABLE),
            route_all: self.route_all,
            fail_closed: self.fail_closed,
        }
    }
}

/// What is wrong with it is told without a word of it.
pub(super) fn check(wanted: &WireGuard, network: &str) -> Result<Checked, (ErrorCode, String)> {
    let (name, text) = match &wanted.tunnel {
        Tunnel::Existing { interface } => (interface.clone(), None),
        Tunnel::Managed { interface, config } => {
            parse(config).map_err(|fault| (ErrorCode::InvalidWireGuard, fault))?;
            let derived = || format!("{PREFIX}{network}");
            (
                interface.clone().unwrap_or_else(derived),
                Some(config.clone()),
            )
        }
    };
    let interface = InterfaceName::new(name).map_err(|error| {
        let fault = format!("wireguard.interface: {error}");
        (ErrorCode::InvalidInterfaceName, fault)
    })?;
    Ok(Checked {
        interface,
        text,
        table: wanted.table,
        route_all: wanted.route_all,
        fail_closed: wanted.fail_closed,
    })
}

fn parse(text: &Secret) -> Result<Config, String> {
    text.reveal()
        .parse::<Config>()
        .map_err(|error| format!("wireguard.config: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "yAnz5TF+lXXJte14tji3zlMNq+hd2rYUIgJBgB3fBmk=";

    fn managed(rest: &str) -> WireGuard {
        WireGuard {
            tunnel: Tunnel::Managed {
                interface: None,
                config: Secret::new(format!(
                    "[Interface]\nPrivateKey = {KEY}\n{rest}[Peer]\nPublicKey = {KEY}\n"
                )),
            },
            ..WireGuard::existing("")
        }
    }

    #[test]
    fn a8_1_the_key_is_never_shown() {
        let good = managed("Address = 10.0.0.2/32\n");
        assert!(!format!("{good:?}").contains(KEY));
        let checked = check(&good, "lan").expect("good");
        assert_eq!(checked.interface.as_str(), "wg-lan");
        let stored = serde_json::to_string(&checked.spec(&[])).expect("json");
        assert!(!stored.contains(KEY), "{stored}");
        for bad in [
            "PostUp = sh\n",
            "Oops = 1\n",
            "MTU = 100\n",
            "Address = x\n",
        ] {
            let (code, fault) = check(&managed(bad), "lan").err().expect(bad);
            assert_eq!(code, ErrorCode::InvalidWireGuard, "{fault}");
            assert!(!fault.contains(KEY), "{fault}");
        }
    }

    #[test]
    fn a8_3_tables_are_chosen_where_none_is_asked_for() {
        let checked = check(&WireGuard::existing("wg0"), "lan").expect("good");
        assert_eq!(checked.spec(&[]).table, 51820);
        assert_eq!(checked.spec(&[51820, 51821]).table, 51822);
        assert!(checked.route_all && checked.fail_closed && checked.text.is_none());
        let long = WireGuard::existing("sixteen-letters!");
        let (code, _) = check(&long, "lan").err().expect("too long");
        assert_eq!(code, ErrorCode::InvalidInterfaceName);
    }
}
