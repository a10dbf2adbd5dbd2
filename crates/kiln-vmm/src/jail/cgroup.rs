//! A control group of its own around one VMM: limits, the end of everything in it, and removal.
//!
//! Both versions: in version 2 one directory, in version 1 one per controller. The process joins
//! before its program is executed, so that limits hold from the first instruction.

use std::collections::BTreeSet;
use std::io::{Error, ErrorKind};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::process::{Pid, Signal, kill_process};

use super::step;
use crate::error::JailError;

/// Where Linux distributions mount control groups.
const MOUNT: &str = "/sys/fs/cgroup";
/// The scheduler's period, in which a quota is consumed.
const CPU_PERIOD_US: u64 = 100_000;
/// How long a killed group may take to be empty.
const EMPTY: Duration = Duration::from_secs(20);

/// What a VMM may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Memory of the guest and of the VMM itself; swap is forbidden.
    pub memory_bytes: u64,
    /// Processors' worth of time.
    pub cpus: u32,
    /// Threads and processes.
    pub pids: u32,
}

/// The groups of machines below a parent, each with its directories, whoever made them.
#[must_use]
pub fn groups_below(parent: &str) -> Vec<(String, Vec<PathBuf>)> {
    let host = Hierarchy::of_host();
    let names = host.names(parent);
    let with_dirs = |name: String| {
        let dirs = host.existing(parent, &name);
        (name, dirs)
    };
    names.into_iter().map(with_dirs).collect()
}

/// Removes a parent that has no groups any more; one that has stays. Not while a machine is made.
pub fn remove_empty_parent(parent: &str) {
    let host = Hierarchy::of_host();
    for dir in host.existing(".", parent) {
        // Refused while there is anything below it.
        let _ = std::fs::remove_dir(dir);
    }
}

/// Kills whatever is in the group of these directories and removes it. Blocks.
///
/// # Errors
/// It does not become empty, or cannot be removed.
pub fn end_group(dirs: Vec<PathBuf>) -> std::io::Result<()> {
    Cgroup::of(dirs).end()
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    One,
    Two,
}

/// Why no limits can be set: nothing of the control groups is mounted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "no control groups with a memory controller are mounted here, as under `ip netns exec`, which \
     mounts a /sys of its own: start Kiln outside of it (`nsenter --net=/run/netns/NAME` keeps \
     them), or mount them"
)]
pub struct CgroupsHidden;

/// The control groups of this host, as far as they are needed here.
#[derive(Debug)]
pub(crate) struct Hierarchy {
    mount: PathBuf,
    version: Version,
}

impl Hierarchy {
    /// Version 2 where it has the controllers, else version 1.
    pub(crate) fn of_host() -> Self {
        Self::at(Path::new(MOUNT))
    }

    /// The directories of a group that is there.
    pub(crate) fn existing(&self, parent: &str, name: &str) -> Vec<PathBuf> {
        let trees = match self.version {
            Version::Two => vec![self.mount.clone()],
            Version::One => ["memory", "cpu", "pids"]
                .map(|it| self.mount.join(it))
                .to_vec(),
        };
        let dirs = trees.into_iter().map(|tree| tree.join(parent).join(name));
        dirs.filter(|dir| dir.is_dir()).collect()
    }

    /// The names of the groups below `parent`.
    fn names(&self, parent: &str) -> BTreeSet<String> {
        let trees = self.existing(".", parent);
        let entries = trees
            .into_iter()
            .filter_map(|dir| std::fs::read_dir(dir).ok());
        let dirs = entries
            .flatten()
            .flatten()
            .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
        dirs.filter_map(|entry| entry.file_name().into_string().ok())
            .collect()
    }

    fn at(mount: &Path) -> Self {
        let version = if mount.join("cgroup.controllers").exists() {
            Version::Two
        } else {
            Version::One
        };
        Self {
            mount: mount.to_owned(),
            version,
        }
    }

    /// Whether there is anything at the mount: a mount namespace with a fresh `/sys` has not.
    fn is_visible(&self) -> bool {
        match self.version {
            Version::Two => true,
            Version::One => self.mount.join("memory").is_dir(),
        }
    }

