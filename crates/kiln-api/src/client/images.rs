//! What can be asked of the daemon's images.

use hyper::Method;

use super::{Client, ClientError, ExecStream, LogStream, connection, escape};
use crate::{Image, ImportImage, PruneImages, PrunedImages, PullImage, RemovedImage, TagImage};

impl Client {
    /// The images that are there; with `all` also those without a name.
    ///
    /// # Errors
    /// [`ClientError::Refused`] with the daemon's reason, or why it could not be asked.
    pub async fn images(&self, all: bool) -> Result<Vec<Image>, ClientError> {
        self.json(Method::GET, &format!("/v1/images?all={all}"), None)
            .await
    }

    /// One image, by name, id or the beginning of an id.
    ///
    /// # Errors
    /// [`ClientError::Refused`] with the daemon's reason, or why it could not be asked.
    pub async fn image(&self, key: &str) -> Result<Image, ClientError> {
        self.json(Method::GET, &image_path(key, ""), None).await
    }

    /// Fetches an image. The stream tells of progress, then of the image.
    ///
    /// # Errors
    /// [`ClientError::Refused`] with the daemon's reason, or why it could not be asked.
    pub async fn pull_image(&self, request: &PullImage) -> Result<ExecStream, ClientError> {
        self.stream("/v1/pull", request).await
    }

    /// Takes the images of a file. The stream tells of progress, then of the images.
    ///
    /// # Errors
    /// [`ClientError::Refused`] with the daemon's reason, or why it could not be asked.
    pub async fn import_image(&self, request: &ImportImage) -> Result<ExecStream, ClientError> {
        self.stream("/v1/import", request).await
    }

    /// Gives an image one more name.
    ///
    /// # Errors
    /// [`ClientError::Refused`] with the daemon's reason, or why it could not be asked.
    pub async fn tag_image(&self, key: &str, request: &TagImage) -> Result<Image, ClientError> {
        let body = connection::body(request)?;
        self.json(Method::POST, &image_path(key, "/tag"), Some(body))
            .await
    }

    /// Takes a name away, and with its last one the image; with `force` an image of several names.
    ///
    /// # Errors
    /// [`ClientError::Refused`] with the daemon's reason, or why it could not be asked.
    pub async fn remove_image(&self, key: &str, force: bool) -> Result<RemovedImage, ClientError> {
        let path = image_path(key, if force { "?force=true" } else { "" });
        self.json(Method::DELETE, &path, None).await
    }

    /// Throws away what nobody needs.
    ///
    /// # Errors
    /// [`ClientError::Refused`] with the daemon's reason, or why it could not be asked.
    pub async fn prune_images(&self, request: PruneImages) -> Result<PrunedImages, ClientError> {
        let body = connection::body(&request)?;
        self.json(Method::POST, "/v1/prune", Some(body)).await
    }

    /// An image's root filesystem as a tar archive, as it comes.
    ///
    /// # Errors
    /// [`ClientError::Refused`] with the daemon's reason, or why it could not be asked.
    pub async fn export_image(&self, key: &str) -> Result<LogStream, ClientError> {
        self.bytes(&image_path(key, "/export")).await
    }

    /// An image as an OCI archive, as it comes.
    ///
    /// # Errors
    /// [`ClientError::Refused`] with the daemon's reason, or why it could not be asked.
    pub async fn save_image(&self, key: &str) -> Result<LogStream, ClientError> {
        self.bytes(&image_path(key, "/save")).await
    }

    async fn bytes(&self, path: &str) -> Result<LogStream, ClientError> {
        let response = self.send(Method::GET, path, None).await?;
        Ok(LogStream::new(connection::accepted(response).await?))
    }
}

fn image_path(key: &str, rest: &str) -> String {
    format!("/v1/images/{}{rest}", escape(key))
}

#[cfg(test)]
mod tests {
    use super::image_path;

    #[test]
    fn a_name_with_slashes_is_one_segment() {
        assert_eq!(
            image_path("localhost:5000/a/b@sha256:0", "/tag"),
            "/v1/images/localhost%3A5000%2Fa%2Fb%40sha256%3A0/tag"
        );
    }
}
