//! What a host's owner asks of the network of a sandbox.

use kiln_net::policy::PolicySpec;

use super::{NetworkInfo, Proof};
use crate::error::Error;
use crate::host::Host;
use crate::sandbox::driver::Command;

impl Host {
    /// The network of a sandbox.
    ///
    /// # Errors
    /// [`NotFound`](crate::ErrorCode::NotFound), [`Ambiguous`](crate::ErrorCode::Ambiguous).
    pub async fn network(&self, key: &str) -> Result<NetworkInfo, Error> {
        let view = self.view(key)?;
        NetworkInfo::of(&view.row, view.network.as_ref()).await
    }

    /// Exchanges the policy of a sandbox: of a running one at once and whole, else for its next
    /// start. On failure the old policy is in force as before.
    ///
    /// # Errors
    /// [`InvalidNetworkPolicy`](crate::ErrorCode::InvalidNetworkPolicy) with every fault, [`PortTaken`](crate::ErrorCode::PortTaken),
    /// [`NetworkSetupFailed`](crate::ErrorCode::NetworkSetupFailed).
    pub async fn update_network(
        &self,
        key: &str,
        policy: PolicySpec,
    ) -> Result<NetworkInfo, Error> {
        self.ask(key, |reply| Command::UpdateNetwork { policy, reply })
            .await?;
        self.network(key).await
    }

    /// Proves that the policy of a running sandbox is enforced, by asking from both sides.
    ///
    /// # Errors
    /// [`InvalidState`](crate::ErrorCode::InvalidState) when it does not run or has no network.
    pub async fn verify_network(&self, key: &str) -> Result<Vec<Proof>, Error> {
        let link = self.link(key, "verify the network of")?;
        let view = self.view(key)?;
        super::verify(&view.row.id, view.network.as_ref(), &link).await
    }
}
