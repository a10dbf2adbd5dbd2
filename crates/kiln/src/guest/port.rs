//! A connection to a port in a guest, by its agent.

use std::io;

use futures_util::io::{ReadHalf, WriteHalf};
use kiln_agent_proto::frame::{FrameError, FrameReader, FrameWriter};
use kiln_agent_proto::limits::CHUNK;
use kiln_agent_proto::message::PortData;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::OwnedSemaphorePermit;

/// A connection to a port in a guest. What a guest sends is hostile, but only bytes.
#[derive(Debug)]
pub struct PortStream {
    pub(super) reader: FrameReader<ReadHalf<yamux::Stream>>,
    pub(super) writer: FrameWriter<WriteHalf<yamux::Stream>>,
    /// One of the connection's streams, given back with this.
    pub(super) _permit: OwnedSemaphorePermit,
}

impl PortStream {
    /// Carries bytes both ways, at the pace of the slower side, until both directions have ended.
    ///
    /// # Errors
    /// When one of the two broke.
    pub async fn relay(mut self, stream: impl AsyncRead + AsyncWrite) -> io::Result<()> {
        let (mut from, mut to) = tokio::io::split(stream);
        let inward = async {
            let mut buffer = vec![0; CHUNK];
            loop {
                let length = from.read(&mut buffer).await?;
                if length == 0 {
                    return self.writer.close().await.map_err(broken);
                }
                let data = buffer[..length].to_vec();
                self.writer.send(&PortData { data }).await.map_err(broken)?;
            }
        };
        let outward = async {
            while let Some(PortData { data }) = self.reader.next().await.map_err(broken)? {
                to.write_all(&data).await?;
            }
            to.shutdown().await
        };
        tokio::try_join!(inward, outward).map(drop)
    }
}

fn broken(error: FrameError) -> io::Error {
    match error {
        FrameError::Io(error) => error,
        other => io::Error::other(other),
    }
}
