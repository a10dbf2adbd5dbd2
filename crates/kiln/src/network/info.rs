//! What can be told of a sandbox's network.

use std::net::Ipv4Addr;

use kiln_net::policy::PolicySpec;
use serde::{Deserialize, Serialize};

use super::attachment::{Attachment, Facts};
use super::spec::NetworkMode;
use crate::error::Error;
use crate::store::SandboxRow;

/// A sandbox's network as its owner sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkInfo {
    /// What was asked for.
    pub mode: NetworkMode,
    /// The network that it shares, if it does: that one's policy holds.
    pub name: Option<String>,
    /// The policy: in force while it runs, else for its next start.
    pub policy: PolicySpec,
    /// Whether there is a network now.
    pub connected: bool,
    /// Its interface on the host.
    pub interface: Option<String>,
    /// Where the host reaches the guest.
    pub address: Option<Ipv4Addr>,
    /// What the guest calls itself.
    pub guest_address: Option<Ipv4Addr>,
    /// The guest's gateway and resolver.
    pub gateway: Option<Ipv4Addr>,
    /// The largest packet that passes whole.
    pub mtu: Option<u32>,
}

impl NetworkInfo {
    pub(crate) async fn of(
        row: &SandboxRow,
        attachment: Option<&Attachment>,
    ) -> Result<Self, Error> {
        let mut info = Self {
            mode: row.spec.network.mode,
            name: row.spec.network.name.clone(),
            policy: row.spec.network.policy.clone(),
            connected: false,
            interface: None,
            address: None,
            guest_address: None,
            gateway: None,
            mtu: None,
        };
        if let Some(attachment) = attachment {
            let Facts {
                interface,
                address,
                guest,
            } = attachment.facts().await?;
            info.connected = true;
            info.interface = Some(interface.to_string());
            info.address = Some(address);
            info.guest_address = Some(guest.address);
            info.gateway = Some(guest.gateway);
            info.mtu = Some(guest.mtu);
        }
        Ok(info)
    }
}
