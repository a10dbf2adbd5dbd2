//! One client of a session: its input in, the session's output out, on one stream.

use std::rc::Rc;

use futures_util::io::{AsyncReadExt as _, ReadHalf, WriteHalf};
use kiln_agent_proto::frame::{FrameError, FrameReader, FrameWriter};
use kiln_agent_proto::message::{
    Attached, Error, ErrorCode, InputAck, SessionInput, SessionOutput, Started, reply,
    session_input, session_output,
};
use rustix::process::Signal;

use super::ring::{Piece, Source};
use super::{Flooded, InputProgress, Session};

/// Reading side of a stream.
pub(crate) type Reader = FrameReader<ReadHalf<yamux::Stream>>;
/// Writing side of a stream.
pub(crate) type Writer = FrameWriter<WriteHalf<yamux::Stream>>;

/// Both sides of a stream.
pub(crate) fn split(stream: yamux::Stream) -> (Reader, Writer) {
    let (read, write) = stream.split();
    (FrameReader::new(read), FrameWriter::new(write))
}

/// A client that is attached.
#[derive(Debug)]
pub(crate) struct Client {
    session: Rc<Session>,
    number: u64,
    /// Next output byte to send.
    offset: u64,
    /// What the client knows of its input.
    told: InputProgress,
}

/// Why a client goes.
enum Leave {
    /// It said so, or has everything.
    Detached,
    /// Another took its place.
    Replaced,
    /// Its connection broke.
    Lost,
    /// It broke the rules.
    Expelled(ErrorCode, &'static str),
}

impl From<FrameError> for Leave {
    fn from(error: FrameError) -> Self {
        match error {
            FrameError::Io(_) | FrameError::Truncated => Self::Lost,
            FrameError::TooLong(_) | FrameError::Malformed(_) => {
                Self::Expelled(ErrorCode::BadRequest, "not a message")
            }
        }
    }
}

impl From<Flooded> for Leave {
    fn from(_: Flooded) -> Self {
        Self::Expelled(ErrorCode::Flooded, "more input than the window allows")
    }
}

impl Client {
    /// Attaches to `session`; `None` when it has not come to `from_offset` yet.
    pub(crate) fn attach(session: Rc<Session>, from_offset: u64) -> Option<Self> {
        let number = session.attach(from_offset)?;
        let told = session.progress();
        Some(Self {
            session,
            number,
            offset: from_offset,
            told,
        })
    }

    /// The answer to an exec.
    pub(crate) fn started(&self) -> reply::Kind {
        reply::Kind::Started(Started {
            session: self.session.id,
            pid: self.pid(),
        })
    }

    /// The answer to an attach.
    pub(crate) fn attached(&self) -> reply::Kind {
        reply::Kind::Attached(Attached {
            session: self.session.id,
            pid: self.pid(),
            output_offset: self.offset,
            input_frames: self.told.frames,
            stdin_received: self.told.received,
            stdin_taken: self.told.taken,
            tty: self.session.has_terminal(),
        })
    }

    fn pid(&self) -> u32 {
        self.session.pid.as_raw_nonzero().get().unsigned_abs()
    }

    /// Serves the client until it goes.
    pub(crate) async fn serve(mut self, mut reader: Reader, mut writer: Writer) {
        let leave = match self.exchange(&mut reader, &mut writer).await {
            Ok(never) => match never {},
            Err(leave) => leave,
        };
        match leave {
            Leave::Detached => self.session.detach(self.number),
            Leave::Lost => self.session.lose(self.number),
            Leave::Replaced => {
                let text = "another client has attached";
                expel(&mut writer, ErrorCode::Replaced, text).await;
            }
            Leave::Expelled(code, text) => {
                self.session.detach(self.number);
                expel(&mut writer, code, text).await;
            }
        }
    }

    async fn exchange(
        &mut self,
        reader: &mut Reader,
        writer: &mut Writer,
    ) -> Result<std::convert::Infallible, Leave> {
        let session = Rc::clone(&self.session);
        let mut finished = false;
        loop {
            if !session.is_client(self.number) {
                return Err(Leave::Replaced);
            }
            if writer.is_idle() && !finished {
                finished = self.queue_next(writer)?;
            }
            tokio::select! {
                input = reader.next::<SessionInput>() => match input? {
                    // Input that is behind the next client's back: its host sends it again.
                    _ if !session.is_client(self.number) => return Err(Leave::Replaced),
                    Some(input) => self.take(input)?,
                    None if finished => return Err(Leave::Detached),
                    None => return Err(Leave::Lost),
                },
                written = writer.flush(), if !writer.is_idle() => written?,
                () = session.news.notified() => {}
            }
        }
    }

    /// Queues what the client does not have yet; `true` when that was the end.
    fn queue_next(&mut self, writer: &mut Writer) -> Result<bool, Leave> {
        let progress = self.session.progress();
        if progress != self.told {
            self.told = progress;
            let ack = session_output::Kind::InputAck(InputAck {
                frames: progress.frames,
                stdin_taken: progress.taken,
            });
            writer.queue(&SessionOutput::of(ack))?;
        }
        let state = self.session.state.borrow();
        let output = match state.ring.read(self.offset) {
            Some(Piece::Lost(count)) => {
                self.offset += count;
                session_output::Kind::Lost(count)
            }
            Some(Piece::Bytes(source, bytes)) => {
                self.offset += bytes.len() as u64;
                match source {
                    Source::Stdout => session_output::Kind::Stdout(bytes),
                    Source::Stderr => session_output::Kind::Stderr(bytes),
                }
            }
            None => match state.ended {
                Some((exit, _)) => session_output::Kind::Exited(exit),
                None => return Ok(false),
            },
        };
        let last = matches!(output, session_output::Kind::Exited(_));
        writer.queue(&SessionOutput::of(output))?;
        Ok(last)
    }

    fn take(&self, input: SessionInput) -> Result<(), Leave> {
        use session_input::Kind;
        let session = &self.session;
        let Some(kind) = input.kind else {
            // An input of a newer host: it counts, and that is all that can be done with it.
            session.count_input();
            return Ok(());
        };
        match kind {
            Kind::Detach(_) => return Err(Leave::Detached),
            Kind::OutputAck(offset) => return self.acknowledge(offset),
            Kind::Stdin(bytes) => session.add_input(&bytes)?,
            Kind::StdinEof(_) => session.end_input(),
            Kind::Resize(size) => session.resize(size),
            Kind::Signal(number) => {
                if let Some(signal) = named_signal(number) {
                    session.signal(signal);
                }
            }
        }
        session.count_input();
        Ok(())
    }

    fn acknowledge(&self, offset: u64) -> Result<(), Leave> {
        if offset > self.offset || !self.session.state.borrow_mut().ring.ack(offset) {
            let text = "acknowledged output that was not sent";
            return Err(Leave::Expelled(ErrorCode::BadRequest, text));
        }
        self.session.room.notify_waiters();
        Ok(())
    }
}

fn named_signal(number: u32) -> Option<Signal> {
    i32::try_from(number).ok().and_then(Signal::from_named_raw)
}

async fn expel(writer: &mut Writer, code: ErrorCode, text: &str) {
    let error = session_output::Kind::Error(Error::new(code, text));
    // It goes either way; whether it hears why is its own matter.
    let _ = writer.send(&SessionOutput::of(error)).await;
    let _ = writer.close().await;
}
