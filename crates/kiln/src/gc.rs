//! What nobody owns any more: found, told, and on request removed. The start of a host sweeps too;
//! this is for the leftovers that came about since, and for looking first.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use crate::error::{Error, ErrorCode};
use crate::host::{Host, Shared};
use crate::material::blocking;

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
    /// Files of a sandbox that does not exist.
    Sandbox,
    /// Sockets of a machine that does not exist.
    Machine,
    /// A jail of a sandbox that does not exist.
    Jail,
    /// Files of a snapshot that does not exist.
    Snapshot,
    /// Something that was never finished.
    HalfMade,
}

impl Host {
    /// Finds what nobody owns, and unless `dry_run` removes it.
    ///
    /// # Errors
    /// [`ErrorCode::Host`] when a directory cannot be read or something cannot be removed.
    pub async fn collect_garbage(&self, dry_run: bool) -> Result<Vec<Leftover>, Error> {
        let shared = std::sync::Arc::clone(&self.shared);
        blocking(move || {
            let mut found = find(&shared)?;
            if !dry_run {
                found.iter_mut().try_for_each(remove)?;
            }
            Ok(found)
        })
        .await
    }
}

fn find(shared: &Shared) -> Result<Vec<Leftover>, Error> {
    let directories = &shared.directories;
    let mut found = Vec::new();
    let owned = [
        (LeftoverKind::Sandbox, directories.sandboxes()),
        (LeftoverKind::Machine, directories.machines()),
    ];
    // The directories first: what is made while they are read then has its owner below.
    let mut entries = Vec::new();
    for (kind, dir) in owned {
        entries.extend(names(&dir)?.into_iter().map(|path| (kind, path)));
    }
    let snapshots = names(&directories.snapshots())?;
    for vmm in names(&directories.jails())? {
        entries.extend(
            names(&vmm)?
                .into_iter()
                .map(|path| (LeftoverKind::Jail, path)),
        );
    }
    let known: HashSet<String> = shared
        .views()
        .into_iter()
        .map(|it| it.row.id.clone())
        .collect();
    let nobodys = |path: &Path| {
        let name = path.file_name().and_then(|name| name.to_str());
        name.is_none_or(|name| !known.contains(name))
    };
    entries.retain(|(_, path)| nobodys(path));
    let unknown = |path: &PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str());
        name.is_none_or(|name| !shared.snapshots.owns(name))
    };
    let snapshots = snapshots.into_iter().filter(unknown);
    entries.extend(snapshots.map(|path| (LeftoverKind::Snapshot, path)));
    for dir in [
        directories.images(),
        directories.kernels(),
        directories.cache(),
    ] {
        half_made(&dir, STORE_DEPTH, &mut entries)?;
    }
    found.extend(entries.into_iter().map(|(kind, path)| Leftover {
        kind,
        bytes: allocated(&path),
        path,
        removed: false,
    }));
    Ok(found)
}

/// Files and directories named as unfinished that nobody has touched for long.
fn half_made(
    dir: &Path,
    depth: usize,
    found: &mut Vec<(LeftoverKind, PathBuf)>,
) -> Result<(), Error> {
    for path in names(dir)? {
        let name = path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        if name.contains(".partial") || name.starts_with("partial-") {
            if is_old(&path) {
                found.push((LeftoverKind::HalfMade, path));
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

fn remove(leftover: &mut Leftover) -> Result<(), Error> {
    let path = &leftover.path;
    if has_mounts(path) {
        // What is mounted there is somebody else's and would be emptied.
        return Ok(());
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
        _ => {
            tracing::info!(path = %path.display(), "removed what nobody owns");
            leftover.removed = true;
            Ok(())
        }
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
