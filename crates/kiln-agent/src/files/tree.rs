//! Trees on a stream: read here and sent, or received and written here.
//!
//! Nothing is held but one piece: a host that does not read stops the reading of files, and files
//! that are slow to write stop the host, both by the windows of the multiplexer.

use kiln_agent_proto::frame::FrameError;
use kiln_agent_proto::message::{Done, Download, ErrorCode, Reply, TreeBytes, Upload, reply};
use kiln_tree::wire::{Decoder, encode};
use kiln_tree::{Follow, Item, Owner, TreeReader, TreeWriter, WriteOptions};

use super::{FileError, absolute};
use crate::process::resolve_user;
use crate::session::client::{Reader, Writer};

/// Pieces are gathered up to this size: a frame holds one and its head.
const PIECE: usize = 24 * 1024;

/// Sends a tree.
pub(crate) async fn download(request: Download, mut writer: Writer) -> Result<(), FrameError> {
    let mut reader = match open(&request) {
        Ok(reader) => reader,
        Err(error) => {
            writer.send(&error.reply()).await?;
            return writer.close().await;
        }
    };
    writer.send(&done()).await?;
    let mut ended = false;
    while !ended {
        let mut data = Vec::with_capacity(PIECE);
        while data.len() < PIECE && !ended {
            let item = match reader.next_item() {
                Ok(item) => item,
                Err(error) => Item::Failed(in_words(&error)),
            };
            ended = matches!(item, Item::End | Item::Failed(_));
            encode(&item, &mut data);
        }
        writer.send(&TreeBytes { data }).await?;
        // Others have their turn, also when everything is quick.
        tokio::task::yield_now().await;
    }
    writer.close().await
}

fn open(request: &Download) -> Result<TreeReader, FileError> {
    let path = absolute(&request.path)?;
    let follow = if request.follow {
        Follow::Yes
    } else {
        Follow::No
    };
    TreeReader::open(&path, follow).map_err(|error| {
        let missing = std::fs::symlink_metadata(&path)
            .is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound);
        let code = if missing {
            ErrorCode::NoSuchFile
        } else {
            ErrorCode::FileRefused
        };
        FileError::new(code, in_words(&error))
    })
}

/// Receives a tree and writes it.
pub(crate) async fn upload(
    request: Upload,
    mut reader: Reader,
    mut writer: Writer,
) -> Result<(), FrameError> {
    let tree = match begin(&request) {
        Ok(tree) => tree,
        Err(error) => {
            writer.send(&error.reply()).await?;
            return writer.close().await;
        }
    };
    writer.send(&done()).await?;
    let answer = match receive(tree, &mut reader).await? {
        Ok(()) => done(),
        Err(error) => error.reply(),
    };
    writer.send(&answer).await?;
    writer.close().await
}

fn begin(request: &Upload) -> Result<TreeWriter, FileError> {
    let path = absolute(&request.path)?;
    let owner = if request.keep_owner {
        Owner::AsRead
    } else {
        let user = resolve_user(&request.user)
            .map_err(|text| FileError::new(ErrorCode::NoSuchUser, text))?;
        Owner::Fixed {
            uid: user.uid,
            gid: user.gid,
        }
    };
    let options = WriteOptions {
        owner,
        // The host may set what it likes; it could as well run a command that does.
        keep_set_id: true,
    };
    Ok(TreeWriter::new(&path, options))
}

async fn receive(
    mut tree: TreeWriter,
    reader: &mut Reader,
) -> Result<Result<(), FileError>, FrameError> {
    let refused = |error: &dyn std::error::Error| {
        Ok(Err(FileError::new(ErrorCode::FileRefused, in_words(error))))
    };
    let mut decoder = Decoder::default();
    while !tree.has_ended() {
        let Some(piece) = reader.next::<TreeBytes>().await? else {
            return refused(&kiln_tree::WriteError::Truncated);
        };
        decoder.push(&piece.data);
        loop {
            match decoder.next_item() {
                Ok(None) => break,
                Ok(Some(item)) => {
                    if let Err(error) = tree.put(&item) {
                        return refused(&error);
                    }
                }
                Err(error) => return refused(&error),
            }
        }
        tokio::task::yield_now().await;
    }
    Ok(Ok(()))
}

fn in_words(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    }
}

fn done() -> Reply {
    Reply::of(reply::Kind::Done(Done {}))
}
