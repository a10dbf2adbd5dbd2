//! What can be asked of the daemon's volumes.

use hyper::Method;

use super::{Client, ClientError, connection, escape};
use crate::{CreateVolume, ExportVolume, ResizeVolume, Volume};

impl Client {
    /// All volumes, by name.
    ///
    /// # Errors
    /// [`ClientError::Refused`] with the daemon's reason, or why it could not be asked.
    pub async fn volumes(&self) -> Result<Vec<Volume>, ClientError> {
        self.json(Method::GET, "/v1/volumes", None).await
    }

    /// One volume.
    ///
    /// # Errors
    /// [`ClientError::Refused`] with the daemon's reason, or why it could not be asked.
    pub async fn volume(&self, name: &str) -> Result<Volume, ClientError> {
        self.json(Method::GET, &volume_path(name, ""), None).await
    }

    /// Makes a volume.
    ///
    /// # Errors
    /// [`ClientError::Refused`] with the daemon's reason, or why it could not be asked.
    pub async fn create_volume(&self, request: &CreateVolume) -> Result<Volume, ClientError> {
        let body = connection::body(request)?;
        self.json(Method::POST, "/v1/volumes", Some(body)).await
    }

    /// Grows a volume.
    ///
    /// # Errors
    /// [`ClientError::Refused`] with the daemon's reason, or why it could not be asked.
    pub async fn resize_volume(
        &self,
        name: &str,
        request: ResizeVolume,
    ) -> Result<Volume, ClientError> {
        let body = connection::body(&request)?;
        self.json(Method::POST, &volume_path(name, "/resize"), Some(body))
            .await
    }

    /// Copies a volume into a new file.
    ///
    /// # Errors
    /// [`ClientError::Refused`] with the daemon's reason, or why it could not be asked.
    pub async fn export_volume(
        &self,
        name: &str,
        request: &ExportVolume,
    ) -> Result<(), ClientError> {
        let body = connection::body(request)?;
        let path = volume_path(name, "/export");
        let response = self.send(Method::POST, &path, Some(body)).await?;
        connection::accepted(response).await.map(drop)
    }

    /// Removes a volume and all it holds.
    ///
    /// # Errors
    /// [`ClientError::Refused`] with the daemon's reason, or why it could not be asked.
    pub async fn remove_volume(&self, name: &str) -> Result<(), ClientError> {
        self.done(Method::DELETE, &volume_path(name, "")).await
    }
}

fn volume_path(name: &str, rest: &str) -> String {
    format!("/v1/volumes/{}{rest}", escape(name))
}
