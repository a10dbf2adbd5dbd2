//! One task per sandbox, the only writer of its state.
//!
//! Requests reach it as commands and only wait for the answer: a client that leaves changes
//! nothing. While a launch runs, a stop or a removal cancels it; everything else queues. What it
//! does is told in the files beside this one: `start`, `end`, `pause`, `change`, `timeouts`,
//! `main_command`.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use kiln_image::Progress;
use kiln_vmm::{Exit, Machine};
use tokio::sync::{broadcast, mpsc, oneshot, watch};
use tokio::time::Instant;
use tracing::{debug, info};

use super::activity::Activity;
use super::info::unprotected;
use super::main_command::{self, MainWatch};
use super::timeouts::{Due, until_due};
use super::{SandboxInfo, SandboxState, SandboxUpdate};
use crate::error::{Error, ErrorCode};
use crate::guest::{GuestEvent, GuestLink};
use crate::hooks::{HookCall, HookPoint};
use crate::host::Shared;
use crate::network::{Attachment, NetworkInfo};
use crate::snapshot::NewSnapshot;
use crate::store::{SandboxRow, Sandboxes};
use crate::volumes::VolumeClaims;

/// Commands that may wait for a driver before senders wait themselves.
const QUEUE: usize = 16;

/// What the driver is asked to do.
pub(crate) enum Command {
    Start {
        how: Start,
        reply: Reply<SandboxInfo>,
    },
    Stop {
        grace: Duration,
        reply: Reply<SandboxInfo>,
    },
    Restart {
        grace: Duration,
        how: Start,
        reply: Reply<SandboxInfo>,
    },
    Pause {
        reply: Reply<SandboxInfo>,
    },
    Resume {
        reply: Reply<SandboxInfo>,
    },
    Update {
        update: Box<SandboxUpdate>,
        reply: Reply<SandboxInfo>,
    },
    Remove {
        force: bool,
        reply: Reply<()>,
    },
    Snapshot {
        wanted: NewSnapshot,
        /// The new snapshot's id.
        reply: Reply<String>,
    },
    UpdateNetwork {
        policy: kiln_net::policy::PolicySpec,
        reply: Reply<()>,
    },
}

/// How a sandbox is started.
#[derive(Clone)]
pub(crate) struct Start {
    pub(crate) progress: Arc<dyn Progress>,
    /// Whether its main command is run; who starts it may want to run that attached.
    pub(crate) run_command: bool,
}

impl Command {
    pub(super) fn interrupts_launch(&self) -> bool {
        matches!(
            self,
            Self::Stop { .. } | Self::Restart { .. } | Self::Remove { force: true, .. }
        )
    }
}

pub(super) type Reply<T> = oneshot::Sender<Result<T, Error>>;

/// Whether the driver goes on; it ends with its sandbox.
pub(super) type Flow = ControlFlow<()>;

/// What others see of a sandbox.
#[derive(Clone)]
pub(crate) struct View {
    pub(crate) row: Arc<SandboxRow>,
    pub(crate) link: Option<GuestLink>,
    pub(crate) machine: Option<Arc<dyn Machine>>,
    pub(crate) network: Option<Attachment>,
    pub(crate) activity: Activity,
    /// What did not hold around its machine when that came up.
    pub(crate) unprotected: Arc<[String]>,
    /// It is gone: the last that is seen of it.
    pub(crate) removed: bool,
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
    unprotected: Arc<[String]>,
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
        let unprotected = unprotected(machine.as_ref()).into();
        Self {
            machine,
            link,
            network,
            link_events,
            unprotected,
            _volumes: volumes,
        }
    }
}

