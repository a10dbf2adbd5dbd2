//! A command in a sandbox, seen from this terminal: its input, its output, its signals, its end.

mod signals;
mod streams;
pub(crate) mod terminal;

use std::time::{Duration, Instant};

use bytes::Bytes;
use kiln_api::{
    ClientError, ExecRequest, ExitStatus, Timings,
    client::{ExecReceiver, ExecSender, ExecStream, ServerMessage},
    code,
    stream::{Channel, ClientControl, INPUT_WINDOW, ServerControl},
};
use tokio::time;

use crate::{Failure, Output, output::progress::Shown};
use signals::{Asked, Signals};
use streams::{Stdin, Writers, Written};
use terminal::RawMode;

/// How long the daemon may take to clean up after a command that was given up.
const FAREWELL: Duration = Duration::from_secs(15);

/// What was tried when output fails.
const WRITE: &str = "write the command's output";

/// What the session is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// A sandbox for one command.
    Run,
    /// A command in a sandbox that stays.
    Exec,
    /// Back to a command.
    Attach,
    /// Away from a command as soon as it runs.
    Detach,
}

/// How a session ends, on this side.
#[derive(Debug)]
enum End {
    Exited(ExitStatus),
    /// It runs on without us.
    Detached,
    /// A signal for us.
    GivenUp(i32),
    /// Nobody reads its output.
    NoReader,
}

/// Goes through a session to its end; the exit code.
pub(crate) async fn drive(
    stream: ExecStream,
    purpose: Purpose,
    request: &ExecRequest,
    timings: bool,
    output: &Output,
) -> Result<u8, Failure> {
    let signals = Signals::catch().map_err(Failure::io("receive signals"))?;
    let mut session = Session {
        sender: stream.sender,
        receiver: stream.receiver,
        purpose,
        wants_stdin: request.stdin,
        wants_tty: request.tty.is_some(),
        stdin: None,
        window: INPUT_WINDOW,
        raw: None,
        writers: Writers::new(),
        signals,
        asked_to_end: None,
        exited: None,
        started: false,
        created: None,
        timings: None,
        shown: Shown::new(output),
        output: *output,
    };
    let end = match session.run().await {
        Ok(end) => end,
        Err(failure) => return Err(session.with_whereabouts(failure)),
    };
    // The terminal is the user's again before anything else is printed.
    session.raw = None;
    session.finish_output().await?;
    session.conclude(end, timings)
}

struct Session {
    sender: ExecSender,
    receiver: ExecReceiver,
    purpose: Purpose,
    wants_stdin: bool,
    wants_tty: bool,
    stdin: Option<Stdin>,
    /// Bytes of standard input that the daemon takes now.
    window: usize,
    raw: Option<RawMode>,
    writers: Writers,
    signals: Signals,
    /// The signal that was passed on first; the next one ends it from here.
    asked_to_end: Option<i32>,
    exited: Option<ExitStatus>,
    started: bool,
    created: Option<String>,
    timings: Option<Timings>,
    shown: Shown,
    output: Output,
}

/// One thing that happened.
enum Event {
    Message(Result<Option<ServerMessage>, ClientError>),
    Input(Option<Bytes>),
    Written(Written),
    Asked(Asked),
    StepLasts,
}

impl Session {
    async fn run(&mut self) -> Result<End, Failure> {
        loop {
            match self.event().await {
                Event::Message(message) => match message? {
                    None => return self.ended(),
                    Some(ServerMessage::Output(channel, bytes)) => {
                        self.writers.put(channel == Channel::Stderr, bytes);
                    }
                    Some(ServerMessage::Control(control)) => {
                        if let Some(end) = self.control(control).await? {
                            return Ok(end);
                        }
                    }
                },
                Event::Input(bytes) => self.input(bytes).await?,
                Event::Written(Written::Taken) => {}
                Event::Written(Written::NoReader) => {
                    self.give_up().await;
                    return Ok(End::NoReader);
                }
                Event::Written(Written::Failed(source)) => {
                    self.give_up().await;
                    return Err(Failure::Io {
                        what: WRITE,
                        source,
                    });
                }
                Event::Asked(asked) => {
                    if let Some(end) = self.asked(asked).await? {
                        return Ok(end);
                    }
                }
                Event::StepLasts => self.shown.tell(),
            }
        }
    }

