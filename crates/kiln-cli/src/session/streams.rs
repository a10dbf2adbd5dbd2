//! Standard input and output, which may block, on threads of their own.
//!
//! All hold a few pieces at most, so a session of any length needs the same memory.

use std::{
    io::{self, Read, Write},
    thread,
};

use bytes::{Bytes, BytesMut};
use kiln_api::stream::MAX_CHUNK;
use tokio::sync::{mpsc, oneshot};

/// Pieces that wait for the one or the other side.
const PIECES: usize = 2;

/// Standard input.
#[derive(Debug)]
pub(crate) struct Stdin {
    pieces: mpsc::Receiver<Bytes>,
    /// What did not fit into the window.
    rest: Bytes,
}

impl Stdin {
    /// Begins to read. The thread ends with the process at the latest: a read cannot be called off.
    pub(crate) fn start() -> io::Result<Self> {
        let (sender, pieces) = mpsc::channel(PIECES);
        thread::Builder::new()
            .name("stdin".to_owned())
            .spawn(move || read_all(&sender))?;
        Ok(Self {
            pieces,
            rest: Bytes::new(),
        })
    }

    /// The next bytes, at most so many; none at the end. Cancel-safe.
    pub(crate) async fn read(&mut self, limit: usize) -> Option<Bytes> {
        if self.rest.is_empty() {
            self.rest = self.pieces.recv().await?;
        }
        let size = self.rest.len().min(limit);
        Some(self.rest.split_to(size))
    }
}

/// A read that fails is the end of the input, as it is for a shell.
fn read_all(pieces: &mpsc::Sender<Bytes>) {
    let mut stdin = io::stdin().lock();
    loop {
        let mut piece = BytesMut::zeroed(MAX_CHUNK);
        match stdin.read(&mut piece) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Ok(0) | Err(_) => return,
            Ok(size) => {
                piece.truncate(size);
                if pieces.blocking_send(piece.freeze()).is_err() {
                    return;
                }
            }
        }
    }
}

/// What became of a piece of output.
#[derive(Debug)]
pub(crate) enum Written {
    /// It is on its way.
    Taken,
    /// The reader has closed its end.
    NoReader,
    /// It cannot be written.
    Failed(io::Error),
}

/// Standard output and standard error.
#[derive(Debug)]
pub(crate) struct Writers {
    stdout: Writer,
    stderr: Writer,
    /// The piece that comes next, and whether it is for standard error.
    waiting: Option<(bool, Bytes)>,
}

#[derive(Debug)]
enum Writer {
    /// Nothing was written yet: many commands write to one of them or to none.
    Unused {
        name: &'static str,
        write: fn(&[u8]) -> io::Result<()>,
    },
    Running {
        pieces: mpsc::Sender<Bytes>,
        result: oneshot::Receiver<io::Result<()>>,
    },
    Finished,
}

impl Writers {
    pub(crate) fn new() -> Self {
        Self {
            stdout: Writer::Unused {
                name: "stdout",
                write: |bytes| {
                    let mut stdout = io::stdout().lock();
                    stdout.write_all(bytes).and_then(|()| stdout.flush())
                },
            },
            stderr: Writer::Unused {
                name: "stderr",
                write: |bytes| io::stderr().lock().write_all(bytes),
            },
            waiting: None,
        }
    }

    /// Whether a piece waits to be written; only then is there anything for [`Writers::write`].
    pub(crate) fn is_waiting(&self) -> bool {
        self.waiting.is_some()
    }

    /// Takes the next piece; the one before has been written.
    pub(crate) fn put(&mut self, to_stderr: bool, bytes: Bytes) {
        self.waiting = Some((to_stderr, bytes));
    }

    /// Passes on the piece that waits. Cancel-safe.
    pub(crate) async fn write(&mut self) -> Written {
        let Some((to_stderr, bytes)) = &self.waiting else {
            return Written::Taken;
        };
        let writer = if *to_stderr {
            &mut self.stderr
        } else {
            &mut self.stdout
        };
        let written = writer.write(bytes).await;
        self.waiting = None;
        written
    }

    /// Waits until all is written.
    ///
    /// A reader that has gone by now has what it wanted.
    pub(crate) async fn finish(&mut self) -> io::Result<()> {
        let stdout = self.stdout.finish().await;
        let stderr = self.stderr.finish().await;
        match stdout.and(stderr) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            result => result,
        }
    }
}

impl Writer {
    /// Starts the thread that writes.
    fn start(name: &str, write: fn(&[u8]) -> io::Result<()>) -> io::Result<Self> {
        let (pieces, mut receiver) = mpsc::channel::<Bytes>(PIECES);
        let (sender, result) = oneshot::channel();
        thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || {
                let mut outcome = Ok(());
                while let Some(bytes) = receiver.blocking_recv() {
                    outcome = write(&bytes);
                    if outcome.is_err() {
                        break;
                    }
                }
                // Told before the channel closes: who finds it closed finds the outcome.
                drop(sender.send(outcome));
                drop(receiver);
            })?;
        Ok(Self::Running { pieces, result })
    }

    async fn write(&mut self, bytes: &Bytes) -> Written {
        if let Self::Unused { name, write } = self {
            match Self::start(name, *write) {
                Ok(running) => *self = running,
                Err(error) => return Written::Failed(error),
            }
        }
        let Self::Running { pieces, .. } = self else {
            return Written::NoReader;
        };
        if let Ok(slot) = pieces.reserve().await {
            slot.send(bytes.clone());
            return Written::Taken;
        }
        match self.finish().await {
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Written::Failed(error),
            _ => Written::NoReader,
        }
    }

    /// How it ended, once all is written; told once.
    async fn finish(&mut self) -> io::Result<()> {
        match std::mem::replace(self, Self::Finished) {
            Self::Running { pieces, result } => {
                drop(pieces);
                result.await.unwrap_or(Ok(()))
            }
            Self::Unused { .. } | Self::Finished => Ok(()),
        }
    }
}
