//! Files of a sandbox.

use bytes::Bytes;
use futures_util::Stream;
use http_body_util::{BodyExt, StreamBody};
use hyper::{Method, body::Frame};

use super::{Client, ClientError, EventStream, connection, escape, sandbox_path};
use crate::{FileChange, FileInfo, LogStream, MakeDirectory, MoveFile, Stats, UploadTo};

impl Client {
    /// What a path of a sandbox names; with `follow`, what a symbolic link points to.
    ///
    /// # Errors
    /// [`ClientError::Refused`] with the daemon's reason, or why it could not be asked.
    pub async fn stat(&self, key: &str, path: &str, follow: bool) -> Result<FileInfo, ClientError> {
        let query = format!("/files?path={}&follow={follow}", escape(path));
        self.json(Method::GET, &sandbox_path(key, &query), None)
            .await
    }

    /// The files of a directory, by name.
    ///
    /// # Errors
    /// [`ClientError::Refused`] with the daemon's reason, or why it could not be asked.
    pub async fn list_directory(
        &self,
        key: &str,
        path: &str,
    ) -> Result<Vec<FileInfo>, ClientError> {
        let query = format!("/files/list?path={}", escape(path));
        self.json(Method::GET, &sandbox_path(key, &query), None)
            .await
    }

    /// What changes at a path of a sandbox from now on: a file, or the files of a directory, with
    /// `recursive` also of those in it. Ends when that is gone.
    ///
    /// # Errors
    /// [`ClientError::Refused`] with the daemon's reason, or why it could not be asked.
    pub async fn watch_files(
        &self,
        key: &str,
        path: &str,
        recursive: bool,
    ) -> Result<EventStream<FileChange>, ClientError> {
        let query = format!("/files/watch?path={}&recursive={recursive}", escape(path));
        let answer = self
            .send(Method::GET, &sandbox_path(key, &query), None)
            .await?;
        let answer = connection::accepted(answer).await?;
        Ok(EventStream::new(LogStream::new(answer)))
    }

    /// Makes a directory.
    ///
    /// # Errors
    /// [`ClientError::Refused`] with the daemon's reason, or why it could not be asked.
    pub async fn make_directory(
        &self,
        key: &str,
        request: &MakeDirectory,
    ) -> Result<(), ClientError> {
        let body = Some(connection::body(request)?);
        let path = sandbox_path(key, "/files/mkdir");
        let answer = self.send(Method::POST, &path, body).await?;
        connection::accepted(answer).await.map(drop)
    }

    /// Gives a file or directory another path.
    ///
    /// # Errors
    /// [`ClientError::Refused`] with the daemon's reason, or why it could not be asked.
    pub async fn move_file(&self, key: &str, request: &MoveFile) -> Result<(), ClientError> {
        let body = Some(connection::body(request)?);
        let path = sandbox_path(key, "/files/move");
        let answer = self.send(Method::POST, &path, body).await?;
        connection::accepted(answer).await.map(drop)
    }

    /// Removes a file, an empty directory, or with `recursive` a whole one.
    ///
    /// # Errors
    /// [`ClientError::Refused`] with the daemon's reason, or why it could not be asked.
    pub async fn remove_file(
        &self,
        key: &str,
        path: &str,
        recursive: bool,
    ) -> Result<(), ClientError> {
        let query = format!("/files?path={}&recursive={recursive}", escape(path));
        self.done(Method::DELETE, &sandbox_path(key, &query)).await
    }

    /// Writes a tree, in the format of `kiln-tree`, into a sandbox.
    ///
    /// # Errors
    /// [`ClientError::Refused`] with the daemon's reason, or why it could not be asked.
    pub async fn upload(
        &self,
        key: &str,
        to: &UploadTo,
        tree: impl Stream<Item = Bytes> + Send + 'static,
    ) -> Result<(), ClientError> {
        use futures_util::StreamExt;
        let mut query = format!("/tree?path={}", escape(&to.path));
        if let Some(user) = &to.user {
            query.push_str(&format!("&user={}", escape(user)));
        }
        query.push_str(&format!("&keep_owner={}", to.keep_owner));
        let frames = tree.map(|bytes| Ok::<_, std::convert::Infallible>(Frame::data(bytes)));
        let body = StreamBody::new(frames).boxed_unsync();
        let version = self.version.as_deref();
        let path = sandbox_path(key, &query);
        let sent =
            connection::send_stream(&self.endpoint, version, Method::PUT, &path, body).await?;
        connection::accepted(sent).await.map(drop)
    }

    /// Reads a tree, in the format of `kiln-tree`. It comes from the guest: take it for hostile, as
    /// `kiln_tree::TreeWriter` does.
    ///
    /// # Errors
    /// [`ClientError::Refused`] with the daemon's reason, or why it could not be asked.
    pub async fn download(
        &self,
        key: &str,
        path: &str,
        follow: bool,
    ) -> Result<LogStream, ClientError> {
        let query = format!("/tree?path={}&follow={follow}", escape(path));
        let path = sandbox_path(key, &query);
        let answer = self.send(Method::GET, &path, None).await?;
        Ok(LogStream::new(connection::accepted(answer).await?))
    }

    /// What a running sandbox uses.
    ///
    /// # Errors
    /// [`ClientError::Refused`] with the daemon's reason, or why it could not be asked.
    pub async fn stats(&self, key: &str) -> Result<Stats, ClientError> {
        self.json(Method::GET, &sandbox_path(key, "/stats"), None)
            .await
    }

    /// Ends a session of a sandbox with all its processes.
    ///
    /// # Errors
    /// [`ClientError::Refused`] with the daemon's reason, or why it could not be asked.
    pub async fn kill(&self, key: &str, session: u64) -> Result<(), ClientError> {
        let path = sandbox_path(key, &format!("/sessions/{session}"));
        self.done(Method::DELETE, &path).await
    }
}