    /// Waits for what happens next. All that is waited for is cancel-safe.
    async fn event(&mut self) -> Event {
        let due = self.shown.due();
        // What was not written yet holds up what comes after it, and so the command; but never
        // the signals.
        let writing = self.writers.is_waiting();
        tokio::select! {
            biased;
            asked = self.signals.next() => Event::Asked(asked),
            written = self.writers.write(), if writing => Event::Written(written),
            message = self.receiver.next(), if !writing => Event::Message(message),
            input = read(&mut self.stdin, self.window) => Event::Input(input),
            () = until(due) => Event::StepLasts,
        }
    }

    async fn control(&mut self, control: ServerControl) -> Result<Option<End>, Failure> {
        match control {
            ServerControl::Progress(progress) => self.shown.show(progress),
            ServerControl::Warning { message } => {
                let raw = self.raw.is_some();
                self.shown.aside(|output| warn(output, &message, raw));
            }
            ServerControl::Created { id, .. } => {
                self.shown
                    .aside(|output| output.detail(&format!("sandbox {id} created")));
                self.created = Some(id);
            }
            ServerControl::Started { session, .. } => return self.started(session).await,
            ServerControl::Lost { bytes } => {
                let message = format!("{bytes} bytes of output were dropped before this");
                let raw = self.raw.is_some();
                self.shown.aside(|output| warn(output, &message, raw));
            }
            ServerControl::Window { bytes } => self.window = self.window.saturating_add(bytes),
            ServerControl::Exited(status) => {
                self.exited = Some(status);
                self.stdin = None;
                // Of a run the daemon removes the sandbox and tells how long it all took.
                if self.purpose == Purpose::Exec {
                    return Ok(Some(End::Exited(status)));
                }
            }
            ServerControl::Timings(timings) => self.timings = Some(timings),
            ServerControl::Error(report) => return Err(Failure::reported(report)),
            // A session has nothing to do with images.
            ServerControl::Images { .. } | ServerControl::BaseImage(_) | ServerControl::Unknown => {
            }
        }
        Ok(None)
    }

    async fn started(&mut self, session: u64) -> Result<Option<End>, Failure> {
        self.shown.hide();
        self.started = true;
        if self.purpose == Purpose::Detach {
            if self.created.is_none() {
                self.output.line(&session.to_string());
                self.output
                    .object(&serde_json::json!({ "session": session }));
            }
            // An exec is left by us; a run is ended by the daemon.
            drop(self.sender.control(&ClientControl::Detach {}).await);
            return Ok(None);
        }
        if self.wants_tty && terminal::stdin_is_terminal() {
            self.raw = Some(RawMode::enter().map_err(Failure::io("change the terminal's mode"))?);
            // It may have another size by now.
            self.sender
                .control(&ClientControl::resize(terminal::size()))
                .await?;
        }
        if self.wants_stdin {
            self.stdin = Some(Stdin::start().map_err(Failure::io("read standard input"))?);
        }
        Ok(None)
    }

    async fn input(&mut self, bytes: Option<Bytes>) -> Result<(), Failure> {
        let sent = match bytes {
            Some(bytes) => {
                self.window = self.window.saturating_sub(bytes.len());
                self.sender.stdin(&bytes).await
            }
            None => {
                self.stdin = None;
                self.sender.control(&ClientControl::Eof {}).await
            }
        };
        // The daemon may just have ended the stream: then its last words tell how.
        if sent.is_err() {
            self.stdin = None;
        }
        Ok(())
    }