    /// Makes the group `parent/name` with its limits. A group of that name must not exist.
    pub(crate) fn make(
        &self,
        parent: &str,
        name: &str,
        limits: Limits,
    ) -> Result<Cgroup, JailError> {
        if !self.is_visible() {
            return Err(step("find the control groups", &self.mount)(Error::new(
                ErrorKind::NotFound,
                CgroupsHidden,
            )));
        }
        let mut made = Cgroup { dirs: Vec::new() };
        match self.make_all(parent, name, limits, &mut made) {
            Ok(()) => Ok(made),
            Err(error) => {
                // Empty still: nothing has joined it.
                let _ = made.remove_dirs();
                Err(error)
            }
        }
    }

    fn make_all(
        &self,
        parent: &str,
        name: &str,
        limits: Limits,
        made: &mut Cgroup,
    ) -> Result<(), JailError> {
        for (tree, settings) in self.plan(limits) {
            let parent = tree.join(parent);
            std::fs::create_dir_all(&parent).map_err(step("make the control group", &parent))?;
            if self.version == Version::Two {
                delegate(&self.mount)?;
                delegate(&parent)?;
            }
            let dir = parent.join(name);
            std::fs::create_dir(&dir).map_err(step("make the control group", &dir))?;
            made.dirs.push(dir.clone());
            for setting in settings {
                setting.apply(&dir)?;
            }
        }
        Ok(())
    }

    /// Each directory tree with what is written there, in order.
    fn plan(&self, limits: Limits) -> Vec<(PathBuf, Vec<Setting>)> {
        let memory = limits.memory_bytes.to_string();
        let quota = u64::from(limits.cpus) * CPU_PERIOD_US;
        let pids = Setting::must("pids.max", limits.pids.to_string());
        match self.version {
            Version::Two => vec![(
                self.mount.clone(),
                vec![
                    Setting::must("memory.max", memory),
                    // A kernel without swap has no such file.
                    Setting::where_it_exists("memory.swap.max", "0"),
                    Setting::must("cpu.max", format!("{quota} {CPU_PERIOD_US}")),
                    pids,
                ],
            )],
            Version::One => vec![
                (
                    self.mount.join("memory"),
                    vec![
                        Setting::must("memory.limit_in_bytes", memory.clone()),
                        // Memory and swap together: the same limit leaves no swap.
                        Setting::where_it_exists("memory.memsw.limit_in_bytes", memory),
                        Setting::where_it_exists("memory.swappiness", "0"),
                    ],
                ),
                (
                    self.mount.join("cpu"),
                    vec![
                        Setting::must("cpu.cfs_period_us", CPU_PERIOD_US.to_string()),
                        Setting::must("cpu.cfs_quota_us", quota.to_string()),
                    ],
                ),
                (self.mount.join("pids"), vec![pids]),
            ],
        }
    }
}

/// Lets children of `dir` have limits; writes only where that is not so yet.
fn delegate(dir: &Path) -> Result<(), JailError> {
    let file = dir.join("cgroup.subtree_control");
    let there = std::fs::read_to_string(&file).map_err(step("read", &file))?;
    for controller in ["cpu", "memory", "pids"] {
        if !there
            .split_ascii_whitespace()
            .any(|name| name == controller)
        {
            std::fs::write(&file, format!("+{controller}"))
                .map_err(step("delegate a controller", &file))?;
        }
    }
    Ok(())
}

struct Setting {
    file: &'static str,
    value: String,
    optional: bool,
}

impl Setting {
    fn must(file: &'static str, value: String) -> Self {
        Self {
            file,
            value,
            optional: false,
        }
    }

    fn where_it_exists(file: &'static str, value: impl Into<String>) -> Self {
        Self {
            file,
            value: value.into(),
            optional: true,
        }
    }

    fn apply(&self, dir: &Path) -> Result<(), JailError> {
        let path = dir.join(self.file);
        if self.optional && !path.exists() {
            return Ok(());
        }
        std::fs::write(&path, &self.value).map_err(step("set the limit", &path))
    }
}

/// The group of one VMM. Dropping it leaves it alone.
#[derive(Clone, Debug)]
pub(crate) struct Cgroup {
    dirs: Vec<PathBuf>,
}

impl Cgroup {
    /// One that was made before, by its recorded directories.
    pub(crate) fn of(dirs: Vec<PathBuf>) -> Self {
        Self { dirs }
    }

    pub(crate) fn dirs(&self) -> &[PathBuf] {
        &self.dirs
    }

