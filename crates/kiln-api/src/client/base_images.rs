//! What can be asked of the daemon's base images.

use hyper::Method;

use super::{Client, ClientError, ExecStream};
use crate::{BaseImage, PullBaseImage};

impl Client {
    /// The base images that are there, the most recently used first.
    ///
    /// # Errors
    /// [`ClientError::Refused`] with the daemon's reason, or why it could not be asked.
    pub async fn base_images(&self) -> Result<Vec<BaseImage>, ClientError> {
        self.json(Method::GET, "/v1/base-images", None).await
    }

    /// Has a base image there. The stream tells of progress, then of the base image.
    ///
    /// # Errors
    /// [`ClientError::Refused`] with the daemon's reason, or why it could not be asked.
    pub async fn pull_base_image(
        &self,
        request: &PullBaseImage,
    ) -> Result<ExecStream, ClientError> {
        self.stream("/v1/base-images/pull", request).await
    }
}
