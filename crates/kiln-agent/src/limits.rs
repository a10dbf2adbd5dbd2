//! What one command with all its processes may take: a control group with limits.
//!
//! The kernel's controllers are switched on for groups with the first command that has limits, and
//! not before: a group that they look after takes longer to make.

use std::fs;
use std::io;
use std::path::Path;

use kiln_agent_proto::message::{ErrorCode, ExecLimits};

use crate::cgroup::{Cgroup, Cgroups};
use crate::process::SpawnError;

/// Microseconds over which processor time is shared out.
const PERIOD_US: u64 = 100_000;
/// The least that the kernel shares out in them.
const LEAST_QUOTA_US: u64 = 1000;

/// Makes the group of a session that is held to limits.
pub(crate) fn group(
    cgroups: Option<&Cgroups>,
    session: u64,
    limits: &ExecLimits,
) -> Result<Cgroup, SpawnError> {
    let cgroups = cgroups.ok_or_else(|| refused("control groups", None))?;
    let settings = settings(limits);
    for (controller, _, _) in &settings {
        switch_on(cgroups.directory(), controller).map_err(|it| refused(controller, Some(it)))?;
    }
    let made = cgroups.create_limited(session);
    let group = made.map_err(|it| refused("control groups", Some(it)))?;
    for (controller, file, value) in &settings {
        if let Err(error) = fs::write(group.path().join(file), value) {
            group.remove();
            return Err(refused(controller, Some(error)));
        }
    }
    if limits.memory_bytes > 0 {
        // Not there in a kernel without swap.
        let _ = fs::write(group.path().join("memory.swap.max"), "0");
    }
    Ok(group)
}

/// Controller, file and value.
fn settings(limits: &ExecLimits) -> Vec<(&'static str, &'static str, String)> {
    let mut settings = Vec::new();
    if limits.memory_bytes > 0 {
        settings.push(("memory", "memory.max", limits.memory_bytes.to_string()));
    }
    if limits.processes > 0 {
        settings.push(("pids", "pids.max", limits.processes.to_string()));
    }
    if limits.cpu_milli > 0 {
        let quota = u64::from(limits.cpu_milli) * PERIOD_US / 1000;
        let quota = quota.max(LEAST_QUOTA_US);
        settings.push(("cpu", "cpu.max", format!("{quota} {PERIOD_US}")));
    }
    settings
}

fn switch_on(parent: &Path, controller: &str) -> io::Result<()> {
    let path = parent.join("cgroup.subtree_control");
    let on = fs::read_to_string(&path)?;
    if on.split_whitespace().any(|it| it == controller) {
        return Ok(());
    }
    fs::write(path, format!("+{controller}"))
}

fn refused(what: &str, error: Option<io::Error>) -> SpawnError {
    let reason = error.map_or_else(String::new, |error| format!(": {error}"));
    SpawnError {
        code: ErrorCode::NoLimits,
        message: format!("the guest's kernel does not limit by {what}{reason}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_said_in_the_kernels_words() {
        let limits = ExecLimits {
            memory_bytes: 64 << 20,
            processes: 32,
            cpu_milli: 500,
        };
        let all = settings(&limits);
        let written: Vec<_> = all
            .iter()
            .map(|(_, file, value)| (*file, value.as_str()))
            .collect();
        assert_eq!(
            written,
            [
                ("memory.max", "67108864"),
                ("pids.max", "32"),
                ("cpu.max", "50000 100000")
            ]
        );
        let tiny = ExecLimits {
            cpu_milli: 1,
            ..ExecLimits::default()
        };
        assert_eq!(settings(&tiny)[0].2, "1000 100000");
        assert!(settings(&ExecLimits::default()).is_empty());
    }

    /// Where there are no control groups the command does not run at all.
    #[test]
    fn limits_that_cannot_be_had_are_refused() {
        let limits = ExecLimits {
            processes: 1,
            ..ExecLimits::default()
        };
        let error = group(None, 1, &limits).unwrap_err();
        assert_eq!(error.code, ErrorCode::NoLimits);
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("cgroup.procs"), "").unwrap();
        let cgroups = Cgroups::open(dir.path()).unwrap();
        let error = group(Some(&cgroups), 1, &limits).unwrap_err();
        assert_eq!(error.code, ErrorCode::NoLimits);
        assert_eq!(
            fs::read_dir(dir.path()).unwrap().count(),
            1,
            "nothing is left"
        );
    }
}
