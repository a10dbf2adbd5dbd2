//! A guest's files: asked about one at a time, and trees as streams of bytes.
//!
//! The bytes of a tree are passed on as they are: whoever writes them to a file system takes them
//! for hostile, and this room holds no more of them than one frame.

use std::time::Duration;

use bytes::Bytes;
use kiln_agent_proto::message::{
    self, Download, FileEntry, ListFiles, MoveFile, RemoveFile, Reply, Request, StatFile,
    TreeBytes, Upload, reply, request,
};
use tokio::time::timeout;

use super::connection::{Operation, Reader};
use super::{ANSWER, GuestError, GuestLink};
use crate::sandbox::activity::Use;

/// Files of one directory that a guest may have us list.
const MAX_FILES: usize = 100_000;
/// How long a guest may take to remove a large directory, or to write what it was sent.
const LONG_ANSWER: Duration = Duration::from_secs(600);
/// Bytes of a tree in one frame.
const PIECE: usize = 32 * 1024;

/// A tree on its way into a guest.
#[derive(Debug)]
pub struct TreeUpload {
    operation: Operation,
    /// What the agent said before the end: it can only be a refusal.
    answer: Option<Result<(), GuestError>>,
    _held: Option<Use>,
}

/// A tree on its way out of a guest.
#[derive(Debug)]
pub struct TreeDownload {
    operation: Operation,
    _held: Option<Use>,
}

impl GuestLink {
    pub(crate) async fn stat_file(
        &self,
        path: &str,
        follow: bool,
    ) -> Result<FileEntry, GuestError> {
        let path = path.as_bytes().to_vec();
        let request = Request::of(request::Kind::StatFile(StatFile { path, follow }));
        match self.shared.call(&request).await?.2 {
            reply::Kind::File(file) => Ok(file),
            _ => Err(GuestError::Protocol(
                "it answers a stat with something else",
            )),
        }
    }

    pub(crate) async fn list_files(&self, path: &str) -> Result<Vec<FileEntry>, GuestError> {
        let path = path.as_bytes().to_vec();
        let request = Request::of(request::Kind::ListFiles(ListFiles { path }));
        let (_, operation, kind) = self.shared.call(&request).await?;
        timeout(LONG_ANSWER, rest_of_files(operation, kind))
            .await
            .unwrap_or_else(|_| Err(self.shared.too_late(LONG_ANSWER)))
    }

    pub(crate) async fn make_directory(
        &self,
        request: message::MakeDirectory,
    ) -> Result<(), GuestError> {
        self.command(request::Kind::MakeDirectory(request)).await
    }

    pub(crate) async fn move_file(&self, from: &str, to: &str) -> Result<(), GuestError> {
        let (from, to) = (from.as_bytes().to_vec(), to.as_bytes().to_vec());
        let request = Request::of(request::Kind::MoveFile(MoveFile { from, to }));
        // Not repeated: done twice it is refused.
        match self.shared.call_once(&request).await?.2 {
            reply::Kind::Done(_) => Ok(()),
            _ => Err(GuestError::Protocol(
                "it answers a move with something else",
            )),
        }
    }

    pub(crate) async fn remove_file(&self, path: &str, recursive: bool) -> Result<(), GuestError> {
        let path = path.as_bytes().to_vec();
        let request = Request::of(request::Kind::RemoveFile(RemoveFile { path, recursive }));
        let call = async {
            let up = self.shared.up_after(0).await?;
            up.streams.call(&request).await
        };
        let answer = timeout(LONG_ANSWER, call).await;
        match answer
            .unwrap_or_else(|_| Err(self.shared.too_late(LONG_ANSWER)))?
            .1
        {
            reply::Kind::Done(_) => Ok(()),
            _ => Err(GuestError::Protocol(
                "it answers a removal with something else",
            )),
        }
    }

    /// Begins to write a tree.
    pub(crate) async fn upload(
        &self,
        request: Upload,
        held: Use,
    ) -> Result<TreeUpload, GuestError> {
        let request = Request::of(request::Kind::Upload(request));
        let (_, operation, kind) = self.shared.call_once(&request).await?;
        begun(&kind)?;
        Ok(TreeUpload {
            operation,
            answer: None,
            _held: Some(held),
        })
    }

