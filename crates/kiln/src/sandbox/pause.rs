//! Halting a sandbox's processors and letting them go on. Both are done once: a paused sandbox is
//! paused already.

use std::time::Duration;

use kiln_vmm::{MachineError, MachineState};

use super::driver::{Driver, Live};
use super::{SandboxInfo, SandboxState};
use crate::error::{Error, ErrorCode};
use crate::guest::GuestLink;

/// How long a guest that goes on has for an answer before it is called running all the same.
const BACK: Duration = Duration::from_secs(5);
/// Between two questions to a guest whose connection has broken.
const AGAIN: Duration = Duration::from_millis(10);

impl Driver {
    pub(super) async fn pause(&mut self) -> Result<SandboxInfo, Error> {
        if self.row.state == SandboxState::Paused {
            return Ok(self.info());
        }
        self.expect_move(SandboxState::Paused, "pause")?;
        if let Some(live) = &self.live {
            let paused = live.machine.pause().await;
            paused.map_err(|source| failed("cannot pause the machine", source))?;
        }
        self.become_state(SandboxState::Paused).await?;
        Ok(self.info())
    }

    pub(super) async fn resume(&mut self) -> Result<SandboxInfo, Error> {
        if self.row.state != SandboxState::Paused {
            self.expect_state(SandboxState::Running, "resume")?;
            return Ok(self.info());
        }
        self.resume_halted().await?;
        self.become_state(SandboxState::Running).await?;
        Ok(self.info())
    }

    /// Lets the machine go on, if it is halted, and waits until its guest answers.
    pub(super) async fn resume_halted(&self) -> Result<(), Error> {
        let halted = |live: &&Live| live.machine.state() == MachineState::Paused;
        let Some(live) = self.live.as_ref().filter(halted) else {
            return Ok(());
        };
        let resumed = live.machine.resume().await;
        resumed.map_err(|source| failed("cannot resume the machine", source))?;
        // While it was halted nobody could use it.
        self.activity.reset();
        reachable(&live.link).await;
        Ok(())
    }
}

/// Waits until the guest answers. Firecracker resets the agent's connection, and what is asked
/// before the agent has dialled again is lost.
async fn reachable(link: &GuestLink) {
    let answered = async {
        while link.sessions().await.is_err() {
            tokio::time::sleep(AGAIN).await;
        }
    };
    if tokio::time::timeout(BACK, answered).await.is_err() {
        tracing::warn!("a guest that was resumed does not answer");
    }
}

fn failed(what: &'static str, source: MachineError) -> Error {
    let code = match source {
        MachineError::Unsupported(_) => ErrorCode::InvalidState,
        _ => ErrorCode::Host,
    };
    Error::new(code, what).with_source(source)
}
