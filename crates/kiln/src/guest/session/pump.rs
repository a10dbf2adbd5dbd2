//! The task between a client's ends and the agent.

use std::sync::Arc;
use std::time::Duration;

use kiln_agent_proto::frame::FrameError;
use kiln_agent_proto::message::{
    Attach, Done, Request, SessionInput, SessionOutput, reply, request, session_input,
    session_output,
};
use tokio::time::timeout;

use super::super::Shared;
use super::super::connection::Operation;
use super::super::error::{GuestError, Refusal};
use super::queues::Source;
use super::{Channel, State, exit};

/// How long a goodbye may take.
const GOODBYE: Duration = Duration::from_secs(2);

/// The task.
pub(super) struct Pump {
    pub(super) shared: Arc<Shared>,
    pub(super) channel: Arc<Channel>,
    pub(super) session: u64,
    /// The agent that has the session.
    pub(super) instance: u64,
    /// The connection it is on.
    pub(super) epoch: u64,
}

/// Why a stream came to its end.
enum End {
    /// The command has ended and the client will be told.
    Exited,
    /// The client has gone.
    Detached,
    /// The connection broke.
    Broken,
    /// The session is lost to this client.
    Failed(GuestError),
}

impl From<GuestError> for End {
    fn from(error: GuestError) -> Self {
        match error {
            GuestError::Lost => Self::Broken,
            error => Self::Failed(error),
        }
    }
}

impl From<FrameError> for End {
    fn from(error: FrameError) -> Self {
        GuestError::from(error).into()
    }
}

impl Pump {
    /// Runs until the session or the client ends.
    pub(super) async fn run(mut self, mut operation: Operation) {
        let end = loop {
            let end = match self.exchange(&mut operation).await {
                Ok(never) => match never {},
                Err(end) => end,
            };
            match end {
                End::Broken => drop(operation),
                End::Exited => return self.exited(operation).await,
                end => break end,
            }
            operation = match self.attach_again().await {
                Ok(operation) => operation,
                Err(end) => break end,
            };
        };
        match end {
            End::Exited | End::Detached => self.channel.finish(Ok(())),
            End::Broken => self.channel.finish(Err(GuestError::Lost)),
            End::Failed(error) => self.channel.finish(Err(error)),
        }
    }

    /// The client hears of the end before the stream is let go: that wakes the VMM, which would
    /// take the processor from whoever has to tell the client.
    async fn exited(self, operation: Operation) {
        self.channel.finish(Ok(()));
        let _ = timeout(GOODBYE, self.detached()).await;
        drop(operation);
    }

    /// Moves input and output on one stream.
    async fn exchange(&self, operation: &mut Operation) -> Result<std::convert::Infallible, End> {
        let Operation { reader, writer, .. } = operation;
        loop {
            if writer.is_idle() {
                if self.channel.lock().detached {
                    let goodbye = session_input::Kind::Detach(Done {});
                    let goodbye = SessionInput::of(goodbye);
                    let _ = timeout(GOODBYE, writer.send(&goodbye)).await;
                    let _ = timeout(GOODBYE, writer.close()).await;
                    return Err(End::Detached);
                }
                if let Some(input) = next_input(&mut self.channel.lock()) {
                    writer.queue(&SessionInput::of(input))?;
                }
            }
            let idle = writer.is_idle();
            tokio::select! {
                output = reader.next::<SessionOutput>() => {
                    self.take(output?.ok_or(End::Broken)?)?;
                }
                written = writer.flush(), if !idle => written?,
                () = self.channel.work.notified(), if idle => {}
            }
        }
    }

    fn take(&self, output: SessionOutput) -> Result<(), End> {
        use session_output::Kind;
        let mut state = self.channel.lock();
        match output.kind {
            Some(Kind::Stdout(bytes)) => state.output.push(Source::Stdout, bytes)?,
            Some(Kind::Stderr(bytes)) => state.output.push(Source::Stderr, bytes)?,
            Some(Kind::Lost(count)) => state.output.push_lost(count)?,
            Some(Kind::InputAck(ack)) => {
                state.input.ack(ack.frames, ack.stdin_taken)?;
                self.channel.room.notify_waiters();
                return Ok(());
            }
            Some(Kind::Exited(exited)) => {
                state.output.push_exit(exit(exited));
                return Err(End::Exited);
            }
            Some(Kind::Error(error)) => return Err(End::Failed(error.into())),
            // Something of a newer agent.
            None => return Ok(()),
        }
        self.channel.output.notify_one();
        Ok(())
    }

    /// Attaches on the next connection, where the last one broke off.
    async fn attach_again(&mut self) -> Result<Operation, End> {
        self.caught_up().await?;
        loop {
            let up = tokio::select! {
                up = self.shared.up_after(self.epoch) => up?,
                () = self.detached() => return Err(End::Detached),
            };
            self.epoch = up.epoch;
            if up.info.instance != self.instance {
                return Err(End::Failed(GuestError::Refused {
                    kind: Refusal::NoSuchSession,
                    message: "the guest's agent has started anew".to_owned(),
                }));
            }
            let request = Request::of(request::Kind::Attach(Attach {
                session: self.session,
                from_offset: self.channel.lock().output.received(),
            }));
            match up.streams.call(&request).await {
                Ok((operation, reply::Kind::Attached(attached))) => {
                    self.channel.lock().input.restart(
                        attached.input_frames,
                        attached.stdin_received,
                        attached.stdin_taken,
                    )?;
                    self.channel.room.notify_waiters();
                    return Ok(operation);
                }
                Ok(_) => {
                    let text = "it answers an attach with something else";
                    return Err(End::Failed(GuestError::Protocol(text)));
                }
                Err(GuestError::Lost) => {}
                Err(error) => return Err(End::Failed(error)),
            }
        }
    }

    /// A new stream brings up to a window of output more: what the last one left must be taken
    /// down to a window first.
    async fn caught_up(&self) -> Result<(), End> {
        loop {
            {
                let state = self.channel.lock();
                if state.detached {
                    return Err(End::Detached);
                }
                if !state.output.is_over_window() {
                    return Ok(());
                }
            }
            self.channel.work.notified().await;
        }
    }

    async fn detached(&self) {
        while !self.channel.lock().detached {
            self.channel.work.notified().await;
        }
    }
}

/// Acknowledgements first: the command may be waiting for one.
fn next_input(state: &mut State) -> Option<session_input::Kind> {
    let ack = state.output.take_ack().map(session_input::Kind::OutputAck);
    ack.or_else(|| state.input.send_next())
}
