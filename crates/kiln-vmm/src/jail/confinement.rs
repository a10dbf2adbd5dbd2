//! What holds around a running VMM, read from the kernel and held against what was promised.

use std::fmt;
use std::io::{Error, ErrorKind};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::Protection;
use super::cgroup::Cgroup;
use crate::MachineRecord;

/// What holds around a VMM: the weakest of its threads counts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Confinement {
    /// Whether it was put in a jail.
    pub jailed: bool,
    /// Effective user.
    pub uid: u32,
    /// Effective group.
    pub gid: u32,
    /// Whether it can never gain privileges by executing something.
    pub no_new_privs: bool,
    /// Capabilities in effect, as a bit set.
    pub capabilities: u64,
    /// Whether system calls are filtered, in every thread.
    pub seccomp: bool,
    /// Whether it sees no process but its own.
    pub pid_namespace: bool,
    /// Whether it has a root directory of its own.
    pub own_root: bool,
    /// Whether a control group of its own limits it.
    pub cgroup: bool,
}

/// A protection that does not hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Breach {
    /// No jail at all.
    Unjailed,
    /// It runs as another user or group than it should.
    User,
    /// It could gain privileges.
    NewPrivileges,
    /// It has capabilities.
    Capabilities,
    /// Its system calls are not filtered.
    Seccomp,
    /// It sees the processes of the host.
    PidNamespace,
    /// It sees the files of the host.
    Root,
    /// No control group limits it.
    Cgroup,
}

impl fmt::Display for Breach {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Unjailed => "it is not jailed",
            Self::User => "it runs as another user than it should",
            Self::NewPrivileges => "it could gain privileges",
            Self::Capabilities => "it has capabilities",
            Self::Seccomp => "its system calls are not filtered",
            Self::PidNamespace => "it sees the processes of the host",
            Self::Root => "it sees the files of the host",
            Self::Cgroup => "no control group limits it",
        })
    }
}

/// What the engine promises of its VMMs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Promise {
    /// Whether a jail comes with a root directory of its own.
    pub(crate) own_root: bool,
    /// Which threads have to be filtered by now.
    pub(crate) filtered: Filtered,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Filtered {
    /// Every one.
    All,
    /// One at least: the others follow before the guest runs.
    One,
}

impl Confinement {
    /// What does not hold although a confined VMM should have it.
    #[must_use]
    pub fn breaches(&self) -> Vec<Breach> {
        let mut breaches = Vec::new();
        let mut unless = |holds: bool, breach| {
            if !holds {
                breaches.push(breach);
            }
        };
        unless(self.jailed, Breach::Unjailed);
        unless(self.uid != 0 && self.gid != 0, Breach::User);
        unless(self.no_new_privs, Breach::NewPrivileges);
        unless(self.capabilities == 0, Breach::Capabilities);
        unless(self.seccomp, Breach::Seccomp);
        unless(self.pid_namespace, Breach::PidNamespace);
        unless(self.cgroup, Breach::Cgroup);
        breaches
    }

    /// Reads what holds around the process of `record`.
    pub(crate) fn of(record: &MachineRecord) -> std::io::Result<Self> {
        Self::with(record, Filtered::All)
    }

    fn with(record: &MachineRecord, filtered: Filtered) -> std::io::Result<Self> {
        let pid = record.process.pid;
        let threads = Status::of_threads(pid)?;
        let first = threads
            .first()
            .ok_or_else(|| Error::from(ErrorKind::NotFound))?;
        let differs = |path: &str| {
            let theirs = std::fs::read_link(format!("/proc/{pid}/{path}"));
            let ours = std::fs::read_link(format!("/proc/self/{path}"));
            matches!((theirs, ours), (Ok(theirs), Ok(ours)) if theirs != ours)
        };
        let jail = record.jail.as_ref();
        Ok(Self {
            jailed: jail.is_some(),
            uid: first.uid,
            gid: first.gid,
            no_new_privs: threads.iter().all(|thread| thread.no_new_privs),
            capabilities: threads
                .iter()
                .fold(0, |all, thread| all | thread.capabilities),
            seccomp: match filtered {
                Filtered::All => threads.iter().all(|thread| thread.seccomp),
                Filtered::One => threads.iter().any(|thread| thread.seccomp),
            },
            pid_namespace: differs("ns/pid"),
            own_root: has_own_root(pid),
            cgroup: jail.is_some_and(|jail| Cgroup::of(jail.cgroups.clone()).holds(pid)),
        })
    }

