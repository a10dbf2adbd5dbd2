//! Networks with a name, which sandboxes share, as they are asked for and told.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::NetworkPolicy;

/// A network to make.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields, default)]
pub struct CreateNetwork {
    /// 1 to 63 of `a-z`, `0-9` and inner dashes; not `auto`, `default` or `none`.
    pub name: String,
    /// Its addresses, an IPv4 network of /1 to /30; a free one when unset.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subnet: Option<String>,
    /// What its members may reach; ports are published, and limits set, per sandbox.
    pub policy: NetworkPolicy,
    /// Whether members reach each other.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub members_talk: bool,
    /// The only way out, if there is to be one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wireguard: Option<WireGuardRequest>,
}

/// A tunnel to make, or to use: exactly one of `config` and `existing`.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields, default)]
pub struct WireGuardRequest {
    /// `wg-quick` text with its keys, which no answer ever repeats.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub config: Option<String>,
    /// An interface that exists: used, never changed, never deleted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub existing: Option<String>,
    /// With `config`: the interface to make; `wg-` and the network's name when unset.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interface: Option<String>,
    /// The routing table; a free one from 51820 on when unset.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub table: Option<u32>,
    /// Everything goes through the tunnel (when unset, too), or only what its peers allow.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub route_all: Option<bool>,
    /// What cannot go through the tunnel is dropped (when unset, too).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fail_closed: Option<bool>,
}

impl fmt::Debug for WireGuardRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WireGuardRequest")
            .field("config", &self.config.as_ref().map(|_| "…"))
            .field("existing", &self.existing)
            .field("interface", &self.interface)
            .field("table", &self.table)
            .field("route_all", &self.route_all)
            .field("fail_closed", &self.fail_closed)
            .finish()
    }
}

/// A network as it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct NamedNetwork {
    /// Its name.
    pub name: String,
    /// Its addresses.
    pub subnet: String,
    /// The gateway and resolver of its members.
    pub gateway: String,
    /// What its members may reach.
    pub policy: NetworkPolicy,
    /// Whether members reach each other.
    pub members_talk: bool,
    /// The only way out, if there is one.
    #[serde(default)]
    pub wireguard: Option<WireGuard>,
    /// Its bridge on the host, while it is up.
    #[serde(default)]
    pub interface: Option<String>,
    /// Those that are in it now.
    pub members: Vec<NetworkMember>,
    /// Sandboxes that have it, running or not.
    pub sandboxes: Vec<String>,
    /// When it was made, in milliseconds of Unix time.
    pub created_at_ms: u64,
}

/// A tunnel as it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct WireGuard {
    /// Its interface.
    pub interface: String,
    /// Whether it is Kiln's own.
    pub managed: bool,
    /// The routing table.
    pub table: u32,
    /// Whether everything goes through it.
    pub route_all: bool,
    /// Whether what cannot is dropped.
    pub fail_closed: bool,
}

/// A sandbox in a network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct NetworkMember {
    /// Its id.
    pub sandbox: String,
    /// Its address.
    pub address: String,
    /// Its interface on the host.
    pub interface: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a8_1_a_key_is_not_shown_by_accident() {
        let request = CreateNetwork {
            wireguard: Some(WireGuardRequest {
                config: Some("PrivateKey = secret".to_owned()),
                ..WireGuardRequest::default()
            }),
            ..CreateNetwork::default()
        };
        assert!(!format!("{request:?}").contains("secret"));
        let sent = serde_json::to_string(&request).unwrap();
        let read: CreateNetwork = serde_json::from_str(&sent).unwrap();
        assert_eq!(read, request);
        let misspelt = r#"{"name": "lan", "wireguard": {"fail_close": true}}"#;
        assert!(serde_json::from_str::<CreateNetwork>(misspelt).is_err());
    }
}
