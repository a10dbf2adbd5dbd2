//! Trees on their way: read here and sent, or received and written here.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use futures_util::stream;
use kiln_api::{LogStream, UploadTo};
use kiln_tree::wire::{Decoder, encode};
use kiln_tree::{Follow, Item, Owner, ReadError, TreeReader, TreeWriter, WriteOptions};
use serde::Serialize;
use tokio::sync::mpsc;

use super::CopyError;
use crate::{Failure, start::Daemon};

/// Pieces that are read ahead of the daemon.
const BACKLOG: usize = 4;
/// Small items are gathered up to this size.
const PIECE: usize = 32 * 1024;

/// What was copied.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Copied {
    entries: u64,
    bytes: u64,
    /// Devices, sockets and pipes, which are not copied.
    skipped: Vec<PathBuf>,
}

impl Copied {
    fn count(&mut self, item: &Item) {
        match item {
            Item::Entry(_) => self.entries += 1,
            Item::Data(data) => self.bytes += data.len() as u64,
            _ => {}
        }
    }

    pub(crate) fn skipped(&self) -> &[PathBuf] {
        &self.skipped
    }
}

/// Copies a file or tree of this machine.
pub(crate) async fn to_sandbox(
    daemon: &Daemon<'_>,
    key: &str,
    from: &Path,
    to: &UploadTo,
    follow: Follow,
) -> Result<Copied, Failure> {
    let reader = TreeReader::open(from, follow).map_err(CopyError::from)?;
    let reading = Reading::default();
    let (sender, receiver) = mpsc::channel(BACKLOG);
    let outcome = reading.clone();
    let read = tokio::task::spawn_blocking(move || outcome.run(reader, &sender));
    let pieces = stream::unfold(receiver, async |mut receiver: mpsc::Receiver<Bytes>| {
        let piece = receiver.recv().await?;
        Some((piece, receiver))
    });
    let sent = daemon.client.upload(key, to, pieces).await;
    read.await.map_err(|_| CopyError::Died)?;
    // Why it could not be read says more than that the guest got no whole tree.
    reading.result()?;
    sent.map_err(CopyError::from)?;
    Ok(reading.copied())
}

/// What the reading thread has to tell. Clones share it.
#[derive(Clone, Debug, Default)]
struct Reading(Arc<Mutex<(Copied, Option<ReadError>)>>);

impl Reading {
    fn run(&self, mut reader: TreeReader, pieces: &mpsc::Sender<Bytes>) {
        let mut ended = false;
        while !ended {
            let mut bytes = Vec::with_capacity(PIECE);
            while bytes.len() < PIECE && !ended {
                let item = self.next(&mut reader);
                ended = matches!(item, Item::End | Item::Failed(_));
                encode(&item, &mut bytes);
            }
            // Nobody takes it any more: the daemon's answer tells why.
            if pieces.blocking_send(bytes.into()).is_err() {
                return;
            }
        }
    }

    fn next(&self, reader: &mut TreeReader) -> Item {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match reader.next_item() {
            Ok(item) => {
                state.0.count(&item);
                item
            }
            Err(error) => {
                let words = error.to_string();
                state.1 = Some(error);
                Item::Failed(words)
            }
        }
    }

    fn result(&self) -> Result<(), CopyError> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.1.take().map_or(Ok(()), |error| Err(error.into()))
    }

    fn copied(&self) -> Copied {
        let state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.0.clone()
    }
}

/// Writes a tree of a sandbox here. It is hostile: [`TreeWriter`] keeps it in its place.
pub(crate) async fn from_sandbox(
    mut tree: LogStream,
    to: &Path,
    keep_owner: bool,
) -> Result<Copied, CopyError> {
    let options = WriteOptions {
        owner: if keep_owner {
            Owner::AsRead
        } else {
            Owner::Writer
        },
        keep_set_id: false,
    };
    let mut writer = TreeWriter::new(to, options);
    let mut decoder = Decoder::default();
    let mut copied = Copied::default();
    while !writer.has_ended() {
        let Some(bytes) = tree.next().await? else {
            break;
        };
        decoder.push(&bytes);
        while let Some(item) = decoder.next_item()? {
            copied.count(&item);
            writer.put(&item)?;
        }
    }
    copied.skipped = writer.finish()?;
    Ok(copied)
}
