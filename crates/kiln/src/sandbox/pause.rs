//! Halting a sandbox's processors and letting them go on. Both are done once: a paused sandbox is
//! paused already.

use kiln_vmm::MachineError;

use super::driver::Driver;
use super::{SandboxInfo, SandboxState};
use crate::error::{Error, ErrorCode};

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
        if let Some(live) = &self.live {
            let resumed = live.machine.resume().await;
            resumed.map_err(|source| failed("cannot resume the machine", source))?;
            // While it was halted nobody could use it.
            self.activity.reset();
        }
        self.become_state(SandboxState::Running).await?;
        Ok(self.info())
    }
}

fn failed(what: &'static str, source: MachineError) -> Error {
    let code = match source {
        MachineError::Unsupported(_) => ErrorCode::InvalidState,
        _ => ErrorCode::Host,
    };
    Error::new(code, what).with_source(source)
}
