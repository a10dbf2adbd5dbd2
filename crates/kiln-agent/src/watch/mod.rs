//! Telling the host what changes among the guest's files.
//!
//! At the pace of the host: what it does not fetch is kept by the kernel, which drops what is too
//! much and says so. The memory for it is bounded by the number of directories, over all watches.

mod tree;

use kiln_agent_proto::frame::FrameError;
use kiln_agent_proto::message::{ChangeKind, Done, ErrorCode, FileChange, Reply, Watch, reply};

use crate::fd::Fd;
use crate::files::FileError;
use crate::serve::ended;
use crate::session::client::{Reader, Writer};
pub(crate) use tree::Directories;
use tree::Tree;

/// Tells of changes until the host wants no more of them, or what is watched is gone.
pub(crate) async fn serve(
    request: Watch,
    directories: Directories,
    mut reader: Reader,
    mut writer: Writer,
) -> Result<(), FrameError> {
    // On a thread of its own: a large tree takes its time.
    let opened = tokio::task::spawn_blocking(move || Tree::open(&request, directories)).await;
    let opened = opened.unwrap_or_else(|error| {
        let text = error.to_string();
        Err(FileError::new(ErrorCode::Internal, text))
    });
    let tree = match opened {
        Ok(tree) => tree,
        Err(error) => {
            writer.send(&error.reply()).await?;
            return writer.close().await;
        }
    };
    writer.send(&Reply::of(reply::Kind::Done(Done {}))).await?;
    tokio::select! {
        told = tell(tree, &mut writer) => told?,
        gone = ended(&mut reader) => gone?,
    }
    writer.close().await
}

async fn tell(mut tree: Tree, writer: &mut Writer) -> Result<(), FrameError> {
    let ready = Fd::new(tree.descriptor()?)?;
    while !tree.is_over() {
        ready.readable().await?;
        let events = tree.read()?;
        let changes;
        (tree, changes) = if tree.has_to_walk(&events) {
            tokio::task::spawn_blocking(move || tree.understand(events))
                .await
                .map_err(std::io::Error::other)?
        } else {
            tree.understand(events)
        };
        for change in changes {
            writer.send(&change).await?;
        }
    }
    let ended = FileChange {
        kind: ChangeKind::Ended as i32,
        ..FileChange::default()
    };
    writer.send(&ended).await
}
