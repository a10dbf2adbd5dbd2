//! The connection to the agent of one guest, for the life of its machine.
//!
//! Owns meeting the agent ([`meet`]), the multiplexed connection and its renewal ([`link`],
//! [`connection`]), and the two ends of running commands ([`session`]). Everything that comes
//! from the guest is hostile: sizes, counts and texts are bounded, floods end the connection,
//! and nothing that a guest sends makes this room panic or grow. It knows nothing of machines
//! and sandboxes.

mod changes;
mod connection;
mod error;
mod files;
mod link;
mod meet;
mod port;
mod session;
mod unread;
mod wait;

use std::sync::Arc;
use std::time::Duration;

use kiln_agent_proto::message::{
    Attach, Connect, Exec, GetStats, Kill, ListSessions, Power, PowerMode, Request, SessionEntry,
    reply, request,
};
use kiln_agent_proto::version;
use kiln_vmm::AgentEndpoint;
use tokio::sync::{broadcast, watch};
use tokio::time::timeout;
use tokio_util::task::AbortOnDropHandle;

pub use changes::FileWatch;
pub(crate) use error::{GuestError, Refusal};
pub use files::{TreeDownload, TreeUpload};
pub use port::PortStream;
pub use session::{ExecInputSender, ExecOutputReceiver, ExecSession};
pub(crate) use wait::SessionEnd;

use crate::exec::{ExecSpec, SessionInfo};
use crate::process::Completed;
use connection::Operation;
use link::{Keeper, LinkState, Up};
use meet::Meeting;

/// How long an operation waits for a connection and its answer.
const ANSWER: Duration = Duration::from_secs(30);
/// Events that a slow subscriber may be behind.
const EVENTS: usize = 64;
/// Sessions that a guest may have us list.
const MAX_SESSIONS: usize = 4096;
/// Of the arguments of a listed session, what is kept.
const SHOWN_ARGS: usize = 16;
const SHOWN_ARG: usize = 256;

/// What a guest is told about itself on every connection; the clock and random bytes come along.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct GuestIdentity {
    /// Its host name; empty leaves it alone.
    pub hostname: String,
}

/// What an agent says about itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct AgentInfo {
    /// Protocol version settled on.
    pub version: u32,
    /// Its release.
    pub release: String,
    /// Number of its life: sessions belong to it.
    pub instance: u64,
    /// When it became process 1, since the guest's kernel started.
    pub init_started: Duration,
    /// When it reached the steps of its start, since the guest's kernel started.
    pub marks: Vec<(String, Duration)>,
    /// How long the hello took.
    pub round_trip: Duration,
}

impl AgentInfo {
    const MAX_MARKS: usize = 64;
}

/// How a guest wants to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum PowerIntent {
    /// It is to stay off.
    PowerOff,
    /// It is to be started again.
    Reboot,
}

/// Who wanted it to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum IntentSource {
    /// This host, by [`GuestLink::power_off`].
    Host,
    /// A program in the guest.
    Guest,
    /// Ctrl-Alt-Del.
    CtrlAltDel,
}

/// Something that happened to a link.
#[derive(Clone, Debug)]
pub(crate) enum GuestEvent {
    /// There is a connection.
    Up(Arc<AgentInfo>),
    /// The connection ended, for this reason; another is sought.
    Down(Arc<str>),
    /// The guest is about to end.
    PowerIntent(PowerIntent, IntentSource),
}

/// Figures of a guest, as it tells them.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct GuestStats {
    /// Resident memory of the agent.
    pub agent_rss_kib: u64,
    /// Since the guest's kernel started.
    pub uptime: Duration,
    /// Memory that its kernel manages.
    pub mem_total_kib: u64,
    /// Memory available to new programs.
    pub mem_available_kib: u64,
    /// Sessions that run.
    pub sessions_running: u32,
    /// Sessions that have ended and are kept.
    pub sessions_ended: u32,
    /// Processes in the guest.
    pub processes: u32,
    /// Load of the last minute.
    pub load1: f32,
    /// Time that its processors have worked, all together.
    pub cpu_busy: Duration,
    /// Its processors.
    pub cpus: u32,
    /// Size of its root file system.
    pub disk_total_kib: u64,
    /// Of it, in use.
    pub disk_used_kib: u64,
    /// Bytes received by its interfaces.
    pub net_rx_bytes: u64,
    /// Bytes sent.
    pub net_tx_bytes: u64,
}

