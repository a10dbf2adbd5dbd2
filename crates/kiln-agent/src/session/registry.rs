//! All sessions of the guest, and who reaps their processes.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use kiln_agent_proto::message::{ErrorCode, Exec, Exited, SessionEntry};
use rustix::process::Pid;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::{Session, State, input, output, ring};
use crate::Role;
use crate::cgroup::{Cgroup, Cgroups};
use crate::fd::Fd;
use crate::init::handover;
use crate::limits;
use crate::process::{self, SpawnError, Spawned, SpawnedIo, Users};
use crate::sys::signal;

/// Sessions that run at once.
const MAX_RUNNING: usize = 256;
/// Sessions that are kept after their end: so many, so long, with so much output.
const MAX_ENDED: usize = 64;
const KEEP_ENDED: Duration = Duration::from_secs(600);
const KEEP_ENDED_BYTES: usize = 2 * 1024 * 1024;
/// How long after an end its control group is removed.
const SWEEP_AFTER: Duration = Duration::from_millis(20);
/// Of the arguments of a session, what a list shows.
const SHOWN_ARGS: usize = 16;
const SHOWN_ARG: usize = 128;

/// The sessions.
#[derive(Debug)]
pub(crate) struct Sessions {
    all: RefCell<BTreeMap<u64, Rc<Session>>>,
    next: Cell<u64>,
    cgroups: Option<Cgroups>,
    /// The next session's, made ahead.
    spare: RefCell<Option<Cgroup>>,
    users: Users,
    /// Groups to be removed when nothing runs in them any more.
    occupied: RefCell<Vec<Rc<Cgroup>>>,
    /// Somebody is about to do that.
    sweeping: Cell<bool>,
    linger: Duration,
    role: Role,
    closed: Cell<bool>,
    changed: Rc<Notify>,
}

impl Sessions {
    pub(crate) fn new(cgroups: Option<Cgroups>, linger: Duration, role: Role) -> Self {
        Self {
            all: RefCell::default(),
            next: Cell::new(1),
            cgroups,
            spare: RefCell::default(),
            users: Users::of(Path::new("/etc")),
            occupied: RefCell::default(),
            sweeping: Cell::new(false),
            linger,
            role,
            closed: Cell::new(false),
            changed: Rc::default(),
        }
    }

    /// Starts a command. Must not be interrupted between its fork and its entry in the list,
    /// or the reaper would not know it: hence no `async`.
    pub(crate) fn start(&self, exec: Exec) -> Result<Rc<Session>, SpawnError> {
        self.admit()?;
        let id = self.next.get();
        self.next.set(id + 1);
        let cgroup = match &exec.limits {
            None => self.spare.take().or_else(|| self.make_group(id)),
            Some(limits) => Some(limits::group(self.cgroups.as_ref(), id, limits)?),
        };
        let spawned = match process::spawn(&exec, &self.users, cgroup.as_ref(), self.outlived()) {
            Ok(spawned) => spawned,
            Err(error) => {
                if let Some(group) = cgroup {
                    group.remove();
                }
                return Err(error);
            }
        };
        let pid = spawned.pid;
        if self.role == Role::BesideInit {
            handover::unprotect(pid);
        }
        self.adopt(id, exec, spawned, cgroup).map_err(|error| {
            let _ = rustix::process::kill_process_group(pid, rustix::process::Signal::KILL);
            SpawnError {
                code: ErrorCode::Internal,
                message: format!("cannot watch the process: {error}"),
            }
        })
    }

    /// Whether our end would leave commands behind: that of a guest's agent is the guest's.
    fn outlived(&self) -> bool {
        self.role == Role::Test
    }

    fn admit(&self) -> Result<(), SpawnError> {
        if self.closed.get() {
            return Err(SpawnError {
                code: ErrorCode::PoweringOff,
                message: "the guest is going down".to_owned(),
            });
        }
        if self.running() >= MAX_RUNNING {
            return Err(SpawnError {
                code: ErrorCode::Busy,
                message: format!("{MAX_RUNNING} sessions run already"),
            });
        }
        Ok(())
    }

