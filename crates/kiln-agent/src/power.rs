//! How the guest goes down: who wants it, and in which order.
//!
//! The intent is told to the host first, so that it knows an end from a crash.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io;
use std::rc::Rc;
use std::time::Duration;

use kiln_agent_proto::message::{PowerIntent, PowerMode, PowerSource};
use rustix::process::Signal;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Notify;
use tokio::time::{Instant, timeout};

use crate::Role;
use crate::init::shutdown;
use crate::procfs;
use crate::reaper::Reaper;
use crate::session::Sessions;

/// Time between TERM and KILL when a signal asked for the end.
const DEFAULT_GRACE: Duration = Duration::from_secs(5);
/// The longest grace that a host gets.
const MAX_GRACE: Duration = Duration::from_secs(600);
/// How long the host may take to hear of it, and to fetch the last exit codes.
const TELL_HOST: Duration = Duration::from_millis(300);
/// What the multiplexer gets to put the last words on the wire.
const WIRE: Duration = Duration::from_millis(5);
/// How long killed processes may take to be gone.
const KILL_WAIT: Duration = Duration::from_secs(2);
/// Events kept for a host that does not listen at the moment.
const KEPT_EVENTS: usize = 16;

/// What was asked for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PowerRequest {
    pub(crate) mode: PowerMode,
    pub(crate) source: PowerSource,
    pub(crate) grace: Duration,
}

impl PowerRequest {
    /// What a host asks for.
    pub(crate) fn by_host(mode: PowerMode, grace_ms: u32) -> Self {
        Self {
            mode,
            source: PowerSource::Host,
            grace: Duration::from_millis(grace_ms.into()).min(MAX_GRACE),
        }
    }
}

/// The switch, and the events about it.
#[derive(Debug, Default)]
pub(crate) struct Power {
    request: Cell<Option<PowerRequest>>,
    events: RefCell<VecDeque<PowerIntent>>,
    changed: Notify,
}

impl Power {
    /// Asks for the end. The first to ask decides how.
    pub(crate) fn request(&self, request: PowerRequest) {
        if self.request.get().is_some() {
            return;
        }
        self.request.set(Some(request));
        let mut events = self.events.borrow_mut();
        if events.len() < KEPT_EVENTS {
            events.push_back(PowerIntent {
                mode: request.mode as i32,
                source: request.source as i32,
            });
        }
        self.changed.notify_waiters();
    }

    /// Waits until somebody asks.
    pub(crate) async fn requested(&self) -> PowerRequest {
        loop {
            if let Some(request) = self.request.get() {
                return request;
            }
            self.changed.notified().await;
        }
    }

    /// The next event for the host, which takes it with [`Power::told`].
    pub(crate) async fn next_event(&self) -> PowerIntent {
        loop {
            if let Some(event) = self.events.borrow().front() {
                return *event;
            }
            self.changed.notified().await;
        }
    }

    /// The host has the oldest event.
    pub(crate) fn told(&self) {
        self.events.borrow_mut().pop_front();
        self.changed.notify_waiters();
    }

    async fn all_told(&self) {
        while !self.events.borrow().is_empty() {
            self.changed.notified().await;
        }
    }
}

