//! A client of QEMU's control socket.
//!
//! Replies are matched to commands by number; events go their own way. One reader task takes
//! everything that QEMU says as soon as it says it, so QEMU never waits for this side. A command
//! whose deadline passes leaves QEMU's state unknown: close the machine.

mod message;

use std::collections::HashMap;
use std::io::{ErrorKind, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, Interest};
use tokio::net::UnixStream;
use tokio::sync::{broadcast, oneshot};
use tokio::task::AbortHandle;
use tokio::time::timeout;

pub use message::{Event, LineSplitter, LineTooLong, MAX_LINE_BYTES, Message, MessageError};

/// How many events may wait for a slow listener before it loses the oldest.
const EVENT_BACKLOG: usize = 64;

/// Why a command has no answer.
#[derive(Debug, thiserror::Error)]
pub enum QmpError {
    /// QEMU refused it.
    #[error("QEMU: {0}")]
    Refused(String),
    /// No answer in time.
    #[error("no answer within {0:?}")]
    Deadline(Duration),
    /// The connection is broken, or was never QEMU's.
    #[error("the control socket broke")]
    Broken(#[source] std::io::Error),
}

/// A connection to QEMU, ready for commands.
#[derive(Debug)]
pub struct Qmp {
    stream: Arc<UnixStream>,
    /// Held while a command is written, so that two do not mix.
    writing: tokio::sync::Mutex<Writing>,
    shared: Arc<Shared>,
    reader: AbortHandle,
    version: String,
}

#[derive(Debug, Default)]
struct Writing {
    next_id: u64,
    /// A command was given up in the middle of a line: nothing can follow it.
    torn: bool,
}

type Answer = Result<Value, QmpError>;
/// Who waits for the answer to which command.
type Pending = HashMap<u64, oneshot::Sender<Answer>>;

#[derive(Debug)]
struct Shared {
    /// `None` once the connection has ended.
    pending: Mutex<Option<Pending>>,
    events: broadcast::Sender<Event>,
}

impl Qmp {
    /// Greets QEMU on a connected socket.
    ///
    /// # Errors
    /// No greeting in time, or not QEMU's.
    pub async fn start(mut stream: UnixStream, deadline: Duration) -> Result<Self, QmpError> {
        let mut lines = LineSplitter::default();
        let version = timeout(deadline, read_greeting(&mut stream, &mut lines))
            .await
            .map_err(|_| QmpError::Deadline(deadline))??;
        let stream = Arc::new(stream);
        let shared = Arc::new(Shared {
            pending: Mutex::new(Some(HashMap::new())),
            events: broadcast::channel(EVENT_BACKLOG).0,
        });
        let reader =
            tokio::spawn(read_all(Arc::clone(&stream), lines, Arc::clone(&shared))).abort_handle();
        let qmp = Self {
            stream,
            writing: tokio::sync::Mutex::default(),
            shared,
            reader,
            version,
        };
        qmp.command("qmp_capabilities", Value::Null, deadline)
            .await?;
        Ok(qmp)
    }

    /// QEMU's version from its greeting.
    #[must_use]
    pub fn version(&self) -> &str {
        &self.version
    }

    /// What happens in the machine from now on.
    #[must_use]
    pub fn events(&self) -> broadcast::Receiver<Event> {
        self.shared.events.subscribe()
    }

    /// Runs a command; `arguments` is an object or null.
    ///
    /// # Errors
    /// QEMU refuses, does not answer in time, or is gone.
    pub async fn command(
        &self,
        name: &str,
        arguments: Value,
        deadline: Duration,
    ) -> Result<Value, QmpError> {
        self.send(name, arguments, None, deadline).await
    }

    /// Gives QEMU a descriptor under a name that later commands can use (`fd:NAME`).
    ///
    /// # Errors
    /// As [`Qmp::command`].
    pub async fn give_fd(
        &self,
        name: &str,
        fd: BorrowedFd<'_>,
        deadline: Duration,
    ) -> Result<(), QmpError> {
        self.send("getfd", json!({ "fdname": name }), Some(fd), deadline)
            .await
            .map(drop)
    }

    /// Gives QEMU a descriptor in a new set; returns the number of the set, which
    /// `/dev/fdset/NUMBER` names.
    ///
    /// # Errors
    /// As [`Qmp::command`].
    pub async fn add_fd(&self, fd: BorrowedFd<'_>, deadline: Duration) -> Result<u64, QmpError> {
        let answer = self.send("add-fd", json!({}), Some(fd), deadline).await?;
        answer["fdset-id"]
            .as_u64()
            .ok_or_else(|| QmpError::Refused("it does not name the set".to_owned()))
    }

    async fn send(
        &self,
        name: &str,
        arguments: Value,
        fd: Option<BorrowedFd<'_>>,
        deadline: Duration,
    ) -> Result<Value, QmpError> {
        let exchange = async {
            let reply = self.write_command(name, arguments, fd).await?;
            // The reader drops the sender when the connection ends.
            reply.await.unwrap_or_else(|_| Err(broken("it ended")))
        };
        timeout(deadline, exchange)
            .await
            .unwrap_or(Err(QmpError::Deadline(deadline)))
    }