    fn adopt(
        &self,
        id: u64,
        exec: Exec,
        spawned: Spawned,
        cgroup: Option<Cgroup>,
    ) -> io::Result<Rc<Session>> {
        let io = Io::new(spawned.io)?;
        let session = Rc::new(Session {
            id,
            argv: exec.argv,
            pid: spawned.pid,
            kill_on_detach: exec.kill_on_detach,
            stop_signal: stop_signal(exec.stop_signal),
            tty: exec.tty.is_some(),
            terminal: RefCell::new(io.terminal()),
            cgroup: cgroup.map(Rc::new),
            started: Instant::now(),
            linger: self.linger,
            state: RefCell::new(State {
                streams: io.streams(),
                ..State::default()
            }),
            client: Cell::new(0),
            news: Notify::new(),
            room: Notify::new(),
            input: Notify::new(),
            changed: Rc::clone(&self.changed),
            timer: RefCell::default(),
            timed_out: Cell::new(false),
        });
        if exec.timeout_ms > 0 {
            session.limit_to(Duration::from_millis(exec.timeout_ms));
        }
        self.all.borrow_mut().insert(id, Rc::clone(&session));
        io.pump(&session, exec.stdin);
        Ok(session)
    }

    pub(crate) fn get(&self, id: u64) -> Option<Rc<Session>> {
        self.all.borrow().get(&id).cloned()
    }

    pub(crate) fn list(&self) -> Vec<SessionEntry> {
        self.prune();
        self.all.borrow().values().map(|s| entry(s)).collect()
    }

    pub(crate) fn running(&self) -> usize {
        let all = self.all.borrow();
        all.values().filter(|s| s.exit().is_none()).count()
    }

    pub(crate) fn ended(&self) -> usize {
        self.all.borrow().len() - self.running()
    }

    /// The reaper's report. A process that is nobody's first one was an orphan.
    pub(crate) fn reaped(self: &Rc<Self>, pid: Pid, exit: Exited) {
        let session = {
            let all = self.all.borrow();
            all.values()
                .find(|s| s.pid == pid && !s.leader_has_exited())
                .cloned()
        };
        if let Some(session) = session {
            session.leader_exited(exit);
            self.occupied.borrow_mut().extend(session.cgroup.clone());
        }
        self.prune();
        self.sweep_soon();
        self.changed.notify_waiters();
    }

    /// Removes empty groups a little later, and makes the next one: the client waits for the end of
    /// its command first.
    fn sweep_soon(self: &Rc<Self>) {
        if self.occupied.borrow().is_empty() || self.sweeping.replace(true) {
            return;
        }
        let sessions = Rc::clone(self);
        tokio::task::spawn_local(async move {
            // Even to set the timer is for when the client has been told.
            tokio::task::yield_now().await;
            tokio::time::sleep(SWEEP_AFTER).await;
            sessions.sweeping.set(false);
            sessions
                .occupied
                .borrow_mut()
                .retain(|group| !group.remove());
            if sessions.spare.borrow().is_none() {
                let next = sessions.make_group(sessions.next.get());
                sessions.spare.replace(next);
            }
        });
    }

    fn make_group(&self, session: u64) -> Option<Cgroup> {
        self.cgroups.as_ref()?.create(session).ok()
    }

    /// No further sessions.
    pub(crate) fn close(&self) {
        self.closed.set(true);
    }

    /// Sends main processes the signal that they want; says whether there are any.
    pub(crate) fn ask_main_to_end(&self) -> bool {
        let all = self.all.borrow();
        let asked = all.values().filter(|s| s.ask_to_end()).count();
        asked > 0
    }

    /// Waits until no main process runs.
    pub(crate) async fn main_exited(&self) {
        let runs = |s: &Rc<Session>| s.stop_signal.is_some() && !s.leader_has_exited();
        while self.all.borrow().values().any(runs) {
            self.changed.notified().await;
        }
    }

    pub(crate) fn kill_all(&self) {
        self.all.borrow().values().for_each(|s| s.kill());
    }

