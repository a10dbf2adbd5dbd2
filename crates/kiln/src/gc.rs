//! What nobody owns any more: found, told, and on request removed. The start of a host sweeps too;
//! this is for the leftovers that came about since, and for looking first.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use kiln_net::Trace;
use kiln_vmm::jail::cgroup::{end_group, groups_below};
use serde::{Deserialize, Serialize};

use crate::error::{Error, ErrorCode};
use crate::host::{Host, Shared};
use crate::material::blocking;
use crate::network::identity;
use crate::sandbox::confine::cgroup_parent;

/// Something half-made is nobody's when nobody has touched it for this long.
const HALF_MADE: Duration = Duration::from_secs(24 * 3600);
/// Stores are so many levels deep; what lies below is what they hold.
const STORE_DEPTH: usize = 1;

/// Something that nobody owns.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leftover {
    /// What it is.
    pub kind: LeftoverKind,
    /// Where.
    pub path: PathBuf,
    /// Room that it takes.
    pub bytes: u64,
    /// Whether it was removed now.
    pub removed: bool,
}

/// What can be left over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LeftoverKind {
    /// Files of a sandbox that does not exist, its scratch disk among them.
    Sandbox,
    /// Sockets of a machine that does not exist.
    Machine,
    /// A control group of a machine that does not exist, with whatever runs in it.
    Cgroup,
    /// A jail of a sandbox that does not exist.
    Jail,
    /// Files of a snapshot that does not exist.
    Snapshot,
    /// Something that was never finished.
    HalfMade,
    /// An interface that no network has.
    Interface,
    /// Firewall rules about an interface that is gone.
    Rules,
}

impl LeftoverKind {
    /// The word under which it is told.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Sandbox => "sandbox",
            Self::Machine => "machine",
            Self::Cgroup => "cgroup",
            Self::Jail => "jail",
            Self::Snapshot => "snapshot",
            Self::HalfMade => "half_made",
            Self::Interface => "interface",
            Self::Rules => "rules",
        }
    }
}

/// How a leftover is removed.
enum Removal {
    Files,
    /// The group of these directories.
    Group(Vec<PathBuf>),
    Network(Trace),
}

type Found = (Leftover, Removal);

impl Host {
    /// Finds what nobody owns, and unless `dry_run` removes it.
    ///
    /// # Errors
    /// [`ErrorCode::Host`] when a directory cannot be read or something cannot be removed;
    /// [`ErrorCode::NetworkSetupFailed`] when the host's network cannot be read or changed.
    pub async fn collect_garbage(&self, dry_run: bool) -> Result<Vec<Leftover>, Error> {
        let shared = Arc::clone(&self.shared);
        let mut found = blocking(move || find(&shared)).await?;
        found.extend(in_the_network(&self.shared).await?);
        let mut told = Vec::new();
        for (mut leftover, removal) in found {
            if !dry_run {
                leftover.removed = remove(&self.shared, &leftover.path, removal).await?;
            }
            told.push(leftover);
        }
        Ok(told)
    }
}

/// What an earlier owner left of machines that nobody knows: at the start of a host, when every
/// sandbox has its driver and none is on its way up.
pub(crate) async fn sweep_machines(shared: &Arc<Shared>) -> Result<(), Error> {
    let looking = Arc::clone(shared);
    let found = blocking(move || find(&looking)).await?;
    let of_machines = |kind| matches!(kind, LeftoverKind::Cgroup | LeftoverKind::Jail);
    for (leftover, removal) in found {
        if of_machines(leftover.kind) {
            remove(shared, &leftover.path, removal).await?;
        }
    }
    Ok(())
}

fn find(shared: &Shared) -> Result<Vec<Found>, Error> {
    let directories = &shared.directories;
    // The things first: what is made while they are looked for then has its owner below.
    let mut files = Vec::new();
    for (kind, dir) in [
        (LeftoverKind::Sandbox, directories.sandboxes()),
        (LeftoverKind::Machine, directories.machines()),
    ] {
        files.extend(names(&dir)?.into_iter().map(|path| (kind, path)));
    }
    let mut jails = Vec::new();
    let snapshots = names(&directories.snapshots())?;
    for vmm in names(&directories.jails())? {
        jails.extend(names(&vmm)?);
    }
    let groups = groups_below(&cgroup_parent(&shared.config.data_dir));
    let known: HashSet<String> = shared
        .views()
        .into_iter()
        .map(|it| it.row.id.clone())
        .collect();
    let nobodys = |path: &Path| {
        let name = path.file_name().and_then(|name| name.to_str());
        name.is_none_or(|name| !known.contains(name))
    };
    files.retain(|(_, path)| nobodys(path));
    jails.retain(|path| nobodys(path));
    let groups = groups.into_iter().filter(|(id, _)| !known.contains(id));

    let mut found: Vec<Found> = files
        .into_iter()
        .map(|(kind, path)| in_files(kind, path))
        .collect();
    // Before the jails: what runs in one might make it grow again.
    found.extend(groups.filter_map(|(_, dirs)| {
        let path = dirs.first()?.clone();
        let leftover = Leftover::new(LeftoverKind::Cgroup, path, 0);
        Some((leftover, Removal::Group(dirs)))
    }));
    let jails = jails.into_iter();
    found.extend(jails.map(|path| in_files(LeftoverKind::Jail, path)));
    let unknown = |path: &PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str());
        name.is_none_or(|name| !shared.snapshots.owns(name))
    };
    let snapshots = snapshots.into_iter().filter(unknown);
    found.extend(snapshots.map(|path| in_files(LeftoverKind::Snapshot, path)));
    let mut unfinished = Vec::new();
    for dir in [
        directories.images(),
        directories.kernels(),
        directories.cache(),
        directories.base_images(),
        directories.firecracker(),
    ] {
        half_made(&dir, STORE_DEPTH, &mut unfinished)?;
    }
    let unfinished = unfinished.into_iter();
    found.extend(unfinished.map(|path| in_files(LeftoverKind::HalfMade, path)));
    Ok(found)
}