    async fn write_command(
        &self,
        name: &str,
        arguments: Value,
        fd: Option<BorrowedFd<'_>>,
    ) -> Result<oneshot::Receiver<Answer>, QmpError> {
        let mut writing = self.writing.lock().await;
        if writing.torn {
            return Err(broken("an earlier command was cut off"));
        }
        let id = writing.next_id;
        writing.next_id += 1;
        let mut command = json!({ "execute": name, "id": id });
        if !arguments.is_null() {
            command["arguments"] = arguments;
        }
        let line = format!("{command}\n");
        let (answer, reply) = oneshot::channel();
        match &mut *self.shared.pending() {
            Some(pending) => pending.insert(id, answer),
            None => return Err(broken("it has ended")),
        };
        // This future may be dropped in the middle of the line; only its end clears the mark.
        writing.torn = true;
        self.write_line(line.as_bytes(), fd)
            .await
            .map_err(QmpError::Broken)?;
        writing.torn = false;
        Ok(reply)
    }

    async fn write_line(&self, line: &[u8], fd: Option<BorrowedFd<'_>>) -> std::io::Result<()> {
        let mut rest = line;
        let mut fd = fd;
        while !rest.is_empty() {
            let written = self
                .stream
                .async_io(Interest::WRITABLE, || send_some(&self.stream, rest, fd))
                .await?;
            // The descriptor travels with the first byte.
            fd = None;
            rest = &rest[written..];
        }
        Ok(())
    }
}

impl Drop for Qmp {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

impl Shared {
    fn pending(&self) -> MutexGuard<'_, Option<Pending>> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn answer(&self, id: Option<u64>, answer: Answer) {
        let waiting = id.and_then(|id| self.pending().as_mut()?.remove(&id));
        // Nobody waits for the answer to a command that was given up.
        if let Some(waiting) = waiting {
            let _ = waiting.send(answer);
        }
    }
}

fn send_some(
    stream: &UnixStream,
    bytes: &[u8],
    fd: Option<BorrowedFd<'_>>,
) -> std::io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds: Vec<BorrowedFd<'_>> = fd.into_iter().collect();
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(&fds)) {
        return Err(std::io::Error::other("no room for a descriptor"));
    }
    Ok(sendmsg(
        stream,
        &[IoSlice::new(bytes)],
        &mut control,
        SendFlags::NOSIGNAL,
    )?)
}

async fn read_greeting(
    stream: &mut UnixStream,
    lines: &mut LineSplitter,
) -> Result<String, QmpError> {
    let mut buffer = vec![0; 4096];
    loop {
        if let Some(line) = lines.next_line().map_err(invalid)? {
            return match Message::parse(&line) {
                Ok(Message::Greeting { version }) => Ok(version),
                Ok(_) => Err(broken("the first line is no greeting")),
                Err(error) => Err(invalid(error)),
            };
        }
        match stream.read(&mut buffer).await {
            Ok(0) => return Err(broken("it ended before the greeting")),
            Ok(count) => lines.push(&buffer[..count]),
            Err(error) => return Err(QmpError::Broken(error)),
        }
    }
}

/// Reads until the connection ends, then lets every waiting command know.
async fn read_all(stream: Arc<UnixStream>, mut lines: LineSplitter, shared: Arc<Shared>) {
    let mut buffer = vec![0; 16 * 1024];
    while let Ok(count) = read_some(&stream, &mut buffer).await
        && count > 0
    {
        lines.push(&buffer[..count]);
        if take_lines(&mut lines, &shared).is_err() {
            break;
        }
    }
    *shared.pending() = None;
}

fn take_lines(lines: &mut LineSplitter, shared: &Shared) -> Result<(), QmpError> {
    while let Some(line) = lines.next_line().map_err(invalid)? {
        match Message::parse(&line).map_err(invalid)? {
            Message::Return { id, value } => shared.answer(id, Ok(value)),
            Message::Error { id, message } => shared.answer(id, Err(QmpError::Refused(message))),
            Message::Event(event) => {
                // An event that nobody listens for.
                let _ = shared.events.send(event);
            }
            Message::Greeting { .. } => return Err(broken("a second greeting")),
        }
    }
    Ok(())
}

async fn read_some(stream: &UnixStream, buffer: &mut [u8]) -> std::io::Result<usize> {
    loop {
        stream.readable().await?;
        match stream.try_read(buffer) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            outcome => return outcome,
        }
    }
}

fn broken(reason: &'static str) -> QmpError {
    QmpError::Broken(std::io::Error::new(ErrorKind::ConnectionAborted, reason))
}

fn invalid(error: impl std::error::Error + Send + Sync + 'static) -> QmpError {
    QmpError::Broken(std::io::Error::new(ErrorKind::InvalidData, error))
}

#[cfg(test)]
mod tests;