    pub(crate) fn terminate_all(&self) {
        for session in self.all.borrow().values() {
            session.signal_all(rustix::process::Signal::TERM);
        }
    }

    /// Waits until no first process of a session runs.
    pub(crate) async fn all_exited(&self) {
        while !self.all.borrow().values().all(|s| s.leader_has_exited()) {
            self.changed.notified().await;
        }
    }

    /// Waits until no client is attached: until all have fetched the end of their session.
    pub(crate) async fn all_delivered(&self) {
        while self.all.borrow().values().any(|s| s.is_attached()) {
            self.changed.notified().await;
        }
    }

    /// Forgets ended sessions beyond the limits, oldest first.
    fn prune(&self) {
        let mut ended: Vec<_> = {
            let all = self.all.borrow();
            all.values()
                .filter_map(|s| Some((s.ended_at()?, Rc::clone(s))))
                .collect()
        };
        ended.sort_by_key(|(at, _)| std::cmp::Reverse(*at));
        let mut bytes = 0;
        for (n, (at, session)) in ended.iter().enumerate() {
            bytes += session.kept_bytes();
            if session.is_attached() {
                continue;
            }
            if n >= MAX_ENDED || at.elapsed() > KEEP_ENDED {
                self.all.borrow_mut().remove(&session.id);
            } else if bytes > KEEP_ENDED_BYTES {
                session.forget_output();
            }
        }
    }
}

/// A number that is a signal; none for commands that are not the main process.
fn stop_signal(number: u32) -> Option<i32> {
    let number = i32::try_from(number).ok()?;
    (1..=signal::LAST).contains(&number).then_some(number)
}

fn entry(session: &Session) -> SessionEntry {
    let shown = session.argv.iter().take(SHOWN_ARGS);
    SessionEntry {
        session: session.id,
        argv: shown
            .map(|a| a[..a.len().min(SHOWN_ARG)].to_vec())
            .collect(),
        pid: session.pid.as_raw_nonzero().get().unsigned_abs(),
        tty: session.has_terminal(),
        attached: session.is_attached(),
        exit: session.exit(),
        age_ms: session.age().as_millis() as u64,
        main: session.stop_signal.is_some(),
    }
}

/// Our ends, on the event loop.
enum Io {
    Terminal(Rc<Fd>),
    Pipes {
        stdin: Option<Fd>,
        stdout: output::Pipe,
        stderr: output::Pipe,
    },
}

impl Io {
    fn new(io: SpawnedIo) -> io::Result<Self> {
        Ok(match io {
            SpawnedIo::Terminal(fd) => Self::Terminal(Rc::new(Fd::new(fd)?)),
            SpawnedIo::Pipes {
                stdin,
                stdout,
                stderr,
            } => Self::Pipes {
                stdin: stdin.map(Fd::new).transpose()?,
                stdout: output::Pipe::new(stdout)?,
                stderr: output::Pipe::new(stderr)?,
            },
        })
    }

    fn terminal(&self) -> Option<Rc<Fd>> {
        match self {
            Self::Terminal(fd) => Some(Rc::clone(fd)),
            Self::Pipes { .. } => None,
        }
    }

    fn streams(&self) -> usize {
        match self {
            Self::Terminal(_) => 1,
            Self::Pipes { .. } => 2,
        }
    }

    fn pump(self, session: &Rc<Session>, wants_input: bool) {
        use tokio::task::spawn_local;
        let session = || Rc::clone(session);
        let sink = match self {
            Self::Terminal(fd) => {
                spawn_local(output::pump_terminal(session(), Rc::clone(&fd)));
                if wants_input {
                    input::Sink::Terminal(fd)
                } else {
                    input::Sink::None
                }
            }
            Self::Pipes {
                stdin,
                stdout,
                stderr,
            } => {
                spawn_local(output::pump_pipe(session(), ring::Source::Stdout, stdout));
                spawn_local(output::pump_pipe(session(), ring::Source::Stderr, stderr));
                stdin.map_or(input::Sink::None, input::Sink::Pipe)
            }
        };
        spawn_local(input::pump(session(), sink));
    }
}
