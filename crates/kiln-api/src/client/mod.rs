//! A client of the daemon over its Unix socket.
//!
//! Each request has a connection of its own: connecting costs microseconds, and a broken
//! connection then never means more than the one request.

mod base_images;
mod connection;
mod endpoint;
mod error;
mod events;
mod exec_stream;
mod files;
mod images;
mod log_stream;
mod networks;
mod sandboxes;
mod snapshots;
mod volumes;

use std::path::{Path, PathBuf};

use hyper::Method;
use serde::de::DeserializeOwned;

use endpoint::Endpoint;
pub use error::ClientError;
pub use events::EventStream;
pub use exec_stream::{ExecReceiver, ExecSender, ExecStream, ServerMessage};
pub use log_stream::LogStream;

use tokio::io::{AsyncRead, AsyncWrite};

use crate::{
    AttachRequest, ExecRequest, HostInfo, Network, NetworkPolicy, NetworkProof, PORT_PROTOCOL,
    RunRequest, Session, Version,
};

/// Talks to the daemon behind one socket. Cheap to clone.
///
/// ```no_run
/// # async fn example() -> Result<(), kiln_api::ClientError> {
/// let client = kiln_api::Client::new("/run/kiln/kiln.sock");
/// for sandbox in client.list(&[]).await? {
///     println!("{} {}", sandbox.id, sandbox.state.as_str());
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Client {
    endpoint: Endpoint,
    version: Option<String>,
}