    async fn asked(&mut self, asked: Asked) -> Result<Option<End>, Failure> {
        let signal = match asked {
            Asked::Resize => {
                if self.wants_tty && self.started {
                    drop(
                        self.sender
                            .control(&ClientControl::resize(terminal::size()))
                            .await,
                    );
                }
                return Ok(None);
            }
            Asked::End(signal) => signal,
        };
        if let Some(status) = self.exited {
            // Only the clean-up is left, and the daemon does that without us.
            return Ok(Some(End::Exited(status)));
        }
        if self.started && self.asked_to_end.is_none() {
            self.asked_to_end = Some(signal);
            drop(self.sender.control(&ClientControl::Signal { signal }).await);
            return Ok(None);
        }
        if self.purpose != Purpose::Attach {
            self.output.detail("giving up");
        }
        self.give_up().await;
        Ok(Some(End::GivenUp(signal)))
    }

    /// Closes the stream and waits until the daemon has cleaned up; a further signal ends the wait.
    async fn give_up(&mut self) {
        self.raw = None;
        let farewell = async {
            if self.sender.close().await.is_ok() {
                while let Ok(Some(_)) = self.receiver.next().await {}
            }
        };
        tokio::select! {
            _ = time::timeout(FAREWELL, farewell) => {}
            () = self.signals.next_end() => {}
        }
    }

    /// Waits until all output is written; a signal ends the wait.
    async fn finish_output(&mut self) -> Result<(), Failure> {
        tokio::select! {
            finished = self.writers.finish() => finished.map_err(Failure::io(WRITE)),
            () = self.signals.next_end() => Ok(()),
        }
    }

    /// The daemon has ended the stream.
    fn ended(&mut self) -> Result<End, Failure> {
        match self.exited {
            Some(status) => Ok(End::Exited(status)),
            None if self.purpose == Purpose::Detach => Ok(End::Detached),
            None => Err(ClientError::Lost(None).into()),
        }
    }

    /// A run whose daemon is gone has left its sandbox behind: says which.
    fn with_whereabouts(&self, failure: Failure) -> Failure {
        let report = failure.report();
        let daemon_gone = [code::DAEMON_STOPPING, code::CONNECTION_LOST].contains(&&*report.code);
        match &self.created {
            Some(id) if daemon_gone => Failure::reported(report.with_hint(format!(
                "sandbox {id} runs on: go back with `kiln attach {id}`, or `kiln rm -f {id}`"
            ))),
            _ => failure,
        }
    }

    fn conclude(&mut self, end: End, timings: bool) -> Result<u8, Failure> {
        self.shown.hide();
        if let (End::Detached, Some(id)) = (&end, &self.created) {
            self.output.line(id);
            self.output.object(&serde_json::json!({ "id": id }));
        }
        if timings && let Some(timings) = &self.timings {
            self.output.timings(timings);
        }
        Ok(match end {
            End::Exited(status) => exit_code(status.shell_code()),
            End::Detached => 0,
            End::GivenUp(signal) => exit_code(128 + signal),
            // As if the signal had ended us, which Rust's runtime ignores.
            End::NoReader => exit_code(128 + 13),
        })
    }
}

/// What can be sent now; never without a window.
async fn read(stdin: &mut Option<Stdin>, window: usize) -> Option<Bytes> {
    match stdin {
        Some(stdin) if window > 0 => stdin.read(window).await,
        _ => std::future::pending().await,
    }
}

async fn until(due: Option<Instant>) {
    match due {
        Some(due) => time::sleep_until(due.into()).await,
        None => std::future::pending().await,
    }
}

/// In raw mode a line must bring its own carriage return.
fn warn(output: &Output, message: &str, raw: bool) {
    if raw {
        output.warning(&format!("{message}\r"));
    } else {
        output.warning(message);
    }
}

/// An exit status as the kernel keeps it: its low byte.
fn exit_code(code: i32) -> u8 {
    u8::try_from(code & 0xff).unwrap_or(u8::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_fit_into_a_byte() {
        assert_eq!(exit_code(0), 0);
        assert_eq!(exit_code(143), 143);
        assert_eq!(exit_code(256), 0);
        assert_eq!(exit_code(-1), 255);
    }
}
