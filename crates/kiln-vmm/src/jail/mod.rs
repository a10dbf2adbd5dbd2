//! What is put around a VMM: a user of its own, a root directory, control groups, namespaces.
//!
//! Owns the words, the directory and its removal. The engines say what goes in and how their VMM
//! gets there: Firecracker through its `jailer`, QEMU as an unprivileged user whose files are
//! handed over open. Leasing users is the caller's business.

pub mod cgroup;
mod confinement;
mod files;
mod protection;

use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::process::Pid;
use serde::{Deserialize, Serialize};

pub use self::cgroup::Limits;
pub(crate) use self::cgroup::{Cgroup, Hierarchy};
pub use self::confinement::{Breach, Confinement};
pub(crate) use self::confinement::{Filtered, Promise};
pub(crate) use self::files::{Access, give_to};
pub use self::protection::Protection;
use crate::MachineSpec;
use crate::error::{JailError, SpawnError};
use crate::process::end_strays;

/// What is put around one VMM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JailSpec {
    /// User of the VMM: not root, and nobody else's on this host as long as the machine lives.
    pub uid: u32,
    /// Its group: the same holds.
    pub gid: u32,
    /// Where jails are made: a directory of root's that nobody else can write to, on a file
    /// system that allows devices and programs; best the one that holds disks and kernels.
    pub base_dir: PathBuf,
    /// Control group, relative to the root of the hierarchy, in which each machine gets its own.
    pub cgroup_parent: String,
}

/// What is written down of a jail, so that it can be found and removed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct JailRecord {
    /// User of the VMM.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
    /// The jail's directory, where the engine has one.
    pub dir: Option<PathBuf>,
    /// The directories of its control groups.
    pub cgroups: Vec<PathBuf>,
}

impl JailRecord {
    /// The VMM's root directory, seen from the host.
    pub(crate) fn root(&self) -> Option<PathBuf> {
        self.dir.as_deref().map(|dir| dir.join(ROOT))
    }

    pub(crate) fn group(&self) -> Cgroup {
        Cgroup::of(self.cgroups.clone())
    }

    /// Brings a file into the jail of a machine that runs, under a name that begins with `stem`;
    /// returns its path as the VMM sees it. Blocks.
    pub(crate) fn bring_in_later(
        &self,
        from: &Path,
        stem: &str,
        access: Access,
    ) -> Result<PathBuf, JailError> {
        let Some(root) = self.root() else {
            return Ok(from.to_owned());
        };
        let mut number = 1;
        let name = loop {
            let name = format!("{stem}-{number}");
            if !root.join(&name).exists() {
                break name;
            }
            number += 1;
        };
        let to = root.join(&name);
        if files::bring_in(from, &to, access, (self.uid, self.gid))? == files::Way::Bind {
            // Its mount namespace is closed by now.
            let _ = std::fs::remove_file(&to);
            return Err(step("reach from another file system", from)(
                std::io::ErrorKind::CrossesDevices.into(),
            ));
        }
        Ok(Path::new("/").join(name))
    }

    /// Kills what is left in the jail and removes it. Blocks. Idempotent.
    pub(crate) fn sweep(&self) -> Result<(), JailError> {
        // First the processes: a directory that is in use could grow again.
        let group = Cgroup::of(self.cgroups.clone());
        let killed = group.end().map_err(|source| JailError {
            step: "remove the control group",
            path: self.cgroups.first().cloned().unwrap_or_default(),
            source,
        });
        let removed = match &self.dir {
            Some(dir) => files::remove(dir, self.uid),
            None => Ok(()),
        };
        killed.and(removed)
    }
}

/// The jailer's name for the root directory in a jail.
const ROOT: &str = "root";

/// A jail that is being made: dropped before it is [kept](Jail::keep), it is removed.
#[derive(Debug)]
#[must_use]
pub(crate) struct Jail {
    record: JailRecord,
    binds: Vec<(CString, CString)>,
    kept: bool,
}

impl Jail {
    /// Makes the control groups of `spec`'s machine and, at `dir`, an empty root directory that
    /// belongs to the VMM. A jail is used once: `dir` must not exist.
    pub(crate) fn make(
        spec: &MachineSpec,
        jail: &JailSpec,
        dir: Option<PathBuf>,
        limits: Limits,
    ) -> Result<Self, JailError> {
        let cgroups = if spec.options.lacks(Protection::Cgroup) {
            Vec::new()
        } else {
            let group = Hierarchy::of_host().make(&jail.cgroup_parent, &spec.id, limits)?;
            group.dirs().to_vec()
        };
        let mut made = Self {
            record: JailRecord {
                uid: jail.uid,
                gid: jail.gid,
                dir: None,
                cgroups,
            },
            binds: Vec::new(),
            kept: false,
        };
        if let Some(dir) = dir {
            if let Some(parent) = dir.parent() {
                private_dir(parent, true)?;
            }
            private_dir(&dir, false)?;
            made.record.dir = Some(dir.clone());
            let root = dir.join(ROOT);
            private_dir(&root, false)?;
            give_to(&root, jail.uid, jail.gid)?;
        }
        Ok(made)
    }

    pub(crate) fn record(&self) -> &JailRecord {
        &self.record
    }

    pub(crate) fn root(&self) -> Option<PathBuf> {
        self.record.root()
    }

