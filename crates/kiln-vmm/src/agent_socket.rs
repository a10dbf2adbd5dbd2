//! The socket where a guest's agent dials in.

use std::io::{Error, ErrorKind};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixListener;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Gid, Uid, chownat};

/// Binds the socket of [`AgentEndpoint::Listen`](crate::AgentEndpoint::Listen), in place of one
/// that a dead process left, and gives it to the owner of its directory: a jailed VMM is another
/// user, and only that one may dial.
///
/// # Errors
/// It cannot be bound.
pub fn listen_for_agent(path: &Path) -> std::io::Result<UnixListener> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let dir = path
        .parent()
        .ok_or_else(|| Error::from(ErrorKind::InvalidInput))?;
    let owner = std::fs::metadata(dir)?;
    let listener = UnixListener::bind(path)?;
    if owner.uid() != rustix::process::geteuid().as_raw() {
        let (uid, gid) = (Uid::from_raw(owner.uid()), Gid::from_raw(owner.gid()));
        // Never through a link: the directory is the VMM's.
        chownat(CWD, path, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
    }
    listener.set_nonblocking(true)?;
    Ok(listener)
}
