//! What a host's owner asks of networks with names, and of ports without any network.

use kiln_net::policy::PolicySpec;

use super::named::{NamedNetwork, NewNetwork};
use crate::error::Error;
use crate::guest::PortStream;
use crate::host::Host;

impl Host {
    /// Makes a network that sandboxes can share, and brings it up.
    ///
    /// # Errors
    /// [`ErrorCode::InvalidSpec`](crate::ErrorCode::InvalidSpec),
    /// [`InvalidSubnet`](crate::ErrorCode::InvalidSubnet),
    /// [`InvalidNetworkPolicy`](crate::ErrorCode::InvalidNetworkPolicy),
    /// [`InvalidWireGuard`](crate::ErrorCode::InvalidWireGuard) and
    /// [`NameTaken`](crate::ErrorCode::NameTaken) before anything is made;
    /// [`NetworkUnavailable`](crate::ErrorCode::NetworkUnavailable),
    /// [`BridgeFailed`](crate::ErrorCode::BridgeFailed) and
    /// [`WireGuardFailed`](crate::ErrorCode::WireGuardFailed), and nothing is left then.
    pub async fn create_network(&self, new: NewNetwork) -> Result<NamedNetwork, Error> {
        self.shared.networks.create_named(new).await
    }

    /// All networks with names.
    ///
    /// # Errors
    /// [`ErrorCode::Host`](crate::ErrorCode::Host) when they cannot be read.
    pub async fn networks(&self) -> Result<Vec<NamedNetwork>, Error> {
        self.shared.networks.list_named().await
    }

    /// One network with a name.
    ///
    /// # Errors
    /// [`ErrorCode::NetworkNotFound`](crate::ErrorCode::NetworkNotFound).
    pub async fn named_network(&self, name: &str) -> Result<NamedNetwork, Error> {
        self.shared.networks.get_named(name).await
    }

    /// Exchanges the policy of a network: at once and whole for all that are in it. On failure the
    /// old policy is in force as before.
    ///
    /// # Errors
    /// [`ErrorCode::NetworkNotFound`](crate::ErrorCode::NetworkNotFound),
    /// [`InvalidNetworkPolicy`](crate::ErrorCode::InvalidNetworkPolicy) with every fault,
    /// [`BridgeFailed`](crate::ErrorCode::BridgeFailed).
    pub async fn update_named_network(
        &self,
        name: &str,
        policy: PolicySpec,
    ) -> Result<NamedNetwork, Error> {
        self.shared.networks.update_named(name, policy).await
    }

    /// Removes a network that no sandbox names.
    ///
    /// # Errors
    /// [`ErrorCode::NetworkNotFound`](crate::ErrorCode::NetworkNotFound),
    /// [`NetworkInUse`](crate::ErrorCode::NetworkInUse),
    /// [`BridgeFailed`](crate::ErrorCode::BridgeFailed) when something of it is left on the host.
    pub async fn remove_network(&self, name: &str) -> Result<(), Error> {
        self.shared.networks.remove_named(name).await
    }

    /// Connects to a TCP port of a running guest's own loopback address, through its agent: without
    /// a network card, without privilege, whatever its network policy.
    ///
    /// # Errors
    /// [`ErrorCode::InvalidState`](crate::ErrorCode::InvalidState) when it does not run,
    /// [`GuestPortClosed`](crate::ErrorCode::GuestPortClosed) when nothing listens there,
    /// [`AgentTooOld`](crate::ErrorCode::AgentTooOld),
    /// [`AgentUnreachable`](crate::ErrorCode::AgentUnreachable).
    pub async fn connect(&self, key: &str, port: u16) -> Result<PortStream, Error> {
        Ok(self.link(key, "connect to")?.connect(port).await?)
    }
}