/// Starts the driver of a stored sandbox; `live` is its machine if one was adopted. One without a
/// machine that is meant to run is started, if its policy says so.
pub(crate) fn spawn(shared: Arc<Shared>, row: SandboxRow, live: Option<Live>) -> DriverHandle {
    let (commands, inbox) = mpsc::channel(QUEUE);
    let activity = Activity::new();
    let (publisher, view) = watch::channel(view_of(&row, live.as_ref(), &activity));
    let span = tracing::info_span!("sandbox", id = %row.id);
    let driver = Driver {
        shared,
        restart_at: (live.is_none() && row.wants_running).then(Instant::now),
        main: live.as_ref().and_then(|live| MainWatch::newest(&row, live)),
        command_at: None,
        row,
        live,
        activity,
        publisher,
    };
    tokio::spawn(tracing::Instrument::instrument(driver.run(inbox), span));
    DriverHandle { commands, view }
}

fn view_of(row: &SandboxRow, live: Option<&Live>, activity: &Activity) -> View {
    View {
        row: Arc::new(row.clone()),
        link: live.map(|live| live.link.clone()),
        machine: live.map(|live| Arc::clone(&live.machine)),
        network: live.and_then(|live| live.network.clone()),
        activity: activity.clone(),
        unprotected: live
            .map(|live| Arc::clone(&live.unprotected))
            .unwrap_or_default(),
        removed: false,
    }
}

pub(super) struct Driver {
    pub(super) shared: Arc<Shared>,
    pub(super) row: SandboxRow,
    pub(super) live: Option<Live>,
    pub(super) activity: Activity,
    pub(super) publisher: watch::Sender<View>,
    /// When its restart policy starts it again.
    pub(super) restart_at: Option<Instant>,
    /// Tells when its main command has ended.
    pub(super) main: Option<MainWatch>,
    /// When its restart policy starts its main command again.
    pub(super) command_at: Option<Instant>,
}

impl Driver {
    async fn run(mut self, mut inbox: mpsc::Receiver<Command>) {
        let mut deferred = None;
        loop {
            let machine = self.live.as_ref().map(|live| Arc::clone(&live.machine));
            let due = self.next_due();
            let main = self.main.as_mut();
            let link_events = self.live.as_mut().map(|live| &mut live.link_events);
            let flow = match deferred.take() {
                Some(command) => self.obey(command, &mut inbox, &mut deferred).await,
                None => tokio::select! {
                    // A machine that has ended is cleaned up even if the host closes meanwhile.
                    biased;
                    exit = gone(machine.as_ref()) => self.machine_gone(exit).await,
                    event = link_event(link_events) => {
                        note(&event);
                        Flow::Continue(())
                    }
                    ended = main_command::ended(main) => {
                        self.main_ended(ended).await;
                        Flow::Continue(())
                    }
                    command = inbox.recv() => match command {
                        Some(command) => self.obey(command, &mut inbox, &mut deferred).await,
                        // The host closes. The machine runs on.
                        None => Flow::Break(()),
                    },
                    due = until_due(due) => match due {
                        Due::Restart => {
                            deferred = self.restart_by_policy(&mut inbox).await;
                            Flow::Continue(())
                        }
                        due => self.on_due(due).await,
                    },
                },
            };
            if flow.is_break() {
                break;
            }
        }
        if let Some(live) = self.live.take() {
            live.link.close().await;
        }
    }

    /// Does what is asked; a command that interrupts it is left in `deferred`.
    async fn obey(
        &mut self,
        command: Command,
        inbox: &mut mpsc::Receiver<Command>,
        deferred: &mut Option<Command>,
    ) -> Flow {
        match command {
            Command::Start { how, reply } => {
                self.row.restart_streak = 0;
                let (outcome, interrupter) = self.start(&how, inbox).await;
                *deferred = interrupter;
                answer(reply, outcome);
            }
            Command::Restart { grace, how, reply } => {
                self.row.restart_streak = 0;
                let (outcome, interrupter) = self.restart(grace, &how, inbox).await;
                *deferred = interrupter;
                answer(reply, outcome);
            }
            Command::Stop { grace, reply } => {
                let stopped = self.stop(grace).await;
                let flow = self.remove_if_wanted().await;
                answer(reply, stopped);
                return flow;
            }
            Command::Remove { force, reply } => return self.remove(force, reply).await,
            Command::Pause { reply } => answer(reply, self.pause().await),
            Command::Resume { reply } => answer(reply, self.resume().await),
            Command::Snapshot { wanted, reply } => {
                let made = self.snapshot(&wanted).await;
                let flow = self.remove_if_wanted().await;
                answer(reply, made);
                return flow;
            }
            Command::Update { update, reply } => answer(reply, self.update(&update).await),
            Command::UpdateNetwork { policy, reply } => {
                answer(reply, self.update_network(policy).await);
            }
        }
        Flow::Continue(())
    }

