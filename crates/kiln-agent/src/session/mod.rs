//! Sessions: commands that run in the guest, with or without a client.
//!
//! A session owns its process, its ends of the pipes or the terminal, the [`ring`] with its last
//! output, and the input that the process has not taken yet. Clients come and go ([`client`]).
//! The agent has one thread: a borrow of the state never spans an `await`.

pub(crate) mod client;
mod input;
mod output;
mod registry;
pub(crate) mod ring;

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Duration;

use kiln_agent_proto::limits::{INPUT_WINDOW, OUTPUT_WINDOW};
use kiln_agent_proto::message::{Exited, WindowSize};
use rustix::process::{Pid, Signal};
use tokio::sync::Notify;
use tokio::task::AbortHandle;
use tokio::time::Instant;

use crate::cgroup::Cgroup;
use crate::fd::Fd;
pub(crate) use registry::Sessions;
use ring::Ring;

/// A command, from its start until it is forgotten.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) id: u64,
    pub(crate) argv: Vec<Vec<u8>>,
    pub(crate) pid: Pid,
    pub(crate) kill_on_detach: bool,
    /// By what it is asked to end, being the guest's main process.
    stop_signal: Option<i32>,
    tty: bool,
    /// Closed at the end, so that it is not kept with the session.
    terminal: RefCell<Option<Rc<Fd>>>,
    cgroup: Option<Rc<Cgroup>>,
    started: Instant,
    linger: Duration,
    state: RefCell<State>,
    /// Which client is attached; counts up.
    client: Cell<u64>,
    /// There is something for the client: output, an acknowledgement, the end.
    news: Notify,
    /// The ring has room, or the leader has exited.
    room: Notify,
    /// There is input for the process, or the leader has exited.
    input: Notify,
    /// All sessions': one has ended, or a client has gone.
    changed: Rc<Notify>,
    /// Ends it when its time is over.
    timer: RefCell<Option<AbortHandle>>,
    timed_out: Cell<bool>,
}

#[derive(Debug, Default)]
struct State {
    ring: Ring,
    input: Input,
    attached: bool,
    /// How the first process ended.
    leader: Option<Exited>,
    /// Output streams that may still give bytes of the first process.
    streams: usize,
    /// Set when the first process has ended and all its output is in the ring.
    ended: Option<(Exited, Instant)>,
}

#[derive(Debug, Default)]
struct Input {
    /// Bytes that the process has not taken yet.
    bytes: VecDeque<u8>,
    eof: bool,
    /// The process takes no more.
    closed: bool,
    frames: u64,
    received: u64,
    taken: u64,
}

/// How far the input has come, for a client.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct InputProgress {
    pub(crate) frames: u64,
    pub(crate) received: u64,
    pub(crate) taken: u64,
}

/// The client sent more than it may.
#[derive(Debug)]
pub(crate) struct Flooded;

impl Session {
    pub(crate) fn has_terminal(&self) -> bool {
        self.tty
    }

    pub(crate) fn is_attached(&self) -> bool {
        self.state.borrow().attached
    }

    pub(crate) fn exit(&self) -> Option<Exited> {
        self.state.borrow().ended.map(|(exit, _)| exit)
    }

    /// Waits until it has ended, as its clients hear of it.
    pub(crate) async fn ended(&self) -> Exited {
        loop {
            if let Some(exit) = self.exit() {
                return exit;
            }
            self.news.notified().await;
        }
    }

    /// How long it has run, or ran.
    pub(crate) fn age(&self) -> Duration {
        let end = self.state.borrow().ended.map(|(_, at)| at);
        end.unwrap_or_else(Instant::now) - self.started
    }

    fn ended_at(&self) -> Option<Instant> {
        self.state.borrow().ended.map(|(_, at)| at)
    }

    /// Takes a client in: whoever was attached is replaced, and from now on no output behind
    /// `from_offset` is dropped. Gives the client's number and the first offset it gets.
    fn attach(&self, from_offset: u64) -> Option<u64> {
        let mut state = self.state.borrow_mut();
        if from_offset > state.ring.end() {
            return None;
        }
        state.ring.hold_from(from_offset);
        state.attached = true;
        drop(state);
        self.client.set(self.client.get() + 1);
        self.news.notify_waiters();
        // What the client had already makes room.
        self.room.notify_waiters();
        Some(self.client.get())
    }

    fn is_client(&self, client: u64) -> bool {
        self.client.get() == client
    }

    /// The client has gone on purpose.
    fn detach(self: &Rc<Self>, client: u64) {
        if self.is_client(client) {
            self.abandon();
        }
    }

    /// The client's connection broke: output is held for a while, for it to come back.
    fn lose(self: &Rc<Self>, client: u64) {
        if !self.is_client(client) {
            return;
        }
        self.state.borrow_mut().attached = false;
        self.changed.notify_waiters();
        let session = Rc::clone(self);
        tokio::task::spawn_local(async move {
            tokio::time::sleep(session.linger).await;
            session.detach(client);
        });
    }