/// The connection to one guest's agent. Clones are the same link; it ends with
/// [`GuestLink::close`] or the last clone.
#[derive(Clone, Debug)]
pub(crate) struct GuestLink {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    state: watch::Sender<LinkState>,
    events: broadcast::Sender<GuestEvent>,
    intent: watch::Sender<Option<PowerIntent>>,
    keeper: std::sync::Mutex<Option<AbortOnDropHandle<()>>>,
}

impl GuestLink {
    /// Prepares to meet the agent at `endpoint`, at once and before the guest runs, and keeps
    /// trying from then on. A place that cannot be used is reported by [`GuestLink::ready`] and
    /// everything else.
    ///
    /// Must be called within a tokio runtime.
    #[must_use]
    pub(crate) fn open(endpoint: AgentEndpoint, identity: GuestIdentity) -> Self {
        let (state, _) = watch::channel(LinkState::Down("not met yet".into()));
        let (events, _) = broadcast::channel(EVENTS);
        let (intent, _) = watch::channel(None);
        let keeper = Keeper {
            identity,
            state: state.clone(),
            events: events.clone(),
            intent: intent.clone(),
        };
        let task = match Meeting::prepare(endpoint) {
            Ok(meeting) => Some(AbortOnDropHandle::new(tokio::spawn(keeper.run(meeting)))),
            Err(error) => {
                state.send_replace(LinkState::Failed(error));
                None
            }
        };
        Self {
            shared: Arc::new(Shared {
                state,
                events,
                intent,
                keeper: std::sync::Mutex::new(task),
            }),
        }
    }

    /// Waits until there is a connection. Without a deadline of its own; cancel-safe.
    ///
    /// # Errors
    /// [`GuestError::Version`], [`GuestError::Endpoint`], [`GuestError::Closed`]: there will be
    /// no connection.
    pub(crate) async fn ready(&self) -> Result<Arc<AgentInfo>, GuestError> {
        Ok(self.shared.up_after(0).await?.info)
    }

    /// Starts a command and attaches to it.
    ///
    /// # Errors
    /// [`GuestError::Refused`] when it cannot be run ([`GuestError::exit_code`] tells whether
    /// the command is at fault); [`GuestError::Lost`] when the connection broke before the
    /// answer: the command may run then.
    pub(crate) async fn exec(&self, spec: &ExecSpec) -> Result<ExecSession, GuestError> {
        self.start(session::wire_spec(spec)).await
    }

    /// As [`GuestLink::exec`], with what the image says about the command.
    pub(crate) async fn exec_completed(
        &self,
        completed: &Completed,
    ) -> Result<ExecSession, GuestError> {
        self.start(Exec {
            make_cwd: completed.make_cwd,
            stop_signal: completed.stop_signal,
            ..session::wire_spec(&completed.spec)
        })
        .await
    }

    async fn start(&self, exec: Exec) -> Result<ExecSession, GuestError> {
        if exec.limits.is_some() {
            // One that does not know them would ignore them.
            self.speaks(version::EXEC_LIMITS, "limit a command").await?;
        }
        let has_terminal = exec.tty.is_some();
        let request = Request::of(request::Kind::Exec(exec));
        let (up, operation, kind) = self.shared.call_once(&request).await?;
        match kind {
            reply::Kind::Started(started) => Ok(session::start(
                Arc::clone(&self.shared),
                session::Progress::new(started, has_terminal, up.info.instance),
                operation,
                up.epoch,
            )),
            _ => Err(GuestError::Protocol(
                "it answers an exec with something else",
            )),
        }
    }

    /// Attaches to a session; another client of it is put out. Output from `from_offset` on
    /// that is not kept any more comes as [`ExecOutput::Lost`](crate::exec::ExecOutput::Lost).
    ///
    /// # Errors
    /// [`Refusal::NoSuchSession`]; [`Refusal::BadRequest`] for an offset beyond the output.
    pub(crate) async fn attach(
        &self,
        session: u64,
        from_offset: u64,
    ) -> Result<ExecSession, GuestError> {
        let request = Request::of(request::Kind::Attach(Attach {
            session,
            from_offset,
        }));
        let (up, operation, kind) = self.shared.call(&request).await?;
        match kind {
            reply::Kind::Attached(attached) => Ok(session::start(
                Arc::clone(&self.shared),
                session::Progress::attached(attached, from_offset, up.info.instance),
                operation,
                up.epoch,
            )),
            _ => Err(GuestError::Protocol(
                "it answers an attach with something else",
            )),
        }
    }

