//! What a `kiln` has on this machine: processes, mounts, control groups, files, rows, and in its
//! network namespace links and rules. Two looks compared tell what was left.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::kiln::{Kiln, KilnError};
use crate::step::{self, StepError};

/// The kernel takes namespaces and links down some time after their last user has gone.
const SETTLING: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_millis(250);
const CGROUPS: &str = "/sys/fs/cgroup";

const LOG: &str = "daemon.log";

/// Why nobody could look.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TracesError {
    #[error(transparent)]
    Kiln(#[from] KilnError),
    #[error(transparent)]
    Network(#[from] StepError),
    #[error("`kiln {command}` answered something else than expected")]
    Answer {
        command: &'static str,
        #[source]
        source: serde_json::Error,
    },
    #[error("cannot read {path}")]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// One look.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Traces(BTreeSet<String>);

impl Traces {
    /// Looks at everything. The daemon itself is none of it.
    pub(crate) fn of(kiln: &Kiln) -> Result<Self, TracesError> {
        let daemon = kiln.info()?.daemon_pid.unsigned_abs();
        let mut found = BTreeSet::new();
        processes(kiln, daemon, &mut found);
        mounts(kiln, &mut found);
        own_control_groups(kiln, &mut found);
        files(kiln, &mut found);
        rows(kiln, &mut found)?;
        network(kiln, &mut found)?;
        Ok(Self(found))
    }

    /// What is here now and was not `before`, once nothing goes by itself any more.
    pub(crate) fn left(kiln: &Kiln, before: &Self) -> Result<Vec<String>, TracesError> {
        let deadline = Instant::now() + SETTLING;
        loop {
            let left = Self::of(kiln)?.beyond(before);
            if left.is_empty() || Instant::now() > deadline {
                return Ok(left);
            }
            std::thread::sleep(PAUSE);
        }
    }

    fn beyond(&self, before: &Self) -> Vec<String> {
        self.0.difference(&before.0).cloned().collect()
    }
}

/// Those that name the directories on their command line or have files there open, and children of
/// the daemon that it has not taken notice of.
fn processes(kiln: &Kiln, daemon: u32, found: &mut BTreeSet<String>) {
    let ours = [kiln.data_dir(), kiln.runtime_dir()];
    for pid in pids().filter(|pid| *pid != daemon && *pid != std::process::id()) {
        let dir = PathBuf::from(format!("/proc/{pid}"));
        let line = fs::read(dir.join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        let names = |path: &Path| line.contains(&*path.to_string_lossy());
        let is_child =
            fs::read_to_string(dir.join("stat")).is_ok_and(|stat| parent(&stat) == Some(daemon));
        if is_child || ours.iter().any(|path| names(path)) || has_open(&dir, &ours) {
            found.insert(format!("process {pid}: {line}"));
        }
    }
}

fn pids() -> impl Iterator<Item = u32> {
    names(Path::new("/proc"))
        .into_iter()
        .filter_map(|name| name.parse().ok())
}

/// Field 4 of `/proc/<pid>/stat`. The name in field 2 may hold anything, also brackets.
fn parent(stat: &str) -> Option<u32> {
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_whitespace().nth(1)?.parse().ok()
}

fn has_open(process: &Path, dirs: &[&Path]) -> bool {
    let entries = fs::read_dir(process.join("fd"))
        .into_iter()
        .flatten()
        .flatten();
    let mut files = entries.filter_map(|entry| fs::read_link(entry.path()).ok());
    files.any(|file| dirs.iter().any(|dir| file.starts_with(dir)))
}

fn mounts(kiln: &Kiln, found: &mut BTreeSet<String>) {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let places = mounts.lines().filter_map(|line| line.split(' ').nth(1));
    let below = |place: &&str| {
        let place = Path::new(place);
        [kiln.data_dir(), kiln.runtime_dir()]
            .into_iter()
            .any(|dir| place != dir && place.starts_with(dir))
    };
    found.extend(places.filter(below).map(|place| format!("mount {place}")));
}

/// Groups of machines, of whichever data directory; the daemon's log tells which sandboxes were this
/// one's.
fn own_control_groups(kiln: &Kiln, found: &mut BTreeSet<String>) {
    let mut groups = Vec::new();
    control_groups(Path::new(CGROUPS), 2, &mut groups);
    let log = logs(kiln.data_dir());
    let is_ours = |group: &PathBuf| {
        let id = group.file_name().unwrap_or_default().to_string_lossy();
        log.contains(&*id)
    };
    let ours = groups.into_iter().filter(is_ours);
    found.extend(ours.map(|group| format!("control group {}", group.display())));
}

/// The daemon's log, and the one that was put aside.
fn logs(data_dir: &Path) -> String {
    let logs = names(data_dir)
        .into_iter()
        .filter(|name| name.starts_with(LOG));
    let texts = logs.filter_map(|name| fs::read(data_dir.join(name)).ok());
    texts
        .map(|text| String::from_utf8_lossy(&text).into_owned())
        .collect()
}

fn control_groups(dir: &Path, depth: u32, found: &mut Vec<PathBuf>) {
    for name in names(dir) {
        let path = dir.join(&name);
        if !path.is_dir() {
            continue;
        }
        if holds_machines(&name) {
            let groups = names(&path).into_iter().map(|name| path.join(name));
            found.extend(groups.filter(|group| group.is_dir()));
        } else if depth > 0 {
            control_groups(&path, depth - 1, found);
        }
    }
}

/// A data directory's machines are together, in whichever hierarchies there are.
fn holds_machines(group: &str) -> bool {
    group.starts_with("kiln") && group.ends_with(".vm")
}

fn files(kiln: &Kiln, found: &mut BTreeSet<String>) {
    let jails = kiln.data_dir().join("jails");
    let mut dirs = vec![
        kiln.data_dir().join("sandboxes"),
        kiln.data_dir().join("snapshots"),
        kiln.runtime_dir().join("vm"),
    ];
    dirs.extend(names(&jails).into_iter().map(|vmm| jails.join(vmm)));
    for dir in dirs {
        let below = names(&dir).into_iter().map(|name| dir.join(name));
        found.extend(below.map(|path| format!("file {}", path.display())));
    }
}

/// Sandboxes, volumes, and what the store says of itself: its leases above all.
fn rows(kiln: &Kiln, found: &mut BTreeSet<String>) -> Result<(), TracesError> {
    for (kind, arguments) in [
        ("sandbox", ["ps", "--all", "--quiet"].as_slice()),
        ("volume", &["volume", "ls", "--quiet"]),
        ("snapshot", &["snapshot", "ls", "--quiet"]),
    ] {
        let told = kiln.output(&mut kiln.command(arguments))?;
        let told = String::from_utf8_lossy(&told);
        found.extend(told.lines().map(|line| format!("{kind} {line}")));
    }
    let finding = store(kiln)?;
    found.insert(format!("store: {finding}"));
    Ok(())
}

/// What `kiln doctor` finds in the store.
pub(crate) fn store(kiln: &Kiln) -> Result<String, TracesError> {
    // Its exit code is about the whole host.
    let mut command = kiln.command(["doctor", "--json"]);
    let output = command.output().map_err(|source| KilnError::Spawn {
        command: step::shown(&command),
        source,
    })?;
    let checks: Vec<Value> =
        serde_json::from_slice(&output.stdout).map_err(|source| TracesError::Answer {
            command: "doctor --json",
            source,
        })?;
    let check = checks.into_iter().find(|check| check["name"] == "store");
    let finding = check.as_ref().and_then(|check| check["finding"].as_str());
    Ok(finding.unwrap_or("not looked at").to_owned())
}

/// Whether what was found in the store says that it holds together.
pub(crate) fn is_consistent(finding: &str) -> bool {
    finding.starts_with("consistent: ")
}

fn network(kiln: &Kiln, found: &mut BTreeSet<String>) -> Result<(), TracesError> {
    let Some(namespace) = kiln.namespace() else {
        return Ok(());
    };
    let told = |program: &str, arguments: &[&str]| -> Result<String, StepError> {
        let mut command: Command = namespace.command(program);
        let told = step::capture(command.args(arguments))?;
        Ok(String::from_utf8_lossy(&told).into_owned())
    };
    let links = told("ip", &["-oneline", "link"])?;
    let names = links
        .lines()
        .filter_map(|line| line.split_whitespace().nth(1));
    found.extend(names.map(|name| format!("link {name}")));
    let rules = told("nft", &["--stateless", "list", "ruleset"])?;
    for (number, line) in rules.lines().map(str::trim).enumerate() {
        if !line.is_empty() {
            // A line that stands there more often than before is another one.
            let same = rules
                .lines()
                .take(number)
                .filter(|it| it.trim() == line)
                .count();
            found.insert(format!("rule {line} ({same})"));
        }
    }
    Ok(())
}

fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect()
}

/// What a daemon takes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Size {
    pub(crate) resident_mib: f64,
    pub(crate) files: usize,
}

impl Size {
    /// Of the daemon as it is now.
    pub(crate) fn of_daemon(kiln: &Kiln) -> Result<Self, TracesError> {
        let dir = PathBuf::from(format!("/proc/{}", kiln.info()?.daemon_pid));
        let path = dir.join("smaps_rollup");
        let read = fs::read_to_string(&path).and_then(|text| {
            crate::bench::rss_mib(&text).ok_or_else(|| io::ErrorKind::InvalidData.into())
        });
        Ok(Self {
            resident_mib: read.map_err(|source| TracesError::Read { path, source })?,
            files: names(&dir.join("fd")).len(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn traces(all: &[&str]) -> Traces {
        Traces(all.iter().map(|it| (*it).to_owned()).collect())
    }

    #[test]
    fn only_what_was_not_there_before_is_left() {
        let before = traces(&["link lo", "store: consistent: 0 sandboxes"]);
        let now = traces(&["link lo", "link kln1", "store: consistent: 1 sandboxes"]);
        assert_eq!(
            now.beyond(&before),
            ["link kln1", "store: consistent: 1 sandboxes"]
        );
        assert!(before.beyond(&now).iter().all(|it| it.starts_with("store")));
    }

    #[test]
    fn groups_below_any_that_is_kilns_are_found_and_the_kernels_files_are_not() {
        let dir = tempfile::tempdir().unwrap();
        let group = dir.path().join("memory/kiln_1a2b.vm/abc");
        fs::create_dir_all(&group).unwrap();
        fs::create_dir_all(dir.path().join("memory/kiln-other/def")).unwrap();
        fs::write(dir.path().join("memory/kiln_1a2b.vm/tasks"), "").unwrap();
        let mut found = Vec::new();
        control_groups(dir.path(), 2, &mut found);
        assert_eq!(found, [group]);
    }

    #[test]
    fn both_logs_tell_whose_a_sandbox_was() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("daemon.log"), "sandbox{id=new}").unwrap();
        fs::write(dir.path().join("daemon.log.old"), "sandbox{id=old}").unwrap();
        let all = logs(dir.path());
        assert!(all.contains("new") && all.contains("old"), "{all}");
    }

    #[test]
    fn a_parent_is_found_whatever_its_child_is_called() {
        assert_eq!(parent("12 (a) b) Z 7 12 12 0 -1"), Some(7));
        assert_eq!(parent("no stat"), None);
    }

    #[test]
    fn what_does_not_hold_together_is_not_consistent() {
        assert!(is_consistent(
            "consistent: 0 sandboxes, 0 leases, 0 under way"
        ));
        assert!(!is_consistent(
            "a row of uid_leases belongs to none of sandboxes"
        ));
        assert!(!is_consistent("not looked at"));
    }
}
