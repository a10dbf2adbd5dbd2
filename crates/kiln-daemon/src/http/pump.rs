//! A client and a command, connected: both directions at once, neither waiting for the other.
//!
//! Three things run side by side. *Outward* sends output at the pace the client reads. *Inward*
//! reads the client without pause, so that its signals and its end are seen at once; what it
//! sends for standard input waits in a buffer that the contract's window bounds. *Feeding* takes
//! that buffer to the command at the pace it reads, which gives the client new window.

use std::convert::Infallible;

use axum::extract::ws::Message;
use bytes::Bytes;
use futures_util::{SinkExt, StreamExt};
use kiln::{ExecInput, ExecOutput, TerminalSize};
use kiln_api::stream::{
    Channel, ClientControl, MAX_CHUNK, MAX_MESSAGE, ServerControl, StreamError, decode, encode,
};

use super::{
    error::ApiError,
    input::{Taken, Waiting},
    stream::{End, Sink, Source, say},
};
use crate::v1::convert;

/// Where a client's input goes. Clones go to the same command, so that a signal has a way around
/// input that waits.
pub(super) trait Input: Clone {
    fn send(&mut self, input: ExecInput) -> impl Future<Output = Result<(), kiln::Error>> + Send;
}

impl Input for kiln::ExecInputSender {
    async fn send(&mut self, input: ExecInput) -> Result<(), kiln::Error> {
        Ok(Self::send(self, input).await?)
    }
}

/// Where a command's output comes from; cancel-safe.
pub(super) trait Output {
    fn next(&mut self) -> impl Future<Output = Result<Option<ExecOutput>, kiln::Error>> + Send;
}

impl Output for kiln::ExecOutputReceiver {
    async fn next(&mut self) -> Result<Option<ExecOutput>, kiln::Error> {
        Ok(Self::next(self).await?)
    }
}

/// Connects them until one of them ends.
pub(super) async fn pump(
    source: &mut Source,
    sink: &mut Sink,
    input: impl Input,
    output: impl Output,
) -> End {
    let waiting = Waiting::new();
    tokio::select! {
        end = outward(output, &waiting, sink) => end,
        end = inward(source, input.clone(), &waiting) => end,
        never = feed(&waiting, input) => match never {},
    }
}

async fn outward(mut output: impl Output, waiting: &Waiting, sink: &mut Sink) -> End {
    loop {
        let sent = tokio::select! {
            item = output.next() => match item {
                Ok(Some(ExecOutput::Stdout(bytes))) => send(sink, Channel::Stdout, &bytes).await,
                Ok(Some(ExecOutput::Stderr(bytes))) => send(sink, Channel::Stderr, &bytes).await,
                Ok(Some(ExecOutput::Lost(bytes))) => say(sink, &ServerControl::Lost { bytes }).await,
                Ok(Some(ExecOutput::Exited(exit))) => return End::Exited(convert::exit_status(exit)),
                Ok(None) => return End::Failed(ApiError::internal("a session ended without a status")),
                Err(error) => return End::Failed(error.into()),
            },
            bytes = waiting.window() => say(sink, &ServerControl::Window { bytes }).await,
        };
        if let Err(end) = sent {
            return end;
        }
    }
}

/// Sends bytes in messages of the contract's size.
async fn send(sink: &mut Sink, channel: Channel, bytes: &[u8]) -> Result<(), End> {
    for chunk in bytes.chunks(MAX_CHUNK) {
        let message = encode(channel, chunk).map_err(|error| End::Failed(error.into()))?;
        sink.send(Message::Binary(message))
            .await
            .map_err(|_| End::Gone)?;
    }
    Ok(())
}

/// Takes what waits to the command, as long as it takes it; after that, nowhere.
async fn feed(waiting: &Waiting, mut input: impl Input) -> Infallible {
    let mut deaf = false;
    loop {
        let (item, size) = match waiting.take().await {
            Taken::Bytes(bytes) => (ExecInput::Stdin(bytes.clone()), bytes.len()),
            Taken::Eof => (ExecInput::StdinEof, 0),
        };
        if !deaf && let Err(error) = input.send(item).await {
            tracing::debug!(error = error.message(), "a command takes no more input");
            deaf = true;
        }
        waiting.was_taken(size);
    }
}

async fn inward(source: &mut Source, mut input: impl Input, waiting: &Waiting) -> End {
    loop {
        let message = match source.next().await {
            None | Some(Ok(Message::Close(_)) | Err(_)) => return End::Gone,
            Some(Ok(message)) => message,
        };
        let heard = match understand(message) {
            Ok(Said::Nothing) => Ok(()),
            Ok(Said::Detach) => return End::Detached,
            Ok(Said::Stdin(bytes)) => waiting.add(&bytes),
            Ok(Said::Eof) => waiting.end(),
            Ok(Said::Now(item)) => {
                // A command that has just ended takes no signal; its output tells of the end.
                if let Err(error) = input.send(item).await {
                    tracing::debug!(error = error.message(), "a signal came too late");
                }
                Ok(())
            }
            Err(error) => Err(error),
        };
        if let Err(error) = heard {
            return End::Failed(error.into());
        }
    }
}

/// What a client's message means.
enum Said {
    Stdin(Bytes),
    Eof,
    Now(ExecInput),
    Detach,
    Nothing,
}

fn understand(message: Message) -> Result<Said, StreamError> {
    match message {
        Message::Binary(bytes) => match decode(bytes)? {
            (Channel::Stdin, bytes) => Ok(Said::Stdin(bytes)),
            (other, _) => Err(StreamError::UnknownChannel(other as u8)),
        },
        Message::Text(text) if text.len() > MAX_MESSAGE => Err(StreamError::TooLarge(text.len())),
        Message::Text(text) => Ok(match ClientControl::parse(&text)? {
            ClientControl::Resize { rows, cols } => {
                Said::Now(ExecInput::Resize(TerminalSize { rows, cols }))
            }
            ClientControl::Signal { signal } => Said::Now(ExecInput::Signal(signal)),
            ClientControl::Eof {} => Said::Eof,
            ClientControl::Detach {} => Said::Detach,
        }),
        Message::Ping(_) | Message::Pong(_) | Message::Close(_) => Ok(Said::Nothing),
    }
}
