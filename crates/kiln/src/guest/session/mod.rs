//! Running commands: the client's two ends, and the task between them and the agent.
//!
//! The client's ends know nothing of connections. When one breaks, the task ([`pump`]) attaches
//! again on the next and goes on where it was: offsets of the output, and a count of the input
//! messages, make sure that nothing is lost or comes twice, as long as the agent keeps the
//! output. The [`queues`] between them are bounded by the windows of the protocol.

mod pump;
mod queues;

use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use kiln_agent_proto::message::{
    self, Attached, EnvVar, Exec, Exited, Started, WindowSize, session_input,
};
use tokio::sync::Notify;

use super::Shared;
use super::connection::Operation;
use super::error::GuestError;
use crate::exec::{ExecExit, ExecInput, ExecLimits, ExecOutput, ExecSpec, TerminalSize};
use queues::{InputQueue, OutputQueue};

/// A command that runs in a guest, with this client attached.
#[derive(Debug)]
pub struct ExecSession {
    /// Number of the session in its guest.
    pub id: u64,
    /// Process number in the guest.
    pub pid: u32,
    /// Whether it has a terminal.
    pub tty: bool,
    /// Where input goes.
    pub input: ExecInputSender,
    /// Where output comes from. Dropping it detaches.
    pub output: ExecOutputReceiver,
}

/// Sends input to a session. Clones send to the same one, so that a signal need not wait for the
/// bytes that another clone sends.
#[derive(Clone, Debug)]
pub struct ExecInputSender {
    channel: Arc<Channel>,
}

/// Receives output of a session. Dropping it detaches from the session.
#[derive(Debug)]
pub struct ExecOutputReceiver {
    channel: Arc<Channel>,
    /// Let go of with the session.
    held: Option<crate::sandbox::activity::Use>,
}

/// What the ends and the task share.
#[derive(Debug)]
struct Channel {
    state: Mutex<State>,
    /// For the task: there is input, an acknowledgement is due, or the client has gone.
    work: Notify,
    /// For the receiver: there is output.
    output: Notify,
    /// For all senders: there may be room for what each has.
    room: Notify,
}

#[derive(Debug)]
struct State {
    input: InputQueue,
    output: OutputQueue,
    end: Option<Result<(), GuestError>>,
    detached: bool,
}

/// How far a session has come, when a client begins with it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Progress {
    id: u64,
    pid: u32,
    tty: bool,
    instance: u64,
    output_offset: u64,
    input_frames: u64,
    stdin_received: u64,
    stdin_taken: u64,
}

impl Progress {
    /// It has just started.
    pub(super) fn new(started: Started, tty: bool, instance: u64) -> Self {
        Self {
            id: started.session,
            pid: started.pid,
            tty,
            instance,
            output_offset: 0,
            input_frames: 0,
            stdin_received: 0,
            stdin_taken: 0,
        }
    }

    /// It was attached to.
    pub(super) fn attached(attached: Attached, from_offset: u64, instance: u64) -> Self {
        Self {
            id: attached.session,
            pid: attached.pid,
            tty: attached.tty,
            instance,
            output_offset: from_offset,
            input_frames: attached.input_frames,
            stdin_received: attached.stdin_received,
            stdin_taken: attached.stdin_taken.min(attached.stdin_received),
        }
    }
}

/// Puts a client on a session.
pub(super) fn start(
    shared: Arc<Shared>,
    progress: Progress,
    operation: Operation,
    epoch: u64,
) -> ExecSession {
    let channel = Arc::new(Channel {
        state: Mutex::new(State {
            input: InputQueue::new(
                progress.input_frames,
                progress.stdin_received,
                progress.stdin_taken,
            ),
            output: OutputQueue::new(progress.output_offset),
            end: None,
            detached: false,
        }),
        work: Notify::new(),
        output: Notify::new(),
        room: Notify::new(),
    });
    let task = pump::Pump {
        shared,
        channel: Arc::clone(&channel),
        session: progress.id,
        instance: progress.instance,
        epoch,
    };
    tokio::spawn(task.run(operation));
    ExecSession {
        id: progress.id,
        pid: progress.pid,
        tty: progress.tty,
        input: ExecInputSender {
            channel: Arc::clone(&channel),
        },
        output: ExecOutputReceiver {
            channel,
            held: None,
        },
    }
}

impl ExecSession {
    /// Counts as this use of its sandbox as long as somebody is attached.
    pub(crate) fn counting_as(mut self, held: crate::sandbox::activity::Use) -> Self {
        self.output.held = Some(held);
        self
    }
}

