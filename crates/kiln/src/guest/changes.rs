//! What changes among a guest's files, as it tells.

use kiln_agent_proto::message::{self, Request, Watch, reply, request};
use kiln_agent_proto::version;

use super::connection::Operation;
use super::{GuestError, GuestLink};
use crate::files::FileChange;
use crate::sandbox::activity::Use;

/// Changes of a guest's files on their way. Dropping it ends the watch.
#[derive(Debug)]
pub struct FileWatch {
    operation: Operation,
    _held: Use,
}

impl GuestLink {
    /// Begins to watch: what changes from now on is told.
    pub(crate) async fn watch(&self, request: Watch, held: Use) -> Result<FileWatch, GuestError> {
        self.speaks(version::WATCH, "watch files").await?;
        let request = Request::of(request::Kind::Watch(request));
        match self.shared.call_once(&request).await? {
            (_, operation, reply::Kind::Done(_)) => Ok(FileWatch {
                operation,
                _held: held,
            }),
            _ => Err(GuestError::Protocol(
                "it answers a watch with something else",
            )),
        }
    }
}

impl FileWatch {
    /// The next change; `None` when what is watched is gone. Cancel-safe.
    ///
    /// # Errors
    /// Why the connection broke: what changed since is not known.
    pub async fn next(&mut self) -> Result<Option<FileChange>, crate::Error> {
        let change = self.operation.reader.next::<message::FileChange>().await;
        let change = change.map_err(GuestError::from)?.ok_or(GuestError::Lost)?;
        let has_ended = change.kind == message::ChangeKind::Ended as i32;
        Ok((!has_ended).then(|| FileChange::from(change)))
    }
}