    /// The sessions of the guest: those that run, and the last ones that have ended.
    ///
    /// # Errors
    /// No connection or answer in time.
    pub(crate) async fn sessions(&self) -> Result<Vec<SessionInfo>, GuestError> {
        let request = Request::of(request::Kind::Sessions(ListSessions {}));
        let (_, operation, kind) = self.shared.call(&request).await?;
        timeout(ANSWER, rest_of_list(operation, kind))
            .await
            .unwrap_or_else(|_| Err(self.shared.too_late(ANSWER)))
    }

    /// Ends a session with all its processes.
    ///
    /// # Errors
    /// [`Refusal::NoSuchSession`]; no connection or answer in time.
    pub(crate) async fn kill(&self, session: u64) -> Result<(), GuestError> {
        self.command(request::Kind::Kill(Kill { session })).await
    }

    /// Asks the guest to power itself off: its main process first, then TERM to all, KILL when the
    /// grace is over, disks written out. Returns when it has agreed.
    ///
    /// # Errors
    /// No connection or answer in time.
    pub(crate) async fn power_off_within(&self, grace: Duration) -> Result<(), GuestError> {
        self.command(request::Kind::Power(Power {
            mode: PowerMode::PowerOff as i32,
            grace_ms: u32::try_from(grace.as_millis()).unwrap_or(u32::MAX),
        }))
        .await
    }

    /// Connects to a port of the guest's loopback address.
    ///
    /// # Errors
    /// [`Refusal::PortClosed`] when nothing listens there; [`Refusal::TooOld`] when the agent cannot
    /// do that; no connection or answer in time.
    pub(crate) async fn connect(&self, port: u16) -> Result<PortStream, GuestError> {
        self.speaks(version::CONNECT, "forward ports").await?;
        let port = u32::from(port);
        let request = Request::of(request::Kind::Connect(Connect { port }));
        match self.shared.call_once(&request).await? {
            (_, operation, reply::Kind::Done(_)) => Ok(operation.into_port()),
            _ => Err(GuestError::Protocol(
                "it answers a connect with something else",
            )),
        }
    }

    /// Refuses what needs an agent of at least this version.
    async fn speaks(&self, needed: u32, what: &str) -> Result<(), GuestError> {
        if self.ready_within(ANSWER).await?.version >= needed {
            return Ok(());
        }
        Err(GuestError::Refused {
            kind: Refusal::TooOld,
            message: format!("the guest's agent is too old to {what}"),
        })
    }

    async fn ready_within(&self, patience: Duration) -> Result<Arc<AgentInfo>, GuestError> {
        timeout(patience, self.ready())
            .await
            .unwrap_or_else(|_| Err(self.shared.too_late(patience)))
    }

    /// Figures of the guest.
    ///
    /// # Errors
    /// No connection or answer in time.
    pub(crate) async fn stats(&self) -> Result<GuestStats, GuestError> {
        let request = Request::of(request::Kind::Stats(GetStats {}));
        match self.shared.call(&request).await?.2 {
            reply::Kind::Stats(stats) => Ok(GuestStats {
                agent_rss_kib: stats.agent_rss_kib,
                uptime: Duration::from_millis(stats.uptime_ms),
                mem_total_kib: stats.mem_total_kib,
                mem_available_kib: stats.mem_available_kib,
                sessions_running: stats.sessions_running,
                sessions_ended: stats.sessions_ended,
                processes: stats.processes,
                load1: stats.load1_centi as f32 / 100.0,
                cpu_busy: Duration::from_millis(stats.cpu_busy_ms),
                cpus: stats.cpus,
                disk_total_kib: stats.disk_total_kib,
                disk_used_kib: stats.disk_used_kib,
                net_rx_bytes: stats.net_rx_bytes,
                net_tx_bytes: stats.net_tx_bytes,
            }),
            _ => Err(GuestError::Protocol("it answers stats with something else")),
        }
    }

    /// What happens to the link from now on.
    #[must_use]
    pub(crate) fn events(&self) -> broadcast::Receiver<GuestEvent> {
        self.shared.events.subscribe()
    }

    /// How the guest said it would end, if it did.
    #[must_use]
    pub(crate) fn power_intent(&self) -> Option<PowerIntent> {
        *self.shared.intent.borrow()
    }

