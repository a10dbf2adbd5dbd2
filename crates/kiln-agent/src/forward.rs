//! A connection to a port of this guest, carried on a stream of the host's. Needs no network card.

use std::io;
use std::net::Ipv4Addr;
use std::time::Duration;

use kiln_agent_proto::frame::FrameError;
use kiln_agent_proto::limits::CHUNK;
use kiln_agent_proto::message::{Connect, Done, ErrorCode, PortData, Reply, reply};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::session::client::{Reader, Writer};

/// A full queue of a server that does not accept answers nothing at all.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Connects and carries bytes until both directions have ended, or one broke.
pub(crate) async fn serve(
    connect: Connect,
    reader: Reader,
    mut writer: Writer,
) -> Result<(), FrameError> {
    let stream = match dial(connect.port).await {
        Ok(stream) => stream,
        Err((code, text)) => {
            writer.send(&Reply::error(code, text)).await?;
            return writer.close().await;
        }
    };
    writer.send(&Reply::of(reply::Kind::Done(Done {}))).await?;
    carry(stream, reader, writer).await
}

async fn dial(port: u32) -> Result<TcpStream, (ErrorCode, String)> {
    let Some(port) = u16::try_from(port).ok().filter(|port| *port != 0) else {
        return Err((ErrorCode::BadRequest, format!("{port} is no port")));
    };
    let dialled = TcpStream::connect((Ipv4Addr::LOCALHOST, port));
    let outcome = tokio::time::timeout(CONNECT_TIMEOUT, dialled)
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
    outcome.map_err(|error| {
        let text = format!("port {port} of the guest: {error}");
        (ErrorCode::PortClosed, text)
    })
}

/// The directions end one by one: a client that has asked everything still wants the answer.
async fn carry(
    stream: TcpStream,
    mut reader: Reader,
    mut writer: Writer,
) -> Result<(), FrameError> {
    let (mut from, mut to) = stream.into_split();
    let inward = async {
        while let Some(PortData { data }) = reader.next().await? {
            to.write_all(&data).await?;
        }
        Ok::<(), FrameError>(to.shutdown().await?)
    };
    let outward = async {
        let mut buffer = vec![0; CHUNK];
        loop {
            let length = from.read(&mut buffer).await?;
            if length == 0 {
                return writer.close().await;
            }
            let data = buffer[..length].to_vec();
            writer.send(&PortData { data }).await?;
        }
    };
    tokio::try_join!(inward, outward).map(drop)
}
