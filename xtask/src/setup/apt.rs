//! Calling apt: as root, through sudo, or not at all but with the exact command in the message.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::SystemTime;

use super::LISTS_STALE_AFTER;
use crate::step::{self, StepError};

/// Why packages were not installed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AptError {
    #[error(
        "this is not a Debian or Ubuntu machine (no apt-get); install by its own means: {packages}"
    )]
    NoApt { packages: String },
    #[error("root is needed; run this, then try again:\n  {command}")]
    NeedsRoot { command: String },
    #[error("apt could not install the packages; try by hand:\n  {command}")]
    Failed {
        command: String,
        #[source]
        source: StepError,
    },
}

/// How we may act as root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Privilege {
    Root,
    Sudo(PathBuf),
    None,
}

/// The machine's apt.
#[derive(Debug)]
pub(super) struct Apt {
    pub(super) program: Option<PathBuf>,
    pub(super) privilege: Privilege,
    /// Where apt keeps its package lists.
    pub(super) lists: PathBuf,
}

impl Apt {
    pub(super) fn of_this_machine(program_dirs: &[PathBuf]) -> Self {
        Self {
            program: step::find_program("apt-get", program_dirs),
            privilege: privilege(program_dirs),
            lists: PathBuf::from("/var/lib/apt/lists"),
        }
    }

    /// Installs packages, fetching the package lists first when they are missing or stale, or
    /// afterwards when the install failed with them.
    pub(super) fn install(&self, packages: &[&str]) -> Result<(), AptError> {
        let Some(program) = &self.program else {
            return Err(AptError::NoApt {
                packages: packages.join(" "),
            });
        };
        if self.privilege == Privilege::None {
            return Err(AptError::NeedsRoot {
                command: by_hand(packages),
            });
        }
        let failed = |source| AptError::Failed {
            command: by_hand(packages),
            source,
        };
        let fresh = lists_are_fresh(&self.lists);
        if !fresh {
            step::run(&mut self.update(program)).map_err(failed)?;
        }
        match step::run(&mut self.install_command(program, packages)) {
            Ok(()) => Ok(()),
            Err(_) if fresh => {
                eprintln!("setup: the package lists may be out of date; fetching them");
                step::run(&mut self.update(program)).map_err(failed)?;
                step::run(&mut self.install_command(program, packages)).map_err(failed)
            }
            Err(source) => Err(failed(source)),
        }
    }

    fn update(&self, program: &Path) -> Command {
        let mut command = self.as_root(program);
        command.arg("update");
        command
    }

    fn install_command(&self, program: &Path, packages: &[&str]) -> Command {
        let mut command = self.as_root(program);
        command
            .args(["install", "--yes", "--no-install-recommends"])
            .args(packages);
        command
    }

    /// `apt-get` that never asks anything; `env` because sudo drops the environment.
    fn as_root(&self, program: &Path) -> Command {
        let mut command = match &self.privilege {
            Privilege::Sudo(sudo) => {
                let mut command = Command::new(sudo);
                command.arg("env");
                command
            }
            Privilege::Root | Privilege::None => Command::new("env"),
        };
        command.arg("DEBIAN_FRONTEND=noninteractive").arg(program);
        command
    }
}

fn by_hand(packages: &[&str]) -> String {
    let packages = packages.join(" ");
    format!("sudo apt-get update && sudo apt-get install --no-install-recommends {packages}")
}

fn privilege(program_dirs: &[PathBuf]) -> Privilege {
    if rustix::process::geteuid().is_root() {
        return Privilege::Root;
    }
    step::find_program("sudo", program_dirs).map_or(Privilege::None, Privilege::Sudo)
}

/// Whether package lists exist and were fetched lately. apt gives the files the server's dates,
/// so the status change time tells when they came.
fn lists_are_fresh(lists: &Path) -> bool {
    let Ok(entries) = lists.read_dir() else {
        return false;
    };
    let newest = entries
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().contains("_Packages"))
        .filter_map(|entry| entry.metadata().ok())
        .map(|meta| meta.ctime())
        .max();
    let now = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |since| since.as_secs());
    newest
        .and_then(|newest| u64::try_from(newest).ok())
        .is_some_and(|newest| now.saturating_sub(newest) < LISTS_STALE_AFTER.as_secs())
}