    /// What a process of one thread writes `0` into to join.
    pub(crate) fn doors(&self) -> Result<Vec<OwnedFd>, JailError> {
        self.dirs
            .iter()
            .map(|dir| {
                let path = door(dir);
                openat(CWD, &path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())
                    .map_err(|errno| step("open", &path)(errno.into()))
            })
            .collect()
    }

    /// Whether `pid` is in every part of it, as the kernel tells of the process: one file, and no
    /// lock of the hierarchy.
    pub(crate) fn holds(&self, pid: u32) -> bool {
        let lines = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
        !self.dirs.is_empty() && self.dirs.iter().all(|dir| is_in(&lines, dir))
    }

    /// Kills whatever is in it, waits until it is empty, and removes it. Blocks.
    pub(crate) fn end(&self) -> std::io::Result<()> {
        let begin = Instant::now();
        let mut pause = Duration::from_micros(200);
        loop {
            self.kill()?;
            match self.remove_dirs() {
                // Dying members still hold it.
                Err(error) if error.kind() == ErrorKind::ResourceBusy => {
                    if begin.elapsed() > EMPTY {
                        return Err(error);
                    }
                }
                outcome => return outcome,
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(Duration::from_millis(20));
        }
    }

    fn kill(&self) -> std::io::Result<()> {
        for dir in &self.dirs {
            let all_at_once = dir.join("cgroup.kill");
            if all_at_once.exists() {
                std::fs::write(&all_at_once, "1")?;
                continue;
            }
            for pid in members(dir)? {
                match kill_process(pid, Signal::KILL) {
                    Ok(()) | Err(rustix::io::Errno::SRCH) => {}
                    Err(errno) => return Err(errno.into()),
                }
            }
        }
        Ok(())
    }

    fn remove_dirs(&self) -> std::io::Result<()> {
        let mut outcome = Ok(());
        for dir in &self.dirs {
            match std::fs::remove_dir(dir) {
                Err(error) if error.kind() != ErrorKind::NotFound => outcome = Err(error),
                Ok(()) | Err(_) => {}
            }
        }
        outcome
    }
}

/// Whether a process's list of groups, `NUMBER:CONTROLLERS:PATH` each, has the one of `dir`. The
/// path may be seen from further up than the mount shows it.
fn is_in(lines: &str, dir: &Path) -> bool {
    let Ok(relative) = dir.strip_prefix(MOUNT) else {
        return false;
    };
    let relative = relative.to_string_lossy();
    lines.lines().any(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else {
            return false;
        };
        let ends = |name: &str| path.ends_with(&format!("/{name}"));
        if controllers.is_empty() {
            return ends(&relative);
        }
        relative.split_once('/').is_some_and(|(controller, name)| {
            controllers.split(',').any(|one| one == controller) && ends(name)
        })
    })
}

/// Version 1 lets a single thread move itself without the lock of the whole hierarchy, which takes
/// a grace period of the kernel's: milliseconds for each controller. Who joins has one thread.
fn door(dir: &Path) -> PathBuf {
    let thread = dir.join("tasks");
    if thread.exists() {
        thread
    } else {
        dir.join("cgroup.procs")
    }
}

