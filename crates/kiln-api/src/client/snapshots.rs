//! What can be asked of the daemon's snapshots.

use hyper::Method;

use super::{Client, ClientError, connection, escape, sandbox_path};
use crate::{CreateSnapshot, Snapshot};

impl Client {
    /// Makes a snapshot of a sandbox that runs or is paused.
    ///
    /// # Errors
    /// [`ClientError::Refused`] with the daemon's reason, or why it could not be asked.
    pub async fn create_snapshot(
        &self,
        key: &str,
        request: &CreateSnapshot,
    ) -> Result<Snapshot, ClientError> {
        let body = connection::body(request)?;
        self.json(Method::POST, &sandbox_path(key, "/snapshots"), Some(body))
            .await
    }

    /// All snapshots, newest first.
    ///
    /// # Errors
    /// [`ClientError::Refused`] with the daemon's reason, or why it could not be asked.
    pub async fn snapshots(&self) -> Result<Vec<Snapshot>, ClientError> {
        self.json(Method::GET, "/v1/snapshots", None).await
    }

    /// One snapshot.
    ///
    /// # Errors
    /// [`ClientError::Refused`] with the daemon's reason, or why it could not be asked.
    pub async fn snapshot(&self, key: &str) -> Result<Snapshot, ClientError> {
        self.json(Method::GET, &snapshot_path(key), None).await
    }

    /// Removes a snapshot that no sandbox needs.
    ///
    /// # Errors
    /// [`ClientError::Refused`] with the daemon's reason, or why it could not be asked.
    pub async fn remove_snapshot(&self, key: &str) -> Result<(), ClientError> {
        self.done(Method::DELETE, &snapshot_path(key)).await
    }
}

fn snapshot_path(key: &str) -> String {
    format!("/v1/snapshots/{}", escape(key))
}