    /// Holds what is against what was promised. Without a jail, nothing but filters is promised, and
    /// never what the owner does without.
    pub(crate) fn verify(record: &MachineRecord, promise: Promise) -> std::io::Result<Vec<Breach>> {
        let is = Self::with(record, promise.filtered)?;
        let waived = |protection| record.shape.without.contains(&protection);
        let mut breaches = Vec::new();
        let mut unless = |holds: bool, breach| {
            if !holds {
                breaches.push(breach);
            }
        };
        unless(is.seccomp || waived(Protection::Seccomp), Breach::Seccomp);
        if let Some(jail) = &record.jail {
            unless(is.uid == jail.uid && is.gid == jail.gid, Breach::User);
            unless(is.no_new_privs, Breach::NewPrivileges);
            unless(is.capabilities == 0, Breach::Capabilities);
            let sees_its_own = is.pid_namespace || waived(Protection::PidNamespace);
            unless(sees_its_own, Breach::PidNamespace);
            unless(is.own_root || !promise.own_root, Breach::Root);
            unless(is.cgroup || waived(Protection::Cgroup), Breach::Cgroup);
        }
        Ok(breaches)
    }
}

/// The user in effect that a process's status tells of.
pub(super) fn user_of(status: &Path) -> Option<u32> {
    Some(Status::read(status).ok()?.uid)
}

/// A mount namespace alone is none: it can show the host's files.
fn has_own_root(pid: u32) -> bool {
    let root = |path: &str| {
        let data = std::fs::metadata(path).ok()?;
        Some((data.dev(), data.ino()))
    };
    let theirs = root(&format!("/proc/{pid}/root/."));
    theirs.is_some() && theirs != root("/proc/self/root/.")
}

/// What `/proc/<pid>/task/<tid>/status` says of one thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Status {
    uid: u32,
    gid: u32,
    no_new_privs: bool,
    capabilities: u64,
    seccomp: bool,
}

impl Status {
    fn of_threads(pid: u32) -> std::io::Result<Vec<Self>> {
        let mut threads = Vec::new();
        for entry in std::fs::read_dir(format!("/proc/{pid}/task"))? {
            match Self::read(&entry?.path().join("status")) {
                Ok(status) => threads.push(status),
                // A thread that has ended meanwhile.
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) if error.raw_os_error() == Some(3) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(threads)
    }

    fn read(path: &Path) -> std::io::Result<Self> {
        let text = std::fs::read_to_string(path)?;
        Self::parse(&text).ok_or_else(|| Error::new(ErrorKind::InvalidData, "not a status"))
    }

    /// The identities are those in effect: the second of four numbers. Of all four kinds of
    /// capability sets, permitted ones count like effective ones: they are one call away.
    fn parse(text: &str) -> Option<Self> {
        let field = |name: &str| {
            text.lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
                .map(str::trim)
        };
        let second = |name| field(name)?.split_ascii_whitespace().nth(1)?.parse().ok();
        let set = |name| u64::from_str_radix(field(name)?, 16).ok();
        Some(Self {
            uid: second("Uid")?,
            gid: second("Gid")?,
            no_new_privs: field("NoNewPrivs")? == "1",
            capabilities: set("CapEff")? | set("CapPrm")? | set("CapInh")? | set("CapAmb")?,
            // 2: a filter; 1, the strict mode, would not run a VMM.
            seccomp: field("Seccomp")? == "2",
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const GOOD: &str = "Name:\tfirecracker\nUid:\t0\t70001\t70001\t70001\nGid:\t1\t70002\t1\t1\n\
        CapInh:\t0000000000000000\nCapPrm:\t0000000000000000\nCapEff:\t0000000000000000\n\
        CapBnd:\t000001ffffffffff\nCapAmb:\t0000000000000000\nNoNewPrivs:\t1\nSeccomp:\t2\n\
        Seccomp_filters:\t1\n";

    #[test]
    fn each_line_of_the_status_counts() {
        let status = Status::parse(GOOD).unwrap();
        assert_eq!((status.uid, status.gid), (70001, 70002));
        assert!(status.no_new_privs && status.seccomp && status.capabilities == 0);
        for (from, to) in [
            ("Seccomp:\t2", "Seccomp:\t0"),
            ("NoNewPrivs:\t1", "NoNewPrivs:\t0"),
            ("CapEff:\t0000000000000000", "CapEff:\t0000000000000001"),
            ("CapPrm:\t0000000000000000", "CapPrm:\t0000002000000000"),
            ("\t70001\t", "\t0\t"),
        ] {
            let worse = Status::parse(&GOOD.replacen(from, to, 1)).unwrap();
            assert_ne!(worse, status, "{from}");
        }
    }

    #[test]
    fn this_process_is_not_confined() {
        let pid = rustix::process::getpid();
        let process = crate::process::identify(pid).unwrap();
        let record = MachineRecord {
            id: "m".into(),
            engine: crate::EngineKind::Fake,
            process,
            runtime_dir: "/".into(),
            console_log: "/".into(),
            jail: None,
            allow_insecure: true,
            shape: crate::machine::MachineShape::default(),
        };
        let is = Confinement::of(&record).unwrap();
        assert!(!is.pid_namespace && !is.own_root && !is.cgroup && !is.jailed);
        assert!(is.breaches().contains(&Breach::Unjailed));
    }

    proptest! {
        #[test]
        fn any_text_is_survived(text in "(Uid|Gid|Seccomp|CapEff)?:?.{0,60}") {
            let _ = Status::parse(&text);
        }
    }
}
