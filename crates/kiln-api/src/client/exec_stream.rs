//! A running command as its client has it: what goes in, what comes out.

use bytes::Bytes;
use futures_util::{
    SinkExt, StreamExt,
    stream::{SplitSink, SplitStream},
};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        Error as WsError, Message,
        error::ProtocolError,
        protocol::{Role, WebSocketConfig},
    },
};

use super::{ClientError, connection, endpoint::Endpoint};
use crate::stream::{
    Channel, ClientControl, MAX_REQUEST, READ_BUFFER, ServerControl, StreamError, WRITE_BUFFER,
    decode, encode,
};

type Socket = WebSocketStream<connection::Upgraded>;

/// Both directions of a stream.
#[derive(Debug)]
pub struct ExecStream {
    /// To the command.
    pub sender: ExecSender,
    /// From the command.
    pub receiver: ExecReceiver,
}

/// Sends to the command, at the pace it reads.
#[derive(Debug)]
pub struct ExecSender {
    sink: SplitSink<Socket, Message>,
}

/// Receives from the command.
#[derive(Debug)]
pub struct ExecReceiver {
    stream: SplitStream<Socket>,
}

/// One message from the daemon.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServerMessage {
    /// Bytes of the command.
    Output(Channel, Bytes),
    /// Anything else.
    Control(ServerControl),
}

impl ExecStream {
    pub(super) async fn open(
        endpoint: &Endpoint,
        version: Option<&str>,
        path: &str,
        request: Vec<u8>,
    ) -> Result<Self, ClientError> {
        let text = String::from_utf8(request)
            .map_err(|_| ClientError::answer("the request is not text"))?;
        let upgraded = connection::upgrade(endpoint, version, path).await?;
        let mut socket =
            WebSocketStream::from_raw_socket(upgraded, Role::Client, Some(config())).await;
        socket.send(Message::text(text)).await.map_err(lost)?;
        let (sink, stream) = socket.split();
        Ok(Self {
            sender: ExecSender { sink },
            receiver: ExecReceiver { stream },
        })
    }
}

/// Buffers as small as the messages, so that a stream costs little and a slow reader stops its
/// writer early.
fn config() -> WebSocketConfig {
    WebSocketConfig::default()
        .read_buffer_size(READ_BUFFER)
        .write_buffer_size(WRITE_BUFFER)
        // One message above the buffer must fit: the request, the largest there is.
        .max_write_buffer_size(WRITE_BUFFER + 2 * MAX_REQUEST)
        .max_message_size(Some(MAX_REQUEST))
        .max_frame_size(Some(MAX_REQUEST))
}

impl ExecSender {
    /// Sends bytes for standard input, at most [`MAX_CHUNK`](crate::stream::MAX_CHUNK).
    ///
    /// # Errors
    /// When there are too many, or the connection broke.
    pub async fn stdin(&mut self, bytes: &[u8]) -> Result<(), ClientError> {
        let message = encode(Channel::Stdin, bytes)?;
        self.sink.send(Message::Binary(message)).await.map_err(lost)
    }

    /// Sends a control message.
    ///
    /// # Errors
    /// When the connection broke.
    pub async fn control(&mut self, control: &ClientControl) -> Result<(), ClientError> {
        let text = serde_json::to_string(control).map_err(ClientError::Encode)?;
        self.sink.send(Message::text(text)).await.map_err(lost)
    }

    /// Gives up on the command. The daemon ends the stream once it has cleaned up, so read until
    /// [`ExecReceiver::next`] gives `None`.
    ///
    /// # Errors
    /// When the connection broke.
    pub async fn close(&mut self) -> Result<(), ClientError> {
        match self.sink.close().await {
            Ok(()) | Err(WsError::ConnectionClosed | WsError::AlreadyClosed) => Ok(()),
            Err(error) => Err(lost(error)),
        }
    }
}

impl ExecReceiver {
    /// The next message, `None` when the daemon has ended the stream. Cancel-safe.
    ///
    /// # Errors
    /// When the connection broke, or a message is not one of the contract.
    pub async fn next(&mut self) -> Result<Option<ServerMessage>, ClientError> {
        loop {
            match self.stream.next().await {
                // The close frame is the daemon's last word; the socket may be gone behind it.
                None | Some(Ok(Message::Close(_))) => return Ok(None),
                Some(Ok(message)) => {
                    if let Some(message) = read(message)? {
                        return Ok(Some(message));
                    }
                }
                Some(Err(WsError::ConnectionClosed | WsError::AlreadyClosed)) => return Ok(None),
                Some(Err(error)) => return Err(lost(error)),
            }
        }
    }
}

/// What a message says; nothing for those of the WebSocket itself, which are answered below us.
fn read(message: Message) -> Result<Option<ServerMessage>, StreamError> {
    match message {
        Message::Binary(bytes) => {
            let (channel, bytes) = decode(bytes)?;
            Ok(Some(ServerMessage::Output(channel, bytes)))
        }
        Message::Text(text) => Ok(Some(ServerMessage::Control(ServerControl::parse(&text)?))),
        Message::Ping(_) | Message::Pong(_) | Message::Close(_) | Message::Frame(_) => Ok(None),
    }
}

fn lost(error: WsError) -> ClientError {
    match error {
        WsError::Capacity(_) => StreamError::TooLarge(MAX_REQUEST).into(),
        // The cause says nothing that "lost" does not.
        WsError::Protocol(ProtocolError::ResetWithoutClosingHandshake) => ClientError::Lost(None),
        other => ClientError::lost(other),
    }
}
