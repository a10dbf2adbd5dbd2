//! The verbs of a sandbox's life.

use hyper::Method;

use super::{Client, ClientError, connection, escape, sandbox_path};
use crate::{CreateSandbox, IDEMPOTENCY_HEADER, Sandbox, StopSandbox, UpdateSandbox, WaitFor};

impl Client {
    /// The sandboxes that meet all of these conditions, newest first: `state=running`,
    /// `label=a=b`, `project=shop`, `name=web`, `id=ab`, `image=alpine:3`.
    ///
    /// # Errors
    /// [`ClientError::Refused`] with the daemon's reason, or why it could not be asked.
    pub async fn list(&self, filters: &[String]) -> Result<Vec<Sandbox>, ClientError> {
        let mut path = "/v1/sandboxes".to_owned();
        if !filters.is_empty() {
            let json = serde_json::to_string(filters).map_err(ClientError::Encode)?;
            path.push_str(&format!("?filters={}", escape(&json)));
        }
        self.json(Method::GET, &path, None).await
    }

    /// Creates a sandbox without starting it.
    ///
    /// # Errors
    /// [`ClientError::Refused`] with the daemon's reason, or why it could not be asked.
    pub async fn create(&self, request: &CreateSandbox) -> Result<Sandbox, ClientError> {
        let body = Some(connection::body(request)?);
        self.json(Method::POST, "/v1/sandboxes", body).await
    }

    /// As [`Client::create`]; repeated with the same key and request it answers the sandbox that
    /// was made.
    ///
    /// # Errors
    /// [`ClientError::Refused`] with the daemon's reason, or why it could not be asked.
    pub async fn create_once(
        &self,
        key: &str,
        request: &CreateSandbox,
    ) -> Result<Sandbox, ClientError> {
        let body = Some(connection::body(request)?);
        let (version, path) = (self.version.as_deref(), "/v1/sandboxes");
        let header = [(IDEMPOTENCY_HEADER, key)];
        let sent = connection::send(&self.endpoint, version, Method::POST, path, body, &header);
        connection::read_json(connection::accepted(sent.await?).await?).await
    }

    /// One sandbox.
    ///
    /// # Errors
    /// [`ClientError::Refused`] with the daemon's reason, or why it could not be asked.
    pub async fn get(&self, key: &str) -> Result<Sandbox, ClientError> {
        self.json(Method::GET, &sandbox_path(key, ""), None).await
    }

    /// Changes what was asked of a sandbox.
    ///
    /// # Errors
    /// [`ClientError::Refused`] with the daemon's reason, or why it could not be asked.
    pub async fn update(&self, key: &str, update: &UpdateSandbox) -> Result<Sandbox, ClientError> {
        let body = Some(connection::body(update)?);
        self.json(Method::PATCH, &sandbox_path(key, ""), body).await
    }

    /// Starts a sandbox and waits until it is up. One that is up already stays so.
    ///
    /// # Errors
    /// [`ClientError::Refused`] with the daemon's reason, or why it could not be asked.
    pub async fn start(&self, key: &str) -> Result<Sandbox, ClientError> {
        self.json(Method::POST, &sandbox_path(key, "/start"), None)
            .await
    }

    /// Stops a sandbox and waits until it is down. One that is down already stays so.
    ///
    /// # Errors
    /// [`ClientError::Refused`] with the daemon's reason, or why it could not be asked.
    pub async fn stop(&self, key: &str, request: StopSandbox) -> Result<Sandbox, ClientError> {
        let body = Some(connection::body(&request)?);
        self.json(Method::POST, &sandbox_path(key, "/stop"), body)
            .await
    }

    /// Stops a sandbox if it is up, starts it, and waits until it is up.
    ///
    /// # Errors
    /// [`ClientError::Refused`] with the daemon's reason, or why it could not be asked.
    pub async fn restart(&self, key: &str, request: StopSandbox) -> Result<Sandbox, ClientError> {
        let body = Some(connection::body(&request)?);
        self.json(Method::POST, &sandbox_path(key, "/restart"), body)
            .await
    }

    /// Halts a sandbox. One that is paused already stays so.
    ///
    /// # Errors
    /// [`ClientError::Refused`] with the daemon's reason, or why it could not be asked.
    pub async fn pause(&self, key: &str) -> Result<Sandbox, ClientError> {
        self.json(Method::POST, &sandbox_path(key, "/pause"), None)
            .await
    }

    /// Lets a paused sandbox go on. One that is up already stays so.
    ///
    /// # Errors
    /// [`ClientError::Refused`] with the daemon's reason, or why it could not be asked.
    pub async fn resume(&self, key: &str) -> Result<Sandbox, ClientError> {
        self.json(Method::POST, &sandbox_path(key, "/resume"), None)
            .await
    }

    /// Waits until a sandbox has come to this; the sandbox as it is then, or was last.
    ///
    /// # Errors
    /// [`ClientError::Refused`] with the daemon's reason, or why it could not be asked.
    pub async fn wait(&self, key: &str, what: WaitFor) -> Result<Sandbox, ClientError> {
        let path = sandbox_path(key, &format!("/wait?for={}", what.as_str()));
        self.json(Method::GET, &path, None).await
    }

    /// Removes a sandbox and all it wrote; with `force` also one that is up.
    ///
    /// # Errors
    /// [`ClientError::Refused`] with the daemon's reason, or why it could not be asked.
    pub async fn remove(&self, key: &str, force: bool) -> Result<(), ClientError> {
        let path = sandbox_path(key, if force { "?force=true" } else { "" });
        self.done(Method::DELETE, &path).await
    }
}