    fn abandon(&self) {
        let mut state = self.state.borrow_mut();
        state.attached = false;
        state.ring.release();
        let running = state.ended.is_none();
        drop(state);
        self.changed.notify_waiters();
        self.room.notify_waiters();
        if self.kill_on_detach && running {
            self.kill();
        }
    }

    /// Ends all its processes. What left both its control group and its terminal session, in a
    /// guest without control groups, cannot be found and runs on.
    pub(crate) fn kill(&self) {
        if self.cgroup.as_ref().is_some_and(|c| c.kill().is_ok()) {
            return;
        }
        self.signal_all(Signal::KILL);
    }

    /// Has all its processes end after this long.
    fn limit_to(self: &Rc<Self>, time: Duration) {
        // Weak: a session that is forgotten has no time any more.
        let session = Rc::downgrade(self);
        let timer = tokio::task::spawn_local(async move {
            tokio::time::sleep(time).await;
            if let Some(session) = session.upgrade() {
                session.timed_out.set(true);
                session.kill();
            }
        });
        self.timer.replace(Some(timer.abort_handle()));
    }

    fn signal_all(&self, signal: Signal) {
        // Once the leader is reaped its number may be a stranger's.
        if self.state.borrow().leader.is_some() {
            return;
        }
        // The leader's group first, it being in it: a shell that saw its child killed before it was
        // itself would end with a status of its own.
        self.signal(signal);
        for pid in crate::procfs::session_members(self.pid) {
            let _ = rustix::process::kill_process(pid, signal);
        }
    }

    /// Asks a main process, and nobody else, to end; says whether there is one.
    fn ask_to_end(&self) -> bool {
        let Some(number) = self.stop_signal.filter(|_| !self.leader_has_exited()) else {
            return false;
        };
        let sent = crate::sys::signal::send(self.pid, number).is_ok();
        // A stopped process hears of it only when it goes on.
        let _ = rustix::process::kill_process(self.pid, Signal::CONT);
        sent
    }

    /// Sends a signal to its process group.
    pub(crate) fn signal(&self, signal: Signal) {
        if self.state.borrow().leader.is_none() {
            let _ = rustix::process::kill_process_group(self.pid, signal);
        }
    }

    fn resize(&self, size: WindowSize) {
        if let Some(terminal) = self.terminal.borrow().as_ref() {
            // A terminal that is hung up has no size any more.
            let _ = crate::process::resize(terminal.as_ref(), size);
        }
    }

    fn count_input(&self) {
        self.state.borrow_mut().input.frames += 1;
        self.news.notify_waiters();
    }

    fn add_input(&self, bytes: &[u8]) -> Result<(), Flooded> {
        let mut state = self.state.borrow_mut();
        let input = &mut state.input;
        if input.bytes.len() + bytes.len() > INPUT_WINDOW as usize {
            return Err(Flooded);
        }
        input.received += bytes.len() as u64;
        if input.closed || input.eof {
            input.taken = input.received;
        } else {
            input.bytes.extend(bytes);
        }
        drop(state);
        self.input.notify_waiters();
        Ok(())
    }

    fn end_input(&self) {
        self.state.borrow_mut().input.eof = true;
        self.input.notify_waiters();
    }

    fn progress(&self) -> InputProgress {
        let input = &self.state.borrow().input;
        InputProgress {
            frames: input.frames,
            received: input.received,
            taken: input.taken,
        }
    }

    /// The reaper has it.
    fn leader_exited(&self, mut exit: Exited) {
        exit.timed_out = self.timed_out.get();
        self.state.borrow_mut().leader = Some(exit);
        self.room.notify_waiters();
        self.input.notify_waiters();
        self.check_ended();
    }

    fn leader_has_exited(&self) -> bool {
        self.state.borrow().leader.is_some()
    }

    fn stream_drained(&self) {
        let mut state = self.state.borrow_mut();
        state.streams = state.streams.saturating_sub(1);
        drop(state);
        self.check_ended();
    }

    fn check_ended(&self) {
        let mut state = self.state.borrow_mut();
        let (Some(exit), 0, None) = (state.leader, state.streams, state.ended) else {
            return;
        };
        state.ended = Some((exit, Instant::now()));
        drop(state);
        if let Some(timer) = self.timer.take() {
            timer.abort();
        }
        self.terminal.take();
        self.news.notify_waiters();
    }

    fn kept_bytes(&self) -> usize {
        self.state.borrow().ring.len()
    }

    fn forget_output(&self) {
        self.state.borrow_mut().ring.clear();
    }
}

const _: () = assert!(OUTPUT_WINDOW <= u32::MAX as u64);
