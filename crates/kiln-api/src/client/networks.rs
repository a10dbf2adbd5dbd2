//! What can be asked of the daemon's networks with names.

use hyper::Method;

use super::{Client, ClientError, connection, escape};
use crate::{CreateNetwork, NamedNetwork, NetworkPolicy};

impl Client {
    /// All networks with names.
    ///
    /// # Errors
    /// [`ClientError::Refused`] with the daemon's reason, or why it could not be asked.
    pub async fn networks(&self) -> Result<Vec<NamedNetwork>, ClientError> {
        self.json(Method::GET, "/v1/networks", None).await
    }

    /// One network with a name.
    ///
    /// # Errors
    /// [`ClientError::Refused`] with the daemon's reason, or why it could not be asked.
    pub async fn named_network(&self, name: &str) -> Result<NamedNetwork, ClientError> {
        self.json(Method::GET, &path(name), None).await
    }

    /// Makes a network and brings it up.
    ///
    /// # Errors
    /// [`ClientError::Refused`] with the daemon's reason, or why it could not be asked.
    pub async fn create_network(
        &self,
        request: &CreateNetwork,
    ) -> Result<NamedNetwork, ClientError> {
        let body = connection::body(request)?;
        self.json(Method::POST, "/v1/networks", Some(body)).await
    }

    /// Replaces the policy of a network, at once for all that are in it.
    ///
    /// # Errors
    /// [`ClientError::Refused`] with the daemon's reason, or why it could not be asked.
    pub async fn update_named_network(
        &self,
        name: &str,
        policy: &NetworkPolicy,
    ) -> Result<NamedNetwork, ClientError> {
        let body = connection::body(policy)?;
        self.json(Method::PUT, &path(name), Some(body)).await
    }

    /// Removes a network that no sandbox has.
    ///
    /// # Errors
    /// [`ClientError::Refused`] with the daemon's reason, or why it could not be asked.
    pub async fn remove_network(&self, name: &str) -> Result<(), ClientError> {
        self.done(Method::DELETE, &path(name)).await
    }
}

fn path(name: &str) -> String {
    format!("/v1/networks/{}", escape(name))
}
