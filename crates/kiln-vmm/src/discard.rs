//! Ending a machine that nobody can drive any more.

use std::time::Duration;

use crate::error::MachineError;
use crate::instance::{RuntimeFiles, remove_memory, sweep};
use crate::machine::{EngineKind, Exit, MachineRecord};
use crate::process::{TakeOverError, VmmProcess};
use crate::{fake, firecracker, qemu};

/// Ends a recorded VMM, answering or not, and removes its files; for a machine that
/// [`Engine::adopt`](crate::Engine::adopt) cannot have. When the recorded process is gone, only
/// the files and the jail are removed, with whatever still runs in its control group: a stranger with its number is never signalled.
///
/// Returns how the VMM ended when it still ran.
///
/// # Errors
/// The VMM cannot be ended, or a file not removed.
pub async fn discard(
    record: &MachineRecord,
    grace: Duration,
) -> Result<Option<Exit>, MachineError> {
    let failed = |source| MachineError::Control {
        call: "end".to_owned(),
        source,
    };
    let exit = match VmmProcess::take_over(&record.process) {
        Ok(process) => Some(process.end(grace).await.map_err(failed)?),
        Err(TakeOverError::Gone) => None,
        Err(TakeOverError::Unknown(source)) => return Err(failed(source)),
    };
    let names = match record.engine {
        EngineKind::Firecracker => firecracker::FILES,
        EngineKind::Qemu => qemu::FILES,
        EngineKind::Fake => fake::FILES,
    };
    let removed = RuntimeFiles::new(&record.runtime_dir, names)
        .remove()
        .and(remove_memory(record));
    sweep(record.jail.clone()).await?;
    removed?;
    Ok(exit)
}