/// Who is in a group. It is the group of one VMM, so a number is never a stranger's for long: the
/// kernel lists the living, and everything here is to be killed.
fn members(dir: &Path) -> std::io::Result<Vec<Pid>> {
    let text = match std::fs::read_to_string(dir.join("cgroup.procs")) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        // The kernel's answer for a group that is being removed.
        Err(error) if error.raw_os_error() == Some(rustix::io::Errno::NODEV.raw_os_error()) => {
            return Ok(Vec::new());
        }
        Err(error) => return Err(Error::new(error.kind(), error)),
    };
    Ok(text
        .lines()
        .filter_map(|line| line.trim().parse().ok())
        .filter_map(Pid::from_raw)
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits {
        memory_bytes: 128 << 20,
        cpus: 2,
        pids: 40,
    };

    /// Version 2 on a plain directory: what is written where. (A kernel of version 1 runs these
    /// tests too; the real limits are read back by the engines' tests.)
    #[test]
    fn b5_2_version_2_gets_its_own_words() {
        let dir = tempfile::tempdir().unwrap();
        for file in ["cgroup.controllers", "cgroup.subtree_control"] {
            std::fs::write(dir.path().join(file), "cpu pids").unwrap();
        }
        std::fs::create_dir(dir.path().join("kiln")).unwrap();
        std::fs::write(dir.path().join("kiln/cgroup.subtree_control"), "").unwrap();
        let hierarchy = Hierarchy::at(dir.path());
        let group = hierarchy.make("kiln", "m", LIMITS).unwrap();
        let read = |name: &str| std::fs::read_to_string(group.dirs[0].join(name)).unwrap();
        assert_eq!(group.dirs, [dir.path().join("kiln/m")]);
        assert_eq!(read("memory.max"), (128 << 20).to_string());
        assert_eq!(read("cpu.max"), "200000 100000");
        assert_eq!(read("pids.max"), "40");
        let delegated = dir.path().join("cgroup.subtree_control");
        assert_eq!(std::fs::read_to_string(delegated).unwrap(), "+memory");
        // A second one of that name would share the limits of the first.
        assert!(hierarchy.make("kiln", "m", LIMITS).is_err());
    }

    /// As under `ip netns exec`: a `/sys` without control groups.
    #[test]
    fn b5_2_hidden_control_groups_are_told_as_such() {
        let dir = tempfile::tempdir().unwrap();
        let error = Hierarchy::at(dir.path())
            .make("kiln", "m", LIMITS)
            .unwrap_err();
        assert_eq!(error.code(), crate::Code::CgroupsHidden);
        assert!(error.source.to_string().contains("ip netns exec"));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_process_is_where_the_kernel_says() {
        let lines = "9:name=systemd:/\n4:cpu,cpuacct:/kiln/m\n8:memory:/kiln/m-2\n0::/kiln/m\n";
        let is_in = |dir: &str| is_in(lines, Path::new(dir));
        assert!(is_in("/sys/fs/cgroup/cpu/kiln/m"));
        assert!(is_in("/sys/fs/cgroup/kiln/m"));
        assert!(!is_in("/sys/fs/cgroup/memory/kiln/m"));
        assert!(!is_in("/sys/fs/cgroup/pids/kiln/m"));
        assert!(!is_in("/elsewhere/kiln/m"));
    }

    #[test]
    fn b5_2_version_1_has_a_directory_for_each_controller() {
        let plan = Hierarchy {
            mount: "/c".into(),
            version: Version::One,
        }
        .plan(LIMITS);
        let files: Vec<String> = plan
            .iter()
            .flat_map(|(dir, settings)| {
                settings
                    .iter()
                    .map(move |one| format!("{}/{}={}", dir.display(), one.file, one.value))
            })
            .collect();
        assert_eq!(
            files,
            [
                "/c/memory/memory.limit_in_bytes=134217728",
                "/c/memory/memory.memsw.limit_in_bytes=134217728",
                "/c/memory/memory.swappiness=0",
                "/c/cpu/cpu.cfs_period_us=100000",
                "/c/cpu/cpu.cfs_quota_us=200000",
                "/c/pids/pids.max=40",
            ]
        );
    }

    #[test]
    fn b5_2_the_end_takes_everything_with_it() {
        let test = "b5_2_the_end_takes_everything_with_it";
        let name = format!("t-{}", std::process::id());
        let group = match Hierarchy::of_host().make("kiln-test", &name, LIMITS) {
            Ok(group) => group,
            Err(error) => {
                eprintln!("SKIPPED: {test}: {error}: {}", error.source);
                return;
            }
        };
        let mut children: Vec<_> = (0..3)
            .map(|_| {
                std::process::Command::new("sleep")
                    .arg("600")
                    .spawn()
                    .unwrap()
            })
            .collect();
        for child in &children {
            for dir in group.dirs() {
                std::fs::write(dir.join("cgroup.procs"), child.id().to_string()).unwrap();
            }
            assert!(group.holds(child.id()));
        }
        assert!(!group.holds(std::process::id()));
        // Somebody has to reap them: until then they are members.
        let reaper = std::thread::spawn(move || {
            for child in &mut children {
                assert!(!child.wait().unwrap().success());
            }
        });
        group.end().unwrap();
        reaper.join().unwrap();
        assert!(group.dirs().iter().all(|dir| !dir.exists()));
        group.end().unwrap();
    }
}
