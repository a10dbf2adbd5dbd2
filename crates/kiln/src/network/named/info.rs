//! What can be told of a network with a name.

use std::net::Ipv4Addr;

use kiln_net::MemberRecord;
use kiln_net::policy::PolicySpec;
use serde::{Deserialize, Serialize};

use super::tunnel::TunnelSpec;
use crate::store::NetworkRow;

/// A network as its owner sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamedNetwork {
    /// Its name.
    pub name: String,
    /// Its addresses.
    pub subnet: String,
    /// The gateway and resolver of its members.
    pub gateway: Ipv4Addr,
    /// What its members may reach.
    pub policy: PolicySpec,
    /// Whether members reach each other.
    pub members_talk: bool,
    /// The only way out, if there is one.
    pub wireguard: Option<TunnelInfo>,
    /// Its bridge on the host, while it is up.
    pub interface: Option<String>,
    /// Those that are in it now.
    pub members: Vec<NetworkMember>,
    /// Sandboxes that name it, running or not.
    pub sandboxes: Vec<String>,
    /// When it was made, in ms since 1970.
    pub created_at_ms: u64,
}

/// A tunnel as its owner sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TunnelInfo {
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
pub struct NetworkMember {
    /// Its id.
    pub sandbox: String,
    /// Its address.
    pub address: Ipv4Addr,
    /// Its interface on the host.
    pub interface: String,
}

impl From<&TunnelSpec> for TunnelInfo {
    fn from(tunnel: &TunnelSpec) -> Self {
        Self {
            interface: tunnel.interface.to_string(),
            managed: tunnel.managed,
            table: tunnel.table,
            route_all: tunnel.route_all,
            fail_closed: tunnel.fail_closed,
        }
    }
}

impl NamedNetwork {
    pub(super) fn of(
        row: NetworkRow,
        members: Vec<(String, MemberRecord)>,
        sandboxes: Vec<String>,
    ) -> Self {
        let member = |(sandbox, record): (String, MemberRecord)| NetworkMember {
            sandbox,
            address: record.address,
            interface: record.tap.to_string(),
        };
        Self {
            subnet: row.spec.subnet.cidr().to_string(),
            gateway: row.spec.subnet.gateway(),
            wireguard: row.spec.tunnel.as_ref().map(TunnelInfo::from),
            policy: row.spec.policy,
            members_talk: row.spec.members_talk,
            interface: None,
            members: members.into_iter().map(member).collect(),
            sandboxes,
            name: row.name,
            created_at_ms: row.created_at_ms,
        }
    }
}