    /// Begins to read a tree.
    pub(crate) async fn download(
        &self,
        request: Download,
        held: Use,
    ) -> Result<TreeDownload, GuestError> {
        let request = Request::of(request::Kind::Download(request));
        let (_, operation, kind) = self.shared.call_once(&request).await?;
        begun(&kind)?;
        Ok(TreeDownload {
            operation,
            _held: Some(held),
        })
    }
}

fn begun(kind: &reply::Kind) -> Result<(), GuestError> {
    match kind {
        reply::Kind::Done(_) => Ok(()),
        _ => Err(GuestError::Protocol(
            "it answers a copy with something else",
        )),
    }
}

async fn rest_of_files(
    mut operation: Operation,
    mut kind: reply::Kind,
) -> Result<Vec<FileEntry>, GuestError> {
    let mut all = Vec::new();
    loop {
        let reply::Kind::Files(list) = kind else {
            return Err(GuestError::Protocol(
                "it answers a list with something else",
            ));
        };
        if list.files.is_empty() && !list.last {
            return Err(GuestError::Protocol("a list without end"));
        }
        all.extend(list.files);
        if all.len() > MAX_FILES {
            return Err(GuestError::Protocol("too many files in one directory"));
        }
        if list.last {
            return Ok(all);
        }
        kind = operation.reply().await?;
    }
}

impl TreeUpload {
    /// Sends the next bytes of the tree, at the pace of the guest. Not cancel-safe.
    ///
    /// # Errors
    /// What the guest's file system refused, or why the connection broke.
    pub async fn send(&mut self, bytes: &[u8]) -> Result<(), crate::Error> {
        for piece in bytes.chunks(PIECE) {
            self.send_piece(piece).await?;
        }
        Ok(())
    }

    async fn send_piece(&mut self, piece: &[u8]) -> Result<(), GuestError> {
        if let Some(answer) = &self.answer {
            return answer.clone();
        }
        let bytes = TreeBytes {
            data: piece.to_vec(),
        };
        let Operation { reader, writer, .. } = &mut self.operation;
        writer.queue(&bytes)?;
        tokio::select! {
            // A guest that refuses does not read on: its answer has to be heard meanwhile.
            biased;
            answer = answer(reader) => {
                let refused = answer.and(Err(GuestError::Protocol("it ends before the tree does")));
                self.answer = Some(refused.clone());
                refused
            }
            sent = writer.flush() => Ok(sent?),
        }
    }

    /// Waits until the guest has written all of it.
    ///
    /// # Errors
    /// As [`TreeUpload::send`].
    pub async fn finish(mut self) -> Result<(), crate::Error> {
        if let Some(answer) = self.answer.take() {
            return Ok(answer?);
        }
        let written = timeout(LONG_ANSWER, answer(&mut self.operation.reader)).await;
        Ok(written.unwrap_or(Err(GuestError::Deadline {
            waited: LONG_ANSWER,
            reason: "it is still writing".to_owned(),
        }))?)
    }
}

/// What became of an upload. Cancel-safe.
async fn answer(reader: &mut Reader) -> Result<(), GuestError> {
    let reply = reader.next::<Reply>().await?;
    match reply.ok_or(GuestError::Lost)?.kind {
        Some(reply::Kind::Done(_)) => Ok(()),
        Some(reply::Kind::Error(error)) => Err(error.into()),
        _ => Err(GuestError::Protocol(
            "it answers a copy with something else",
        )),
    }
}

impl TreeDownload {
    /// The next bytes of the tree; `None` when the guest sends no more. Whether the tree is whole
    /// is told by its own end. Cancel-safe.
    ///
    /// # Errors
    /// Why the connection broke. Waits as long as [`ANSWER`] for a guest that does not go on.
    pub async fn next(&mut self) -> Result<Option<Bytes>, crate::Error> {
        let piece = timeout(ANSWER, self.operation.reader.next::<TreeBytes>()).await;
        let piece = piece.map_err(|_| GuestError::Deadline {
            waited: ANSWER,
            reason: "the tree does not go on".to_owned(),
        })?;
        let piece = piece.map_err(GuestError::from)?;
        Ok(piece.map(|piece| Bytes::from(piece.data)))
    }
}
