//! Starting a sandbox: on request, again, and by its restart policy.

use std::sync::Arc;
use std::time::Duration;

use kiln_image::Silent;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::driver::{Command, Driver, Start};
use super::launch::{self, Launched};
use super::restart::{EndedBy, STABLE_AFTER};
use super::{SandboxInfo, SandboxState, command, stop};
use crate::clock;
use crate::error::Error;
use crate::failpoint;
use crate::hooks::HookPoint;
use crate::snapshot::MainGoesOn;
use crate::store::Intent;

/// How a launch ended, and the command that interrupted it, if one did.
type Outcome = (Result<SandboxInfo, Error>, Option<Command>);

impl Driver {
    /// Launches; one that runs is a success.
    pub(super) async fn start(
        &mut self,
        how: &Start,
        inbox: &mut mpsc::Receiver<Command>,
    ) -> Outcome {
        if self.row.state == SandboxState::Running {
            return (Ok(self.info()), None);
        }
        if let Err(refusal) = self.begin_start().await {
            return (Err(refusal), None);
        }
        let (launched, interrupter) = self.launch(how, inbox).await;
        let outcome = match launched {
            Ok((launched, session)) => self.publish_running(launched, session).await,
            Err(failure) => Err(self.publish_failure(failure).await),
        };
        (outcome.map(|()| self.info()), interrupter)
    }

    /// Stops if need be, then starts.
    pub(super) async fn restart(
        &mut self,
        grace: Duration,
        how: &Start,
        inbox: &mut mpsc::Receiver<Command>,
    ) -> Outcome {
        match self.end(grace, "stopped to be restarted").await {
            Ok(()) => self.start(how, inbox).await,
            Err(failure) => (Err(failure), None),
        }
    }

    async fn begin_start(&mut self) -> Result<(), Error> {
        self.expect_move(SandboxState::Starting, "start")?;
        self.ask_hooks(HookPoint::BeforeStart).await?;
        self.restart_at = None;
        self.row.intent = Some(Intent::Start);
        self.row.reason = None;
        self.row.warnings.clear();
        self.row.timings = None;
        self.row.main_session = None;
        self.row.main_exit = None;
        self.become_state(SandboxState::Starting).await?;
        failpoint::reach("start.intended");
        Ok(())
    }

    /// Runs the launch while it listens to commands, once more if it broke for a reason that may
    /// be gone.
    async fn launch(
        &mut self,
        how: &Start,
        inbox: &mut mpsc::Receiver<Command>,
    ) -> (Result<(Launched, Option<u64>), Error>, Option<Command>) {
        let cancel = CancellationToken::new();
        let mut interrupter = None;
        let launch = launch_twice(self, how, &cancel);
        tokio::pin!(launch);
        let launched = loop {
            tokio::select! {
                launched = &mut launch => break launched,
                Some(command) = inbox.recv(), if interrupter.is_none() => {
                    if command.interrupts_launch() {
                        cancel.cancel();
                    }
                    interrupter = Some(command);
                }
            }
        };
        (launched, interrupter)
    }

    async fn publish_running(
        &mut self,
        launched: Launched,
        session: Option<u64>,
    ) -> Result<(), Error> {
        let Launched {
            live,
            engine,
            image_id,
            image_config,
            warnings,
            timings,
            main: _,
        } = launched;
        self.row.engine = Some(engine);
        self.row.machine = Some(live.machine.record().clone());
        self.row.image_id = Some(image_id);
        self.row.image_config = image_config;
        self.row.warnings = warnings;
        self.row.timings = Some(timings);
        let took = Duration::from_micros(timings.total_us());
        self.shared.counters.started(took);
        self.row.started_at_ms = Some(clock::now_ms());
        self.row.main_session = session;
        self.row.intent = None;
        self.row.wants_running = true;
        self.begin_timeout();
        self.activity.reset();
        self.live = Some(live);
        self.watch_main();
        self.become_state(SandboxState::Running).await?;
        failpoint::reach("start.published");
        if self
            .live
            .as_ref()
            .is_some_and(|live| live.network.is_some())
        {
            self.tell_hooks(HookPoint::NetworkUp).await;
        }
        self.tell_hooks(HookPoint::AfterStart).await;
        Ok(())
    }

