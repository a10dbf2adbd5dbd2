//! The ends of a machine, and of the sandbox itself.

use std::time::Duration;

use kiln_vmm::Exit;
use tracing::{info, warn};

use super::driver::{Driver, Flow, Live, Reply, answer};
use super::restart::EndedBy;
use super::{SandboxInfo, SandboxState, stop};
use crate::error::{Error, ErrorCode};
use crate::events::EventKind;
use crate::failpoint;
use crate::guest::PowerIntent;
use crate::hooks::HookPoint;
use crate::store::{Intent, Sandboxes};

/// How long a guest that is removed has to write its volumes out.
const VOLUME_GRACE: Duration = Duration::from_secs(10);

impl Driver {
    /// Ends the machine; one that is not running is a success, and a restart that was planned does
    /// not come.
    pub(super) async fn stop(&mut self, grace: Duration) -> Result<SandboxInfo, Error> {
        if self.live.is_some() {
            self.ask_hooks(HookPoint::BeforeStop).await?;
        }
        self.end(grace, "stopped on request").await?;
        Ok(self.info())
    }

    /// Ends the machine, for this reason.
    pub(super) async fn end(&mut self, grace: Duration, reason: &str) -> Result<(), Error> {
        let planned = self.restart_at.take().is_some();
        self.leave_main();
        let wanted = std::mem::replace(&mut self.row.wants_running, false);
        let Some(live) = self.live.take() else {
            return if planned || wanted {
                self.save_and_tell().await
            } else {
                Ok(())
            };
        };
        self.row.intent = Some(Intent::Stop);
        self.row.reason = Some(reason.to_owned());
        self.become_state(SandboxState::Stopping).await?;
        failpoint::reach("stop.intended");
        let ended = self.end_machine(&live, grace).await;
        failpoint::reach("stop.ended");
        self.rest(reason).await?;
        self.tell_of_end(live.network.is_some()).await;
        if let Err(failure) = &ended {
            self.tell_hooks_of("stop", failure).await;
        }
        ended
    }

    /// One that is paused goes on first: its guest could not power itself off.
    async fn end_machine(&self, live: &Live, grace: Duration) -> Result<(), Error> {
        if !grace.is_zero() && live.machine.state() == kiln_vmm::MachineState::Paused {
            // Should that fail, it is ended all the same.
            drop(live.machine.resume().await);
        }
        stop::stop(live, grace).await
    }

    /// The machine ended by itself.
    pub(super) async fn machine_gone(&mut self, exit: Exit) -> Flow {
        let Some(live) = self.live.take() else {
            return Flow::Continue(());
        };
        self.leave_main();
        let reason = stop::reason_of_end(&live, exit);
        let ended = ended_by(live.link.power_intent());
        if let Err(error) = stop::clean_up(&live).await {
            warn!(error = %error.message(), "the ended machine left something behind");
        }
        self.plan_restart(ended);
        if let Err(error) = self.rest(&reason).await {
            warn!(error = %error.message(), "the end of the machine could not be written down");
        }
        self.tell_of_end(live.network.is_some()).await;
        self.remove_if_wanted().await
    }

    async fn tell_of_end(&self, had_network: bool) {
        if had_network {
            self.tell_hooks(HookPoint::NetworkDown).await;
        }
        self.tell_hooks(HookPoint::AfterStop).await;
    }

    async fn rest(&mut self, reason: &str) -> Result<(), Error> {
        self.row.intent = None;
        self.row.machine = None;
        self.row.expires_at_ms = None;
        self.row.main_session = None;
        // What was in its memory is gone: from now on it boots from its disk.
        self.row.snapshot = None;
        self.row.reason = Some(reason.to_owned());
        self.become_state(SandboxState::Stopped).await
    }

    /// Removes a sandbox that goes when it stops.
    pub(super) async fn remove_if_wanted(&mut self) -> Flow {
        let stopped = self.row.state == SandboxState::Stopped;
        if !self.row.spec.remove_on_stop || !stopped {
            return Flow::Continue(());
        }
        match self.remove_all().await {
            Ok(()) => Flow::Break(()),
            Err(error) => {
                warn!(error = %error.message(), "a sandbox that should go when it stops stays");
                Flow::Continue(())
            }
        }
    }

    pub(super) async fn remove(&mut self, force: bool, reply: Reply<()>) -> Flow {
        if self.live.is_some() && !force {
            answer(reply, Err(still_running(&self.row.id)));
            return Flow::Continue(());
        }
        if let Err(refused) = self.ask_hooks(HookPoint::BeforeRemove).await {
            answer(reply, Err(refused));
            return Flow::Continue(());
        }
        let removed = self.remove_all().await;
        let flow = match &removed {
            Ok(()) => Flow::Break(()),
            Err(_) => Flow::Continue(()),
        };
        answer(reply, removed);
        flow
    }

    /// Machine, files, row, in this order; what fails leaves the intent for recovery.
    async fn remove_all(&mut self) -> Result<(), Error> {
        self.restart_at = None;
        self.leave_main();
        self.row.intent = Some(Intent::Remove);
        self.save().await?;
        failpoint::reach("remove.intended");
        if let Some(live) = self.live.take() {
            self.end_machine(&live, self.grace_of_removal()).await?;
        }
        failpoint::reach("remove.ended");
        self.shared.delete_files(&self.row.id).await?;
        failpoint::reach("remove.deleted");
        let id = self.row.id.clone();
        self.shared
            .store
            .write(move |tx| Sandboxes(tx).delete(&id))
            .await?;
        failpoint::reach("remove.forgotten");
        info!("removed");
        self.shared.forget(&self.row.id);
        self.publisher.send_modify(|view| {
            view.removed = true;
            view.link = None;
            view.machine = None;
            view.network = None;
        });
        self.shared.events.publish(&self.row, EventKind::Removed);
        self.tell_hooks(HookPoint::AfterRemove).await;
        Ok(())
    }

    /// Nothing of the guest is kept, so it need not be asked; but what it wrote to its volumes is.
    fn grace_of_removal(&self) -> Duration {
        let writes = self.row.spec.volumes.iter().any(|it| !it.read_only);
        if writes { VOLUME_GRACE } else { Duration::ZERO }
    }
}

/// A guest that said how it would end wanted to.
fn ended_by(intent: Option<PowerIntent>) -> EndedBy {
    match intent {
        Some(PowerIntent::PowerOff | PowerIntent::Reboot) => EndedBy::Guest,
        None => EndedBy::Failure,
    }
}

fn still_running(id: &str) -> Error {
    Error::new(ErrorCode::InvalidState, format!("sandbox {id} is running"))
        .with_hint("stop it first, or remove it with --force")
}