    /// Makes the file `from` appear as `name` in the root directory; returns its path as the VMM
    /// sees it.
    pub(crate) fn bring_in(
        &mut self,
        from: &Path,
        name: &str,
        access: Access,
    ) -> Result<PathBuf, JailError> {
        let Some(root) = self.root() else {
            return Ok(from.to_owned());
        };
        let to = root.join(name);
        let how = files::bring_in(from, &to, access, (self.record.uid, self.record.gid))?;
        tracing::debug!(from = %from.display(), ?how, "brought into a jail");
        if how == files::Way::Bind {
            let source = std::fs::canonicalize(from).map_err(step("find", from))?;
            self.binds.push((c_string(&source)?, c_string(&to)?));
        }
        Ok(Path::new("/").join(name))
    }

    /// Lets the VMM, and no other user, have a character device of the host under its own name: a
    /// node of the jail's, mounted over it where only the VMM sees it. Neither the group nor the
    /// mode of the host's node matters, and the VMM joins no group for it.
    pub(crate) fn give_device(&mut self, device: &Path, name: &str) -> Result<(), JailError> {
        let Some(root) = self.root() else {
            return Ok(());
        };
        let node = root.join(name);
        files::node_like(device, &node, (self.record.uid, self.record.gid))?;
        self.binds.push((c_string(&node)?, c_string(device)?));
        Ok(())
    }

    /// Mounts that the VMM's mount namespace needs.
    pub(crate) fn binds(&self) -> &[(CString, CString)] {
        &self.binds
    }

    pub(crate) fn group(&self) -> Cgroup {
        self.record.group()
    }

    pub(crate) fn keep(mut self) -> JailRecord {
        self.kept = true;
        self.record.clone()
    }
}

impl Drop for Jail {
    fn drop(&mut self) {
        if !self.kept
            && let Err(error) = self.record.sweep()
        {
            tracing::warn!(%error, "cannot undo a jail");
        }
    }
}

/// Ends and removes whatever of a machine there is that was never recorded: its owner died between
/// making it and writing it down. Everything is found by names that derive from `id`, and processes
/// that are in no control group by their user, who is nobody else's. Blocks.
///
/// # Errors
/// A process cannot be ended, or a directory not removed.
pub fn sweep_unrecorded(jail: &JailSpec, id: &str) -> Result<(), JailError> {
    let cgroups = Hierarchy::of_host().existing(&jail.cgroup_parent, id);
    // Each engine's program has a directory of its own in the base.
    let programs = std::fs::read_dir(&jail.base_dir)
        .into_iter()
        .flatten()
        .flatten();
    let dirs: Vec<PathBuf> = programs
        .map(|program| program.path().join(id))
        .filter(|dir| dir.is_dir())
        .collect();
    if cgroups.is_empty() && dirs.is_empty() {
        return Ok(());
    }
    tracing::info!(id, "removing what was never recorded of a machine");
    end_all_of(jail.uid)?;
    let mut record = JailRecord {
        uid: jail.uid,
        gid: jail.gid,
        dir: None,
        cgroups,
    };
    // The processes first, wherever they are.
    record.sweep()?;
    for dir in dirs {
        record.dir = Some(dir);
        record.sweep()?;
    }
    Ok(())
}

/// Ends the processes of a user.
fn end_all_of(uid: u32) -> Result<(), JailError> {
    let theirs = |pid: Pid| {
        let status = PathBuf::from(format!("/proc/{}/status", pid.as_raw_nonzero()));
        confinement::user_of(&status).is_some_and(|user| user == uid)
    };
    end_strays(theirs).map_err(step("end the processes in it", Path::new("/proc")))
}

/// Does what blocks elsewhere.
pub(crate) async fn off_the_runtime<T: Send + 'static, E>(
    work: impl FnOnce() -> Result<T, E> + Send + 'static,
) -> Result<T, SpawnError>
where
    E: Send + 'static,
    SpawnError: From<E>,
{
    match tokio::task::spawn_blocking(work).await {
        Ok(outcome) => outcome.map_err(SpawnError::from),
        Err(error) => Err(SpawnError::Jail(JailError {
            step: "make it: the work was given up",
            path: PathBuf::new(),
            source: std::io::Error::other(error),
        })),
    }
}

/// Whether `path` can be the base of jails, in words of what is wrong.
pub(crate) fn base_fault(path: &Path) -> Option<&'static str> {
    let Ok(data) = std::fs::metadata(path) else {
        return Some("it does not exist");
    };
    if !data.is_dir() {
        return Some("it is not a directory");
    }
    if data.uid() != 0 || data.mode() & 0o022 != 0 {
        return Some("others than root can write to it");
    }
    let flags = rustix::fs::statvfs(path).map(|data| data.f_flag);
    match flags {
        Ok(flags) if flags.contains(rustix::fs::StatVfsMountFlags::NOEXEC) => {
            Some("its file system is mounted noexec")
        }
        Ok(flags) if flags.contains(nodev()) => Some("its file system is mounted nodev"),
        Ok(_) => None,
        Err(_) => Some("its file system cannot be examined"),
    }
}

/// `ST_NODEV`.
fn nodev() -> rustix::fs::StatVfsMountFlags {
    rustix::fs::StatVfsMountFlags::NODEV
}

fn private_dir(path: &Path, may_exist: bool) -> Result<(), JailError> {
    match std::fs::DirBuilder::new().mode(0o700).create(path) {
        Err(error) if may_exist && error.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
        outcome => outcome.map_err(step("make", path)),
    }
}

fn c_string(path: &Path) -> Result<CString, JailError> {
    CString::new(path.as_os_str().as_bytes())
        .map_err(|error| step("pass on the path", path)(error.into()))
}

/// Names a step that failed.
fn step<'a>(step: &'static str, path: &'a Path) -> impl Fn(std::io::Error) -> JailError + 'a {
    move |source| JailError {
        step,
        path: path.to_owned(),
        source,
    }
}