    async fn publish_failure(&mut self, failure: Error) -> Error {
        self.shared.counters.start_failed();
        self.row.intent = None;
        self.row.machine = None;
        self.row.wants_running = false;
        self.row.reason = Some(failure.message());
        if let Err(error) = self.become_state(SandboxState::Error).await {
            warn!(error = %error.message(), "the failed start could not be written down");
        }
        self.tell_hooks_of("start", &failure).await;
        failure
    }

    /// Plans the restart of a machine that ended by itself, if the policy wants one. Stored by the
    /// caller, with the state.
    pub(super) fn plan_restart(&mut self, ended: EndedBy) {
        let ran = self
            .row
            .started_at_ms
            .map_or(0, |began| clock::now_ms().saturating_sub(began));
        if Duration::from_millis(ran) >= STABLE_AFTER {
            self.row.restart_streak = 0;
        }
        let wait = self.row.spec.restart.wait(ended, self.row.restart_streak);
        self.row.wants_running = wait.is_some();
        self.restart_at = wait.map(|wait| Instant::now() + wait);
    }

    pub(super) fn count_restart(&mut self) {
        self.row.restart_streak = self.row.restart_streak.saturating_add(1);
        self.row.restarts = self.row.restarts.saturating_add(1);
        self.shared.counters.restarted();
    }

    /// The restart that was planned. One that fails is planned again, as the policy says.
    pub(super) async fn restart_by_policy(
        &mut self,
        inbox: &mut mpsc::Receiver<Command>,
    ) -> Option<Command> {
        self.count_restart();
        info!(restarts = self.row.restarts, "restarting by policy");
        let how = Start {
            progress: Arc::new(Silent),
            run_command: true,
        };
        let (outcome, interrupter) = self.start(&how, inbox).await;
        let stays = interrupter
            .as_ref()
            .is_none_or(|command| !command.interrupts_launch());
        if outcome.is_err() && stays {
            // So short a run is none at all.
            self.row.started_at_ms = None;
            self.plan_restart(EndedBy::Failure);
            if let Err(error) = self.save_and_tell().await {
                warn!(error = %error.message(), "the next restart could not be written down");
            }
        }
        interrupter
    }
}

/// Launches and runs the main command. What failed for a reason that may be gone is tried once
/// more: nothing of the first attempt is left then.
async fn launch_twice(
    driver: &Driver,
    how: &Start,
    cancel: &CancellationToken,
) -> Result<(Launched, Option<u64>), Error> {
    match launch_once(driver, how, cancel).await {
        Err(failure) if failure.may_pass() && !cancel.is_cancelled() => {
            warn!(error = %failure.message(), "the start failed and is tried once more");
            launch_once(driver, how, cancel).await
        }
        outcome => outcome,
    }
}

async fn launch_once(
    driver: &Driver,
    how: &Start,
    cancel: &CancellationToken,
) -> Result<(Launched, Option<u64>), Error> {
    let progress = Arc::clone(&how.progress);
    let launched = launch::launch(&driver.shared, &driver.row, progress, cancel.clone()).await?;
    if !how.run_command {
        return Ok((launched, None));
    }
    if let Some(MainGoesOn { session }) = launched.main {
        return Ok((launched, session));
    }
    let mut row = driver.row.clone();
    row.image_config.clone_from(&launched.image_config);
    match command::run(&row, &launched.live).await {
        Ok(session) => Ok((launched, session)),
        Err(failure) => {
            if let Err(error) = stop::stop(&launched.live, Duration::ZERO).await {
                warn!(error = %error.message(), "a machine without its command left something");
            }
            Err(failure)
        }
    }
}
