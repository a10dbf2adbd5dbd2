//! The end of a sandbox's main command, and its restart by the sandbox's policy.
//!
//! The command ends and is started again in the guest that runs; what the machine does is told in
//! `start` and `end`. Whoever takes a running sandbox over asks the agent which of the main commands
//! is the last: its predecessor may have started one that it did not come to write down.

use std::time::Duration;

use tokio::time::{Instant, timeout};
use tokio_util::task::AbortOnDropHandle;
use tracing::{info, warn};

use super::driver::{Driver, Live};
use super::restart::{EndedBy, STABLE_AFTER};
use super::timeouts::Due;
use super::{SandboxState, command};
use crate::error::ErrorCode;
use crate::exec::ExecExit;
use crate::failpoint;
use crate::guest::{GuestError, GuestLink, Refusal, SessionEnd};
use crate::store::SandboxRow;

/// How long a guest may take to start the command again; the sandbox does nothing else meanwhile.
const PATIENCE: Duration = Duration::from_secs(10);

/// An end that nobody can tell any more counts as a failure.
const FORGOTTEN: SessionEnd = SessionEnd {
    exit: ExecExit::Code(255),
    age: Duration::ZERO,
};
/// What a shell says of a command that cannot be started.
const NOT_STARTED: ExecExit = ExecExit::Code(127);

/// Waits for the end of a main command.
pub(super) struct MainWatch(AbortOnDropHandle<Result<Ended, GuestError>>);

/// A main command that has ended.
pub(super) struct Ended {
    session: u64,
    end: SessionEnd,
}

impl MainWatch {
    fn new(link: GuestLink, session: u64) -> Self {
        let watch = async move {
            let end = link.session_ended(session).await?;
            Ok(Ended { session, end })
        };
        Self(AbortOnDropHandle::new(tokio::spawn(watch)))
    }

    /// Of a machine that was taken over, or may run a later one than is known: the last there is.
    pub(super) fn newest(row: &SandboxRow, live: &Live) -> Option<Self> {
        let (link, known) = (live.link.clone(), row.main_session?);
        let watch = async move {
            let all = link.sessions().await?;
            let mains = all.iter().filter(|it| it.main).map(|it| it.id);
            let session = mains.max().unwrap_or_default().max(known);
            let end = match link.session_ended(session).await {
                // It ended long ago, and the agent has forgotten how.
                Err(error) if error.refusal() == Some(Refusal::NoSuchSession) => FORGOTTEN,
                told => told?,
            };
            Ok(Ended { session, end })
        };
        Some(Self(AbortOnDropHandle::new(tokio::spawn(watch))))
    }
}

/// Resolves when the main command ends; never without one. Cancel-safe.
pub(super) async fn ended(watch: Option<&mut MainWatch>) -> Option<Ended> {
    let Some(watch) = watch else {
        return std::future::pending().await;
    };
    match (&mut watch.0).await {
        Ok(Ok(ended)) => Some(ended),
        Ok(Err(error)) => {
            info!(%error, "the end of the main command cannot be waited for");
            None
        }
        Err(_) => None,
    }
}

impl Driver {
    /// Watches the main command of the machine that runs, if it has one.
    pub(super) fn watch_main(&mut self) {
        let link = self.live.as_ref().map(|live| live.link.clone());
        let watch = link.zip(self.row.main_session);
        self.main = watch.map(|(link, session)| MainWatch::new(link, session));
    }

    /// Its end matters no more.
    pub(super) fn leave_main(&mut self) {
        self.main = None;
        self.command_at = None;
    }

    /// The main command has ended; `None` when nobody can tell.
    pub(super) async fn main_ended(&mut self, ended: Option<Ended>) {
        self.main = None;
        let (Some(Ended { session, end }), Some(live)) = (ended, &self.live) else {
            return;
        };
        let guest_goes_down = live.link.power_intent().is_some();
        info!(session, exit = ?end.exit, "the main command has ended");
        self.row.main_session = Some(session);
        self.row.main_exit = Some(end.exit);
        if !guest_goes_down {
            self.plan_command(end.exit, end.age);
        }
        self.write_down().await;
    }

    fn plan_command(&mut self, exit: ExecExit, ran: Duration) {
        if ran >= STABLE_AFTER {
            self.row.restart_streak = 0;
        }
        let by = match exit {
            ExecExit::Code(0) => EndedBy::Guest,
            _ => EndedBy::Failure,
        };
        let wait = self.row.spec.restart.wait(by, self.row.restart_streak);
        self.command_at = wait.map(|wait| Instant::now() + wait);
    }

    /// When the command is started again. Not in a guest that is halted.
    pub(super) fn command_due(&self) -> Option<(Instant, Due)> {
        let at = self.command_at?;
        (self.row.state == SandboxState::Running).then_some((at, Due::Command))
    }

    /// The restart that was planned. One that fails is planned again, as the policy says.
    pub(super) async fn restart_command(&mut self) {
        self.command_at = None;
        self.count_restart();
        self.write_down().await;
        let Some(live) = &self.live else { return };
        let started = timeout(PATIENCE, command::run(&self.row, live)).await;
        failpoint::reach("command.started");
        match started {
            Ok(Ok(session)) => {
                info!(restarts = self.row.restarts, "the main command runs again");
                self.row.main_session = session;
                self.watch_main();
            }
            Ok(Err(error)) if error.code() != ErrorCode::AgentUnreachable => {
                warn!(error = %error.message(), "the main command could not be started again");
                self.plan_command(NOT_STARTED, Duration::ZERO);
            }
            Ok(Err(_)) | Err(_) => {
                warn!("the guest does not say whether the main command runs again");
                self.main = MainWatch::newest(&self.row, live);
            }
        }
        self.write_down().await;
    }

    async fn write_down(&self) {
        if let Err(error) = self.save_and_tell().await {
            warn!(error = %error.message(), "the state of the main command could not be written down");
        }
    }
}