fn in_files(kind: LeftoverKind, path: PathBuf) -> Found {
    let bytes = allocated(&path);
    (Leftover::new(kind, path, bytes), Removal::Files)
}

async fn in_the_network(shared: &Shared) -> Result<Vec<Found>, Error> {
    let table = identity(&shared.config.data_dir).table().to_owned();
    let traces = shared.networks.leftovers().await?.into_iter();
    Ok(traces
        .map(|trace| {
            let name = trace.interface.as_str();
            let (kind, path) = match trace.is_link {
                true => (
                    LeftoverKind::Interface,
                    Path::new("/sys/class/net").join(name),
                ),
                false => (LeftoverKind::Rules, Path::new(&table).join(name)),
            };
            (Leftover::new(kind, path, 0), Removal::Network(trace))
        })
        .collect())
}

impl Leftover {
    fn new(kind: LeftoverKind, path: PathBuf, bytes: u64) -> Self {
        Self {
            kind,
            path,
            bytes,
            removed: false,
        }
    }
}

/// Files and directories named as unfinished that nobody has touched for long.
fn half_made(dir: &Path, depth: usize, found: &mut Vec<PathBuf>) -> Result<(), Error> {
    for path in names(dir)? {
        let name = path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        if name.contains(".partial") || name.starts_with("partial-") {
            if is_old(&path) {
                found.push(path);
            }
        } else if depth > 0 && path.is_dir() && !path.is_symlink() {
            half_made(&path, depth - 1, found)?;
        }
    }
    Ok(())
}

fn is_old(path: &Path) -> bool {
    let modified = std::fs::symlink_metadata(path).and_then(|it| it.modified());
    modified.is_ok_and(|at| {
        SystemTime::now()
            .duration_since(at)
            .is_ok_and(|age| age > HALF_MADE)
    })
}

fn names(dir: &Path) -> Result<Vec<PathBuf>, Error> {
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error)
            if matches!(
                error.kind(),
                std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory
            ) =>
        {
            return Ok(Vec::new());
        }
        Err(error) => return Err(failed("read", dir, error)),
    };
    Ok(entries.flatten().map(|entry| entry.path()).collect())
}

/// Room that a file or a tree takes.
pub(crate) fn allocated(path: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    let Ok(metadata) = std::fs::symlink_metadata(path) else {
        return 0;
    };
    let below = if metadata.is_dir() {
        names(path).unwrap_or_default()
    } else {
        Vec::new()
    };
    metadata.blocks() * 512 + below.iter().map(|it| allocated(it)).sum::<u64>()
}

/// Whether it is gone now.
async fn remove(shared: &Shared, path: &Path, removal: Removal) -> Result<bool, Error> {
    let owned = path.to_owned();
    let removed = match removal {
        Removal::Files => blocking(move || remove_files(&owned)).await?,
        Removal::Group(dirs) => {
            blocking(move || end_group(dirs).map_err(|error| failed("remove", &owned, error)))
                .await?;
            true
        }
        Removal::Network(trace) => {
            shared.networks.remove_leftover(trace).await?;
            true
        }
    };
    if removed {
        tracing::info!(path = %path.display(), "removed what nobody owns");
    }
    Ok(removed)
}

fn remove_files(path: &Path) -> Result<bool, Error> {
    if has_mounts(path) {
        // What is mounted there is somebody else's and would be emptied.
        return Ok(false);
    }
    let is_dir = std::fs::symlink_metadata(path).is_ok_and(|it| it.is_dir());
    let removed = if is_dir {
        std::fs::remove_dir_all(path)
    } else {
        std::fs::remove_file(path)
    };
    match removed {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(failed("remove", path, error))
        }
        _ => Ok(true),
    }
}

/// Whether something is mounted at or below a path, as far as this process can see.
fn has_mounts(path: &Path) -> bool {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let path = path.to_string_lossy();
    mounts.lines().any(|line| {
        let place = line.split_whitespace().nth(4).unwrap_or_default();
        place
            .strip_prefix(path.as_ref())
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    })
}

fn failed(what: &str, path: &Path, error: std::io::Error) -> Error {
    Error::new(ErrorCode::Host, format!("cannot {what} {}", path.display())).with_source(error)
}
