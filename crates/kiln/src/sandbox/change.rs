//! Changing a sandbox that exists: stored first, then in force, and on failure as before.

use super::driver::Driver;
use super::update::needs_rest;
use super::{SandboxInfo, SandboxUpdate};
use crate::error::Error;
use crate::events::EventKind;
use crate::failpoint;
use crate::hooks::HookPoint;
use crate::network::NetworkSpec;

impl Driver {
    pub(super) async fn update(&mut self, update: &SandboxUpdate) -> Result<SandboxInfo, Error> {
        if update.changes_machine() && (self.live.is_some() || self.row.snapshot.is_some()) {
            return Err(needs_rest(&self.row.id));
        }
        let spec = update.applied(&self.row.spec)?;
        let before = self.row.clone();
        self.row.spec = spec;
        if update.timeout_ms.is_some() && self.live.is_some() {
            self.begin_timeout();
        }
        if let Err(refused) = self.save().await {
            self.row = before;
            return Err(refused);
        }
        if update.restart.is_some() {
            // What was planned was planned by the old policy.
            self.restart_at = None;
            self.command_at = None;
        }
        self.tell();
        self.shared.events.publish(&self.row, EventKind::Updated);
        Ok(self.info())
    }

    /// Stored first: after a crash in between, the one who adopts the network applies it.
    pub(super) async fn update_network(
        &mut self,
        policy: kiln_net::policy::PolicySpec,
    ) -> Result<(), Error> {
        let wanted = NetworkSpec {
            policy,
            ..self.row.spec.network.clone()
        };
        wanted.check()?;
        let checked = wanted.checked_policy()?;
        let before = std::mem::replace(&mut self.row.spec.network, wanted);
        let mut changed = self.save().await;
        failpoint::reach("policy.stored");
        if changed.is_ok()
            && let Some(network) = self.live.as_ref().and_then(|live| live.network.as_ref())
        {
            changed = network.update(checked).await;
        }
        failpoint::reach("policy.applied");
        if changed.is_err() {
            self.row.spec.network = before;
            self.save().await?;
        }
        self.tell();
        if changed.is_ok() {
            self.shared.events.publish(&self.row, EventKind::Policy);
            self.tell_hooks(HookPoint::PolicyChanged).await;
        }
        changed
    }
}