impl ExecInputSender {
    /// Sends input, when the command has taken enough of what was sent before.
    ///
    /// Not cancel-safe for bytes: a part of them may have been sent.
    ///
    /// # Errors
    /// [`GuestError::Ended`] when the command has ended, or why the session was lost.
    pub async fn send(&mut self, input: ExecInput) -> Result<(), GuestError> {
        use session_input::Kind;
        match input {
            ExecInput::Stdin(bytes) => self.send_bytes(bytes).await,
            ExecInput::StdinEof => self.send_one(Kind::StdinEof(Default::default())).await,
            ExecInput::Resize(size) => self.send_one(Kind::Resize(wire_size(size))).await,
            ExecInput::Signal(number) => {
                let number = u32::try_from(number).unwrap_or(0);
                self.send_one(Kind::Signal(number)).await
            }
        }
    }

    async fn send_bytes(&self, mut bytes: Bytes) -> Result<(), GuestError> {
        while !bytes.is_empty() {
            self.when_room(|queue| queue.push_bytes(&mut bytes)).await?;
        }
        Ok(())
    }

    async fn send_one(&self, kind: session_input::Kind) -> Result<(), GuestError> {
        self.when_room(|queue| queue.push(&kind)).await
    }

    /// Repeats `push` until it has pushed something.
    async fn when_room(
        &self,
        mut push: impl FnMut(&mut InputQueue) -> bool,
    ) -> Result<(), GuestError> {
        loop {
            // From here on it takes part in every wake-up, so none is lost before it waits.
            let room = self.channel.room.notified();
            {
                let mut state = self.channel.lock();
                if let Some(end) = &state.end {
                    return Err(end.clone().err().unwrap_or(GuestError::Ended));
                }
                if push(&mut state.input) {
                    self.channel.work.notify_one();
                    return Ok(());
                }
            }
            room.await;
        }
    }
}

impl ExecOutputReceiver {
    /// The next output; `None` after [`ExecOutput::Exited`]. Cancel-safe.
    ///
    /// # Errors
    /// Why the session was lost to this client. A connection that breaks is no reason: the
    /// session is attached to again when the next one stands.
    pub async fn next(&mut self) -> Result<Option<ExecOutput>, GuestError> {
        loop {
            {
                let mut state = self.channel.lock();
                if let Some(output) = state.output.pop() {
                    if state.output.ack_is_due() || state.output.is_over_window() {
                        self.channel.work.notify_one();
                    }
                    return Ok(Some(output));
                }
                if let Some(end) = &state.end {
                    return end.clone().map(|()| None);
                }
            }
            self.channel.output.notified().await;
        }
    }

    /// Offset of the first output byte that [`next`](Self::next) has not given yet: where
    /// another client can go on.
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.channel.lock().output.consumed()
    }
}

impl Drop for ExecOutputReceiver {
    fn drop(&mut self) {
        self.channel.lock().detached = true;
        self.channel.work.notify_one();
    }
}

impl Channel {
    fn lock(&self) -> MutexGuard<'_, State> {
        match self.state.lock() {
            Ok(state) => state,
            // Nothing panics while it is held; if something did, the state is whole all the same.
            Err(poisoned) => poisoned.into_inner(),
        }
    }

    fn finish(&self, end: Result<(), GuestError>) {
        self.lock().end.get_or_insert(end);
        self.output.notify_one();
        self.room.notify_waiters();
    }
}

pub(super) fn exit(exited: Exited) -> ExecExit {
    match i32::try_from(exited.signal) {
        Ok(0) => ExecExit::Code(exited.code),
        Ok(signal @ 1..=64) if exited.timed_out => ExecExit::TimedOut(signal),
        Ok(signal @ 1..=64) => ExecExit::Signal(signal),
        // No kernel says that; a guest's own invention.
        _ => ExecExit::Code(255),
    }
}

pub(super) fn wire_spec(spec: &ExecSpec) -> Exec {
    let variable = |(name, value): &(String, String)| EnvVar {
        name: name.clone().into_bytes(),
        value: value.clone().into_bytes(),
    };
    Exec {
        argv: spec.argv.iter().map(|a| a.clone().into_bytes()).collect(),
        env: spec.env.iter().map(variable).collect(),
        cwd: spec.cwd.clone().unwrap_or_default().into_bytes(),
        user: spec.user.clone().unwrap_or_default(),
        tty: spec.tty.map(wire_size),
        stdin: spec.stdin,
        kill_on_detach: spec.kill_on_detach,
        timeout_ms: spec.timeout_ms.unwrap_or(0),
        limits: wire_limits(spec.limits),
        ..Exec::default()
    }
}

/// None when there are none: then the agent need not know of limits.
fn wire_limits(limits: ExecLimits) -> Option<message::ExecLimits> {
    let wire = message::ExecLimits {
        memory_bytes: u64::from(limits.mem_mib.unwrap_or(0)) << 20,
        processes: limits.processes.unwrap_or(0),
        cpu_milli: limits.cpu_milli.unwrap_or(0),
    };
    (wire != message::ExecLimits::default()).then_some(wire)
}

fn wire_size(size: TerminalSize) -> WindowSize {
    WindowSize {
        rows: size.rows.into(),
        cols: size.cols.into(),
    }
}
