//! One task per sandbox, the only writer of its state.
//!
//! Requests reach it as commands and only wait for the answer: a client that leaves changes
//! nothing. While a launch runs, a stop or a removal cancels it; everything else queues.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use kiln_image::Progress;
use kiln_vmm::{Exit, Machine};
use tokio::sync::{broadcast, mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::launch::{self, Launched};
use super::{SandboxInfo, SandboxState, stop};
use crate::error::{Error, ErrorCode};
use crate::guest::{GuestEvent, GuestLink};
use crate::host::Shared;
use crate::network::{Attachment, NetworkSpec};
use crate::store::{Intent, SandboxRow, Sandboxes};
use crate::volumes::VolumeClaims;

/// Commands that may wait for a driver before senders wait themselves.
const QUEUE: usize = 16;
/// How long a guest that is removed has to write its volumes out.
const VOLUME_GRACE: Duration = Duration::from_secs(10);

/// What the driver is asked to do.
pub(crate) enum Command {
    Start {
        progress: Arc<dyn Progress>,
        reply: Reply<SandboxInfo>,
    },
    Stop {
        grace: Duration,
        reply: Reply<SandboxInfo>,
    },
    Remove {
        force: bool,
        reply: Reply<()>,
    },
    UpdateNetwork {
        policy: kiln_net::policy::PolicySpec,
        reply: Reply<()>,
    },
}

impl Command {
    fn interrupts_launch(&self) -> bool {
        matches!(self, Self::Stop { .. } | Self::Remove { force: true, .. })
    }
}

type Reply<T> = oneshot::Sender<Result<T, Error>>;

/// What others see of a sandbox.
#[derive(Clone)]
pub(crate) struct View {
    pub(crate) row: Arc<SandboxRow>,
    pub(crate) link: Option<GuestLink>,
    pub(crate) machine: Option<Arc<dyn Machine>>,
    pub(crate) network: Option<Attachment>,
}

/// The way to a driver; clones share it.
#[derive(Clone)]
pub(crate) struct DriverHandle {
    pub(crate) commands: mpsc::Sender<Command>,
    pub(crate) view: watch::Receiver<View>,
}

/// A machine that runs, and the way to its agent.
pub(crate) struct Live {
    pub(crate) machine: Arc<dyn Machine>,
    pub(crate) link: GuestLink,
    pub(crate) network: Option<Attachment>,
    link_events: broadcast::Receiver<GuestEvent>,
    /// Let go of with the machine.
    _volumes: VolumeClaims,
}

impl Live {
    pub(crate) fn new(
        machine: Arc<dyn Machine>,
        link: GuestLink,
        network: Option<Attachment>,
        volumes: VolumeClaims,
    ) -> Self {
        let link_events = link.events();
        Self {
            machine,
            link,
            network,
            link_events,
            _volumes: volumes,
        }
    }
}

/// Starts the driver of a stored sandbox; `live` is its machine if one was adopted.
pub(crate) fn spawn(shared: Arc<Shared>, row: SandboxRow, live: Option<Live>) -> DriverHandle {
    let (commands, inbox) = mpsc::channel(QUEUE);
    let (publisher, view) = watch::channel(view_of(&row, live.as_ref()));
    let span = tracing::info_span!("sandbox", id = %row.id);
    let driver = Driver {
        shared,
        row,
        live,
        publisher,
    };
    tokio::spawn(tracing::Instrument::instrument(driver.run(inbox), span));
    DriverHandle { commands, view }
}

fn view_of(row: &SandboxRow, live: Option<&Live>) -> View {
    View {
        row: Arc::new(row.clone()),
        link: live.map(|live| live.link.clone()),
        machine: live.map(|live| Arc::clone(&live.machine)),
        network: live.and_then(|live| live.network.clone()),
    }
}

struct Driver {
    shared: Arc<Shared>,
    row: SandboxRow,
    live: Option<Live>,
    publisher: watch::Sender<View>,
}

impl Driver {
    async fn run(mut self, mut inbox: mpsc::Receiver<Command>) {
        let mut deferred = None;
        loop {
            let machine = self.live.as_ref().map(|live| Arc::clone(&live.machine));
            let link_events = self.live.as_mut().map(|live| &mut live.link_events);
            let command = match deferred.take() {
                Some(command) => command,
                None => tokio::select! {
                    // A machine that has ended is cleaned up even if the host closes meanwhile.
                    biased;
                    exit = gone(machine.as_ref()) => {
                        self.machine_gone(exit).await;
                        continue;
                    }
                    event = link_event(link_events) => {
                        note(&event);
                        continue;
                    }
                    command = inbox.recv() => match command {
                        Some(command) => command,
                        // The host closes. The machine runs on.
                        None => break,
                    },
                },
            };
            let flow = match command {
                Command::Start { progress, reply } => {
                    deferred = self.start(progress, reply, &mut inbox).await;
                    ControlFlow::Continue(())
                }
                Command::Stop { grace, reply } => {
                    answer(reply, self.stop(grace).await);
                    ControlFlow::Continue(())
                }
                Command::Remove { force, reply } => self.remove(force, reply).await,
                Command::UpdateNetwork { policy, reply } => {
                    answer(reply, self.update_network(policy).await);
                    ControlFlow::Continue(())
                }
            };
            if flow.is_break() {
                break;
            }
        }
        if let Some(live) = self.live.take() {
            live.link.close().await;
        }
    }

    /// Launches; returns the command that interrupted it, if one did.
    async fn start(
        &mut self,
        progress: Arc<dyn Progress>,
        reply: Reply<SandboxInfo>,
        inbox: &mut mpsc::Receiver<Command>,
    ) -> Option<Command> {
        if let Err(refusal) = self.begin_start().await {
            answer(reply, Err(refusal));
            return None;
        }
        let cancel = CancellationToken::new();
        let mut interrupter = None;
        let launched = {
            let launch = launch::launch(&self.shared, &self.row, progress, cancel.clone());
            tokio::pin!(launch);
            loop {
                tokio::select! {
                    launched = &mut launch => break launched,
                    Some(command) = inbox.recv(), if interrupter.is_none() => {
                        if command.interrupts_launch() {
                            cancel.cancel();
                        }
                        interrupter = Some(command);
                    }
                }
            }
        };
        let outcome = match launched {
            Ok(launched) => self.publish_running(launched).await,
            Err(failure) => Err(self.publish_failure(failure).await),
        };
        answer(reply, outcome.map(|()| self.info()));
        interrupter
    }

    async fn begin_start(&mut self) -> Result<(), Error> {
        self.expect_move(SandboxState::Starting, "start")?;
        self.row.intent = Some(Intent::Start);
        self.row.reason = None;
        self.row.warnings.clear();
        self.row.timings = None;
        self.become_state(SandboxState::Starting).await
    }

    async fn publish_running(&mut self, launched: Launched) -> Result<(), Error> {
        let Launched {
            live,
            engine,
            image_id,
            image_config,
            warnings,
            timings,
        } = launched;
        self.row.engine = Some(engine);
        self.row.machine = Some(live.machine.record().clone());
        self.row.image_id = Some(image_id);
        self.row.image_config = image_config;
        self.row.warnings = warnings;
        self.row.timings = Some(timings);
        self.row.started_at_ms = Some(crate::clock::now_ms());
        self.row.intent = None;
        self.live = Some(live);
        self.become_state(SandboxState::Running).await
    }

    async fn publish_failure(&mut self, failure: Error) -> Error {
        self.row.intent = None;
        self.row.machine = None;
        self.row.reason = Some(failure.message());
        if let Err(error) = self.become_state(SandboxState::Error).await {
            warn!(error = %error.message(), "the failed start could not be written down");
        }
        failure
    }

    /// Ends the machine; one that is not running is a success.
    async fn stop(&mut self, grace: Duration) -> Result<SandboxInfo, Error> {
        let Some(live) = self.live.take() else {
            return Ok(self.info());
        };
        self.row.intent = Some(Intent::Stop);
        self.become_state(SandboxState::Stopping).await?;
        let ended = stop::stop(&live, grace).await;
        self.rest("stopped on request").await?;
        ended?;
        Ok(self.info())
    }

    /// The machine ended by itself.
    async fn machine_gone(&mut self, exit: Exit) {
        let Some(live) = self.live.take() else { return };
        let reason = stop::reason_of_end(&live, exit);
        if let Err(error) = stop::clean_up(&live).await {
            warn!(error = %error.message(), "the ended machine left something behind");
        }
        if let Err(error) = self.rest(&reason).await {
            warn!(error = %error.message(), "the end of the machine could not be written down");
        }
    }

    async fn rest(&mut self, reason: &str) -> Result<(), Error> {
        self.row.intent = None;
        self.row.machine = None;
        self.row.reason = Some(reason.to_owned());
        self.become_state(SandboxState::Stopped).await
    }

    async fn remove(&mut self, force: bool, reply: Reply<()>) -> ControlFlow<()> {
        if self.live.is_some() && !force {
            answer(reply, Err(still_running(&self.row.id)));
            return ControlFlow::Continue(());
        }
        let removed = self.remove_all().await;
        let flow = match &removed {
            Ok(()) => ControlFlow::Break(()),
            Err(_) => ControlFlow::Continue(()),
        };
        answer(reply, removed);
        flow
    }

    /// Machine, files, row, in this order; what fails leaves the intent for recovery.
    async fn remove_all(&mut self) -> Result<(), Error> {
        self.row.intent = Some(Intent::Remove);
        self.save().await?;
        if let Some(live) = self.live.take() {
            stop::stop(&live, self.grace_of_removal()).await?;
        }
        self.shared.delete_files(&self.row.id).await?;
        let id = self.row.id.clone();
        self.shared
            .store
            .write(move |tx| Sandboxes(tx).delete(&id))
            .await?;
        info!("removed");
        self.shared.forget(&self.row.id);
        self.shared.events.publish(&self.row.id, None);
        Ok(())
    }

    /// Nothing of the guest is kept, so it need not be asked; but what it wrote to its volumes is.
    fn grace_of_removal(&self) -> Duration {
        let writes = self.row.spec.volumes.iter().any(|it| !it.read_only);
        if writes { VOLUME_GRACE } else { Duration::ZERO }
    }

    /// Stored first: after a crash in between, the one who adopts the network applies it.
    async fn update_network(&mut self, policy: kiln_net::policy::PolicySpec) -> Result<(), Error> {
        let wanted = NetworkSpec {
            policy,
            ..self.row.spec.network.clone()
        };
        wanted.check()?;
        let checked = wanted.checked_policy()?;
        let before = std::mem::replace(&mut self.row.spec.network, wanted);
        let mut changed = self.save().await;
        if changed.is_ok()
            && let Some(network) = self.live.as_ref().and_then(|live| live.network.as_ref())
        {
            changed = network.update(checked).await;
        }
        if changed.is_err() {
            self.row.spec.network = before;
            self.save().await?;
        }
        self.publisher
            .send_replace(view_of(&self.row, self.live.as_ref()));
        changed
    }

    fn expect_move(&self, next: SandboxState, call: &str) -> Result<(), Error> {
        if self.row.state.may_become(next) {
            return Ok(());
        }
        let message = format!(
            "cannot {call} sandbox {}: it is {}",
            self.row.id, self.row.state
        );
        Err(Error::new(ErrorCode::InvalidState, message))
    }

    /// Writes the row down, then tells everyone.
    async fn become_state(&mut self, next: SandboxState) -> Result<(), Error> {
        debug_assert!(
            self.row.state.may_become(next),
            "{} to {next}",
            self.row.state
        );
        self.row.state = next;
        let saved = self.save().await;
        info!(state = %next, reason = self.row.reason.as_deref(), "state");
        self.publisher
            .send_replace(view_of(&self.row, self.live.as_ref()));
        self.shared.events.publish(&self.row.id, Some(next));
        saved
    }

    async fn save(&self) -> Result<(), Error> {
        let row = self.row.clone();
        self.shared
            .store
            .write(move |tx| Sandboxes(tx).update(&row))
            .await?;
        Ok(())
    }

    fn info(&self) -> SandboxInfo {
        let machine = self.live.as_ref().map(|live| live.machine.as_ref());
        SandboxInfo::of(&self.row, machine)
    }
}

fn still_running(id: &str) -> Error {
    Error::new(ErrorCode::InvalidState, format!("sandbox {id} is running"))
        .with_hint("stop it first, or remove it with --force")
}

fn answer<T>(reply: Reply<T>, outcome: Result<T, Error>) {
    // The client may have left; the work is done all the same.
    let _ = reply.send(outcome);
}

/// Resolves when the machine ends; never without one.
async fn gone(machine: Option<&Arc<dyn Machine>>) -> Exit {
    match machine {
        Some(machine) => machine.wait().await,
        None => std::future::pending().await,
    }
}

/// The next thing that happens to the link; never without one.
async fn link_event(events: Option<&mut broadcast::Receiver<GuestEvent>>) -> GuestEvent {
    let Some(events) = events else {
        return std::future::pending().await;
    };
    loop {
        match events.recv().await {
            Ok(event) => return event,
            Err(broadcast::error::RecvError::Lagged(_)) => {}
            Err(broadcast::error::RecvError::Closed) => return std::future::pending().await,
        }
    }
}

fn note(event: &GuestEvent) {
    match event {
        GuestEvent::Up(agent) => debug!(instance = agent.instance, "the agent is there"),
        GuestEvent::Down(reason) => debug!(%reason, "the connection to the agent broke"),
        GuestEvent::PowerIntent(intent, source) => {
            info!(?intent, ?source, "the guest is about to end");
        }
    }
}