    pub(super) fn expect_state(&self, state: SandboxState, call: &str) -> Result<(), Error> {
        if self.row.state == state {
            return Ok(());
        }
        Err(self.not_now(call))
    }

    pub(super) fn expect_move(&self, next: SandboxState, call: &str) -> Result<(), Error> {
        if self.row.state.may_become(next) {
            return Ok(());
        }
        Err(self.not_now(call))
    }

    pub(super) fn not_now(&self, call: &str) -> Error {
        let (id, state) = (&self.row.id, self.row.state);
        let message = format!("cannot {call} sandbox {id}: it is {state}");
        Error::new(ErrorCode::InvalidState, message)
    }

    /// Writes the row down, then tells everyone.
    pub(super) async fn become_state(&mut self, next: SandboxState) -> Result<(), Error> {
        debug_assert!(
            self.row.state.may_become(next),
            "{} to {next}",
            self.row.state
        );
        self.row.state = next;
        let saved = self.save().await;
        info!(state = %next, reason = self.row.reason.as_deref(), "state");
        self.tell();
        self.shared.events.publish(&self.row, next.into());
        saved
    }

    pub(super) async fn save(&self) -> Result<(), Error> {
        let row = self.row.clone();
        self.shared
            .store
            .write(move |tx| Sandboxes(tx).update(&row))
            .await?;
        Ok(())
    }

    /// Shows everyone what there is.
    pub(super) fn tell(&self) {
        let view = view_of(&self.row, self.live.as_ref(), &self.activity);
        self.publisher.send_replace(view);
    }

    pub(super) async fn save_and_tell(&self) -> Result<(), Error> {
        self.save().await?;
        self.tell();
        Ok(())
    }

    /// Asks the hooks whether something that was asked for may be done.
    pub(super) async fn ask_hooks(&self, point: HookPoint) -> Result<(), Error> {
        let hooks = &self.shared.hooks;
        if hooks.is_empty() {
            return Ok(());
        }
        hooks.ask(&HookCall::new(point, self.info())).await
    }

    /// Tells the hooks of something that is done.
    pub(super) async fn tell_hooks(&self, point: HookPoint) {
        let hooks = &self.shared.hooks;
        if hooks.is_empty() {
            return;
        }
        let mut call = HookCall::new(point, self.info());
        if matches!(point, HookPoint::NetworkUp | HookPoint::PolicyChanged) {
            let network = self.live.as_ref().and_then(|live| live.network.as_ref());
            call.network = NetworkInfo::of(&self.row, network).await.ok();
        }
        hooks.tell(&call).await;
    }

    /// Tells the hooks of a failure, and what was being done.
    pub(super) async fn tell_hooks_of(&self, phase: &'static str, failure: &Error) {
        let mut call = HookCall::new(HookPoint::OnError, self.info());
        call.phase = Some(phase);
        call.error = Some((failure.code().as_str().to_owned(), failure.message()));
        self.shared.hooks.tell(&call).await;
    }

    pub(super) fn info(&self) -> SandboxInfo {
        let machine = self.live.as_ref().map(|live| live.machine.as_ref());
        SandboxInfo::of(&self.row, machine)
    }
}

pub(super) fn answer<T>(reply: Reply<T>, outcome: Result<T, Error>) {
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
