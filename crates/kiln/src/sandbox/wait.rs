//! Waiting for a sandbox to come to a state.

use super::driver::{DriverHandle, View};
use super::{SandboxInfo, SandboxState};
use crate::error::{Error, ErrorCode};

/// What is waited for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WaitFor {
    /// It has no machine, or is gone.
    #[default]
    Stopped,
    /// It is up, or its start failed.
    Running,
    /// It is gone.
    Removed,
}

impl WaitFor {
    fn is_met_by(self, view: &View) -> bool {
        let state = view.row.state;
        match self {
            _ if view.removed => true,
            Self::Stopped => !state.is_live(),
            Self::Running => matches!(state, SandboxState::Running | SandboxState::Error),
            Self::Removed => false,
        }
    }
}

/// Waits; the sandbox as it is then, or was last. Cancel-safe.
pub(crate) async fn wait(mut driver: DriverHandle, what: WaitFor) -> Result<SandboxInfo, Error> {
    // Held, it would keep the driver from ending.
    drop(driver.commands);
    match driver.view.wait_for(|view| what.is_met_by(view)).await {
        Ok(view) => Ok(SandboxInfo::of(&view.row, view.machine.as_deref())),
        Err(_) => Err(Error::new(ErrorCode::Host, "the host closes")
            .with_hint("machines run on; ask the next owner of the data directory")),
    }
}
