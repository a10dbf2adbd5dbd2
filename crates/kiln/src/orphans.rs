//! Machines that were made and never written down: their owner died in between.
//!
//! With a jail they are found by the names of their control group and directory. Without one, by
//! what they hold open: nobody but a sandbox's own VMM has files or sockets of it, while no driver of
//! the sandbox runs. What is found is held by pidfd and looked at again before it is ended, so that a
//! stranger who got its number meanwhile is never signalled.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};

use rustix::process::Pid;

use crate::error::{Error, ErrorCode};
use crate::host::Shared;
use crate::material::blocking;
use crate::sandbox::confine;

/// Ends the machine of a sandbox that has no record of one.
pub(crate) async fn end(shared: &Shared, id: &str) -> Result<(), Error> {
    if let Some(jail) = confine::jail(shared, id).await? {
        let id = id.to_owned();
        let swept = move || Ok(kiln_vmm::jail::sweep_unrecorded(&jail, &id)?);
        return blocking(swept).await;
    }
    let dirs = [
        shared.directories.machine(id),
        shared.directories.sandbox(id),
    ];
    blocking(move || end_holders(&dirs)).await
}

fn end_holders(dirs: &[PathBuf]) -> Result<(), Error> {
    let sockets = sockets_in(dirs);
    kiln_vmm::process::end_strays(|pid| holds(pid, dirs, &sockets)).map_err(|source| {
        let message = "cannot end a machine that was never recorded";
        Error::new(ErrorCode::Host, message).with_source(source)
    })
}

/// Whether a process has something open that is in one of the directories.
fn holds(pid: Pid, dirs: &[PathBuf], sockets: &HashSet<String>) -> bool {
    let open = format!("/proc/{}/fd", pid.as_raw_nonzero());
    let links = fs::read_dir(open).into_iter().flatten().flatten();
    links
        .filter_map(|link| fs::read_link(link.path()).ok())
        .any(|target| {
            is_in(&target, dirs) || target.to_str().is_some_and(|it| sockets.contains(it))
        })
}

fn is_in(path: &Path, dirs: &[PathBuf]) -> bool {
    dirs.iter().any(|dir| path.starts_with(dir))
}

/// Sockets that are bound in the directories, as `/proc/<pid>/fd` names them.
fn sockets_in(dirs: &[PathBuf]) -> HashSet<String> {
    let text = fs::read_to_string("/proc/net/unix").unwrap_or_default();
    let of_line = |line: &str| {
        let mut fields = line.split_whitespace().skip(6);
        let (inode, path) = (fields.next()?, fields.next()?);
        is_in(Path::new(path), dirs).then(|| format!("socket:[{inode}]"))
    };
    text.lines().filter_map(of_line).collect()
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn who_holds_a_sandboxs_files_is_ended_and_nobody_else() {
        let (mine, others) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let holder = |dir: &Path| {
            let file = fs::File::create(dir.join("disk")).unwrap();
            let mut command = Command::new("sleep");
            command
                .arg("1000")
                .stdin(Stdio::from(file))
                .spawn()
                .unwrap()
        };
        let (mut orphan, mut stranger) = (holder(mine.path()), holder(others.path()));
        end_holders(&[mine.path().to_owned()]).unwrap();
        use std::os::unix::process::ExitStatusExt;
        assert_eq!(orphan.wait().unwrap().signal(), Some(9));
        assert!(stranger.try_wait().unwrap().is_none());
        stranger.kill().unwrap();
        stranger.wait().unwrap();
    }

    #[test]
    fn a_bound_socket_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let _bound = std::os::unix::net::UnixListener::bind(dir.path().join("s")).unwrap();
        assert_eq!(sockets_in(&[dir.path().to_owned()]).len(), 1);
        assert!(sockets_in(&[dir.path().join("other")]).is_empty());
    }
}