/// Turns the signals that ask process 1 for the end into requests, for ever. Beside an init they
/// mean nothing: it is the init that is asked, and the agent stays for as long as it is let live.
pub(crate) async fn watch_signals(
    power: Rc<Power>,
    role: Role,
) -> io::Result<std::convert::Infallible> {
    // `poweroff`, `halt` and `reboot` of busybox, sysvinit and (real-time signals) systemd;
    // SIGINT is the kernel's Ctrl-Alt-Del, SIGPWR a failing power supply.
    const RTMIN: i32 = crate::sys::signal::REAL_TIME;
    let meanings = [
        (SignalKind::user_defined1(), PowerMode::PowerOff),
        (SignalKind::user_defined2(), PowerMode::PowerOff),
        (SignalKind::terminate(), PowerMode::Reboot),
        (SignalKind::interrupt(), PowerMode::PowerOff),
        (
            SignalKind::from_raw(Signal::POWER.as_raw()),
            PowerMode::PowerOff,
        ),
        (SignalKind::from_raw(RTMIN + 3), PowerMode::PowerOff),
        (SignalKind::from_raw(RTMIN + 4), PowerMode::PowerOff),
        (SignalKind::from_raw(RTMIN + 5), PowerMode::Reboot),
    ];
    if role == Role::BesideInit {
        // Handled, not ignored: commands would inherit that.
        return outlive(meanings.map(|(kind, _)| kind)).await;
    }
    for (kind, mode) in meanings {
        let mut stream = signal(kind)?;
        let power = Rc::clone(&power);
        let source = if kind == SignalKind::interrupt() {
            PowerSource::CtrlAltDel
        } else {
            PowerSource::Guest
        };
        tokio::task::spawn_local(async move {
            while stream.recv().await.is_some() {
                power.request(PowerRequest {
                    mode,
                    source,
                    grace: DEFAULT_GRACE,
                });
            }
        });
    }
    std::future::pending().await
}

/// Takes these signals, and those by which terminals and users end programs, for nothing.
async fn outlive<const N: usize>(kinds: [SignalKind; N]) -> io::Result<std::convert::Infallible> {
    let more = [
        SignalKind::hangup(),
        SignalKind::quit(),
        SignalKind::alarm(),
    ];
    let kinds = kinds.into_iter().chain(more);
    let streams: io::Result<Vec<_>> = kinds.map(signal).collect();
    let _streams = streams?;
    std::future::pending().await
}

/// Ends everything that runs in the guest, and makes its disks clean.
pub(crate) async fn wind_down(
    request: PowerRequest,
    role: Role,
    power: &Power,
    sessions: &Sessions,
    reaper: &Reaper,
) {
    sessions.close();
    // Without a host that listens the end comes all the same.
    let _ = timeout(TELL_HOST, power.all_told()).await;
    tokio::time::sleep(WIRE).await;
    let grace = end_main(request.grace, sessions).await;
    match role {
        Role::Init => end_everyone(grace, reaper).await,
        Role::BesideInit | Role::Test => end_sessions(grace, sessions).await,
    }
    let _ = timeout(TELL_HOST, sessions.all_delivered()).await;
    if role == Role::Init {
        shutdown::settle_disks();
    }
}

/// Has the main process end before everyone else is asked to: it may need the others for that.
/// Gives what is left of the grace.
async fn end_main(grace: Duration, sessions: &Sessions) -> Duration {
    let began = Instant::now();
    if sessions.ask_main_to_end() {
        // One that takes too long is killed with the others.
        let _ = timeout(grace, sessions.main_exited()).await;
    }
    grace.saturating_sub(began.elapsed())
}

async fn end_everyone(grace: Duration, reaper: &Reaper) {
    signal_everyone(Signal::TERM);
    // A stopped process hears of TERM only when it goes on.
    signal_everyone(Signal::CONT);
    if timeout(grace, reaper.no_children()).await.is_ok() {
        return;
    }
    let killed = async {
        while !procfs::user_processes().is_empty() {
            signal_everyone(Signal::KILL);
            // Somebody may have forked since: look again when one has gone, or soon.
            let _ = timeout(Duration::from_millis(20), reaper.no_children()).await;
        }
    };
    let _ = timeout(KILL_WAIT, killed).await;
}

fn signal_everyone(signal: Signal) {
    for pid in procfs::user_processes() {
        // It may have ended in the meantime.
        let _ = rustix::process::kill_process(pid, signal);
    }
}

async fn end_sessions(grace: Duration, sessions: &Sessions) {
    sessions.terminate_all();
    if timeout(grace, sessions.all_exited()).await.is_err() {
        sessions.kill_all();
        let _ = timeout(KILL_WAIT, sessions.all_exited()).await;
    }
}