impl Client {
    /// A client of the daemon behind `socket`. Does not connect yet.
    #[must_use]
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self {
            endpoint: Endpoint::Unix(socket.into()),
            version: None,
        }
    }

    /// A client of the daemon at `HOST:PORT` of another host, by TLS. Does not connect yet.
    ///
    /// # Errors
    /// When the address names no host, or `roots` are not PEM certificates.
    pub fn remote(address: &str, roots: &[u8], token: &str) -> Result<Self, ClientError> {
        Ok(Self {
            endpoint: Endpoint::remote(address, roots, token)?,
            version: None,
        })
    }

    /// Has the daemon refuse everything unless it is exactly this version.
    #[must_use]
    pub fn with_version(mut self, version: impl Into<String>) -> Self {
        self.version = Some(version.into());
        self
    }

    /// The socket it connects to; empty for a daemon on another host.
    #[must_use]
    pub fn socket(&self) -> &Path {
        self.endpoint.socket()
    }

    /// Who answers. Works across versions.
    ///
    /// # Errors
    /// When the daemon cannot be reached or does not answer by the contract.
    pub async fn version(&self) -> Result<Version, ClientError> {
        self.json(Method::GET, "/v1/version", None).await
    }

    /// What the daemon can do here.
    ///
    /// # Errors
    /// [`ClientError::Refused`] with the daemon's reason, or why it could not be asked.
    pub async fn info(&self) -> Result<HostInfo, ClientError> {
        self.json(Method::GET, "/v1/info", None).await
    }

    /// The network of a sandbox.
    ///
    /// # Errors
    /// [`ClientError::Refused`] with the daemon's reason, or why it could not be asked.
    pub async fn network(&self, key: &str) -> Result<Network, ClientError> {
        self.json(Method::GET, &sandbox_path(key, "/network"), None)
            .await
    }

    /// Replaces the policy of a sandbox, of a running one at once.
    ///
    /// # Errors
    /// [`ClientError::Refused`] with the daemon's reason, or why it could not be asked.
    pub async fn update_network(
        &self,
        key: &str,
        policy: &NetworkPolicy,
    ) -> Result<Network, ClientError> {
        let body = connection::body(policy)?;
        self.json(Method::PUT, &sandbox_path(key, "/network"), Some(body))
            .await
    }

    /// Proves that the policy of a running sandbox is enforced.
    ///
    /// # Errors
    /// [`ClientError::Refused`] with the daemon's reason, or why it could not be asked.
    pub async fn verify_network(&self, key: &str) -> Result<Vec<NetworkProof>, ClientError> {
        self.json(Method::POST, &sandbox_path(key, "/network/verify"), None)
            .await
    }

    /// Connects to a TCP port of a running guest's own loopback address, through its agent.
    ///
    /// # Errors
    /// [`ClientError::Refused`] with the daemon's reason, or why it could not be asked.
    pub async fn connect_port(
        &self,
        key: &str,
        port: u16,
    ) -> Result<impl AsyncRead + AsyncWrite + Send + Unpin + use<>, ClientError> {
        let path = sandbox_path(key, &format!("/ports/{port}"));
        let version = self.version.as_deref();
        connection::upgrade_to(&self.endpoint, version, &path, PORT_PROTOCOL).await
    }

    /// Commands that run in a sandbox, or ended there.
    ///
    /// # Errors
    /// [`ClientError::Refused`] with the daemon's reason, or why it could not be asked.
    pub async fn sessions(&self, key: &str) -> Result<Vec<Session>, ClientError> {
        self.json(Method::GET, &sandbox_path(key, "/sessions"), None)
            .await
    }

    /// The guest's console: its last `tail` lines, or all that is kept; with `follow` also what
    /// comes.
    ///
    /// # Errors
    /// [`ClientError::Refused`] with the daemon's reason, or why it could not be asked.
    pub async fn logs(
        &self,
        key: &str,
        follow: bool,
        tail: Option<u32>,
    ) -> Result<LogStream, ClientError> {
        let mut path = sandbox_path(key, &format!("/logs?follow={follow}"));
        if let Some(lines) = tail {
            path.push_str(&format!("&tail={lines}"));
        }
        let response = self.send(Method::GET, &path, None).await?;
        Ok(LogStream::new(connection::accepted(response).await?))
    }

    /// Runs a command in a sandbox that is up.
    ///
    /// # Errors
    /// [`ClientError::Refused`] with the daemon's reason, or why it could not be asked.
    pub async fn exec(&self, key: &str, request: &ExecRequest) -> Result<ExecStream, ClientError> {
        self.stream(&sandbox_path(key, "/exec"), request).await
    }

    /// Goes back to a command that runs.
    ///
    /// # Errors
    /// [`ClientError::Refused`] with the daemon's reason, or why it could not be asked.
    pub async fn attach(&self, key: &str, session: u64) -> Result<ExecStream, ClientError> {
        let path = sandbox_path(key, &format!("/sessions/{session}/attach"));
        self.stream(&path, &AttachRequest {}).await
    }

    /// Creates and starts a sandbox, runs a command in it, and removes it; the stream tells of
    /// every step. Unless the request keeps it, the sandbox is removed when the stream breaks.
    ///
    /// # Errors
    /// [`ClientError::Refused`] with the daemon's reason, or why it could not be asked.
    pub async fn run(&self, request: &RunRequest) -> Result<ExecStream, ClientError> {
        self.stream("/v1/run", request).await
    }

    /// Has the daemon end. Its machines run on. Works across versions.
    ///
    /// # Errors
    /// [`ClientError::Refused`] with the daemon's reason, or why it could not be asked.
    pub async fn shutdown(&self) -> Result<(), ClientError> {
        self.done(Method::POST, "/v1/shutdown").await
    }

    async fn json<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<Vec<u8>>,
    ) -> Result<T, ClientError> {
        let response = self.send(method, path, body).await?;
        connection::read_json(connection::accepted(response).await?).await
    }

    async fn done(&self, method: Method, path: &str) -> Result<(), ClientError> {
        let response = self.send(method, path, None).await?;
        connection::accepted(response).await.map(drop)
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Option<Vec<u8>>,
    ) -> Result<connection::Answer, ClientError> {
        let version = self.version.as_deref();
        connection::send(&self.endpoint, version, method, path, body, &[]).await
    }

    async fn stream<T: serde::Serialize + Sync>(
        &self,
        path: &str,
        request: &T,
    ) -> Result<ExecStream, ClientError> {
        let request = connection::body(request)?;
        ExecStream::open(&self.endpoint, self.version.as_deref(), path, request).await
    }
}

/// Path of a sandbox's resource; `key` is escaped, since it comes from a user.
fn sandbox_path(key: &str, rest: &str) -> String {
    format!("/v1/sandboxes/{}{rest}", escape(key))
}

/// A user's text as one segment of a path.
fn escape(key: &str) -> String {
    let mut segment = String::new();
    for byte in key.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' => segment.push(char::from(byte)),
            // A dot is escaped too: `..` would name another resource.
            other => segment.push_str(&format!("%{other:02X}")),
        }
    }
    segment
}

#[cfg(test)]
mod tests {
    use super::sandbox_path;

    #[test]
    fn a_key_never_leaves_its_segment() {
        assert_eq!(
            sandbox_path("web-1_a", "/exec"),
            "/v1/sandboxes/web-1_a/exec"
        );
        assert_eq!(
            sandbox_path("../x?y#z ü", ""),
            "/v1/sandboxes/%2E%2E%2Fx%3Fy%23z%20%C3%BC"
        );
    }
}