    /// Ends the link, on all clones; sessions in the guest run on. Idempotent.
    pub(crate) async fn close(&self) {
        if let Some(keeper) = self.shared.take_keeper() {
            keeper.abort();
            let _ = keeper.await;
        }
        let closed = LinkState::Failed(GuestError::Closed);
        self.shared.state.send_replace(closed);
    }

    async fn command(&self, kind: request::Kind) -> Result<(), GuestError> {
        match self.shared.call(&Request::of(kind)).await?.2 {
            reply::Kind::Done(_) => Ok(()),
            _ => Err(GuestError::Protocol(
                "it answers a command with something else",
            )),
        }
    }
}

impl Shared {
    fn take_keeper(&self) -> Option<AbortOnDropHandle<()>> {
        let mut keeper = match self.keeper.lock() {
            Ok(keeper) => keeper,
            Err(poisoned) => poisoned.into_inner(),
        };
        keeper.take()
    }

    /// Waits for a connection newer than the one of `epoch`. Cancel-safe.
    async fn up_after(&self, epoch: u64) -> Result<Up, GuestError> {
        let mut state = self.state.subscribe();
        let settled = state.wait_for(|state| match state {
            LinkState::Down(_) => false,
            LinkState::Up(up) => up.epoch > epoch,
            LinkState::Failed(_) => true,
        });
        match &*settled.await.map_err(|_| GuestError::Closed)? {
            LinkState::Up(up) => Ok(up.clone()),
            LinkState::Failed(error) => Err(error.clone()),
            LinkState::Down(_) => Err(GuestError::Closed),
        }
    }

    /// An operation that may be repeated: it is, when the connection breaks under it.
    async fn call(&self, request: &Request) -> Result<(Up, Operation, reply::Kind), GuestError> {
        let calls = async {
            let mut epoch = 0;
            loop {
                let up = self.up_after(epoch).await?;
                epoch = up.epoch;
                match up.streams.call(request).await {
                    Err(GuestError::Lost) => {}
                    Err(error) => return Err(error),
                    Ok((operation, kind)) => return Ok((up, operation, kind)),
                }
            }
        };
        timeout(ANSWER, calls)
            .await
            .unwrap_or_else(|_| Err(self.too_late(ANSWER)))
    }

    /// An operation that may not be repeated.
    async fn call_once(
        &self,
        request: &Request,
    ) -> Result<(Up, Operation, reply::Kind), GuestError> {
        let call = async {
            let up = self.up_after(0).await?;
            let (operation, kind) = up.streams.call(request).await?;
            Ok((up, operation, kind))
        };
        timeout(ANSWER, call)
            .await
            .unwrap_or_else(|_| Err(self.too_late(ANSWER)))
    }

    fn too_late(&self, waited: Duration) -> GuestError {
        let reason = match &*self.state.borrow() {
            LinkState::Down(reason) => reason.to_string(),
            LinkState::Up(_) => "connected".to_owned(),
            LinkState::Failed(error) => error.to_string(),
        };
        GuestError::Deadline { waited, reason }
    }
}

async fn rest_of_list(
    mut operation: Operation,
    mut kind: reply::Kind,
) -> Result<Vec<SessionInfo>, GuestError> {
    let mut all = Vec::new();
    loop {
        let reply::Kind::Sessions(list) = kind else {
            return Err(GuestError::Protocol(
                "it answers a list with something else",
            ));
        };
        if list.sessions.is_empty() && !list.last {
            return Err(GuestError::Protocol("a list without end"));
        }
        all.extend(list.sessions.into_iter().map(session_info));
        if all.len() > MAX_SESSIONS {
            return Err(GuestError::Protocol("too many sessions"));
        }
        if list.last {
            return Ok(all);
        }
        kind = operation.reply().await?;
    }
}

fn session_info(entry: SessionEntry) -> SessionInfo {
    let shown =
        |arg: Vec<u8>| String::from_utf8_lossy(&arg[..arg.len().min(SHOWN_ARG)]).into_owned();
    SessionInfo {
        id: entry.session,
        argv: entry.argv.into_iter().take(SHOWN_ARGS).map(shown).collect(),
        pid: entry.pid,
        tty: entry.tty,
        attached: entry.attached,
        exit: entry.exit.map(session::exit),
        age: Duration::from_millis(entry.age_ms),
        main: entry.main,
    }
}

#[cfg(test)]
pub(crate) mod tests;
