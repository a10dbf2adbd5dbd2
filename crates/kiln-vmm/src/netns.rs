//! The network namespace of a VMM.

use std::os::fd::OwnedFd;

use rustix::fs::{CWD, Mode, OFlags, openat};

use crate::error::SpawnError;
use crate::machine::MachineSpec;

/// Opens it; who holds it open keeps it alive under whatever happens to its name.
pub(crate) fn open_netns(spec: &MachineSpec) -> Result<Option<OwnedFd>, SpawnError> {
    let Some(path) = &spec.netns else {
        return Ok(None);
    };
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    match openat(CWD, path, flags, Mode::empty()) {
        Ok(netns) => Ok(Some(netns)),
        Err(errno) => Err(SpawnError::Runtime {
            path: path.clone(),
            source: errno.into(),
        }),
    }
}
