//! The programs of e2fsprogs. What they read may have been written by a hostile guest, so a root
//! user's checks run as nobody, on a file handed to them open, and not for ever.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::unix::fs::fchown;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use crate::debian::command::run_prepared;

/// Features that every guest kernel since 4.x mounts, and that grow offline and online; the host's
/// own configuration may ask for newer ones.
const CONFIGURATION: &str = "\
[defaults]
base_features = sparse_super,large_file,filetype,resize_inode,dir_index,ext_attr
default_mntopts = acl,user_xattr
enable_periodic_fsck = 0
blocksize = 4096
inode_size = 256
inode_ratio = 16384
[fs_types]
ext4 = {
features = has_journal,extent,huge_file,flex_bg,metadata_csum,64bit,dir_nlink,extra_isize
}
";
/// The file is new, so all of it is zero: nothing needs to be written to say so. Older programs do
/// not know the first form; the second leaves some of the work to the guest.
const FRESH: [&str; 2] = [
    "nodiscard,root_owner=0:0,assume_storage_prezeroed=1",
    "nodiscard,root_owner=0:0,lazy_itable_init=1,lazy_journal_init=1",
];
/// A check of a full disk of terabytes takes this long, not longer.
const DEADLINE: Duration = Duration::from_secs(30 * 60);
const NOBODY: u32 = 65534;

/// Why a filesystem could not be made, checked or grown.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum E2fsError {
    /// The program is not installed.
    #[error("{program} is missing: install e2fsprogs")]
    Missing {
        /// The program.
        program: &'static str,
    },
    /// The program cannot be run.
    #[error("cannot run {program}")]
    Run {
        /// The program.
        program: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The program took too long and was killed.
    #[error("{program} did not end within {} s", DEADLINE.as_secs())]
    TimedOut {
        /// The program.
        program: &'static str,
    },
    /// The program refused.
    #[error("{program} failed: {output}")]
    Failed {
        /// The program.
        program: &'static str,
        /// The last lines of what it said.
        output: String,
    },
}

/// Makes an empty filesystem of the new, sparse file `disk`; `temporary` takes a file of settings.
pub(crate) fn make(disk: &Path, temporary: &Path) -> Result<(), E2fsError> {
    const PROGRAM: &str = "mke2fs";
    let configuration = temporary.join("mke2fs.conf");
    let failed = |source| E2fsError::Run {
        program: PROGRAM,
        source,
    };
    std::fs::write(&configuration, CONFIGURATION).map_err(failed)?;
    let mut outcome = Ok(());
    for options in FRESH {
        let mut command = Command::new(find(PROGRAM)?);
        command
            .env("MKE2FS_CONFIG", &configuration)
            // Without it, small disks get small blocks.
            .args([
                "-q", "-F", "-t", "ext4", "-b", "4096", "-m", "0", "-E", options,
            ])
            .arg(disk)
            .stdin(Stdio::null());
        outcome = finish(PROGRAM, &mut command, &[0]);
        if outcome.is_ok() {
            break;
        }
    }
    std::fs::remove_file(&configuration).map_err(failed)?;
    outcome
}

/// Replays the journal and mends what it can; an error if something is left.
pub(super) fn check(disk: &File) -> Result<(), E2fsError> {
    // 1: mended, 2: would want a reboot if it were mounted.
    on(disk, "e2fsck", &["-f", "-y"], &[0, 1, 2])
}

/// Grows a checked filesystem to the length of its file.
pub(super) fn grow(disk: &File) -> Result<(), E2fsError> {
    on(disk, "resize2fs", &[], &[0])
}

/// Runs a program on an open file, with no right but to that file.
fn on(disk: &File, program: &'static str, options: &[&str], good: &[i32]) -> Result<(), E2fsError> {
    let failed = |source| E2fsError::Run { program, source };
    let path = find(program)?;
    let mut command = Command::new(path);
    let input = disk.try_clone().map_err(failed)?;
    command
        .args(options)
        .arg("/proc/self/fd/0")
        .current_dir("/")
        .env_clear()
        .stdin(input);
    if !rustix::process::geteuid().is_root() {
        return finish(program, &mut command, good);
    }
    fchown(disk, Some(NOBODY), Some(NOBODY)).map_err(failed)?;
    command.uid(NOBODY).gid(NOBODY);
    let outcome = finish(program, &mut command, good);
    // It is ours again; whoever attaches it gives it to a jail's user anew.
    fchown(disk, Some(0), Some(0)).map_err(failed)?;
    outcome
}

/// Waits for programs that a killed process left at work on this file, and keeps others from it
/// until `disk` is closed here and in the programs that get it from here.
pub(super) fn wait_for_orphans(disk: &File) -> io::Result<()> {
    loop {
        // It belongs to the open file, which the programs inherit: it outlives us with them.
        match flock(disk, FlockOperation::LockExclusive) {
            Err(Errno::INTR) => {}
            other => return other.map_err(io::Error::from),
        }
    }
}

fn finish(program: &'static str, command: &mut Command, good: &[i32]) -> Result<(), E2fsError> {
    let answer =
        run_prepared(command, DEADLINE).map_err(|source| E2fsError::Run { program, source })?;
    if answer.timed_out {
        return Err(E2fsError::TimedOut { program });
    }
    if answer.code.is_some_and(|code| good.contains(&code)) {
        return Ok(());
    }
    let said = [
        String::from_utf8_lossy(&answer.stdout),
        answer.stderr.into(),
    ]
    .concat();
    Err(E2fsError::Failed {
        program,
        output: last_lines(&said),
    })
}

/// Enough to see why, without control characters that a hostile disk may have put there.
fn last_lines(text: &str) -> String {
    const LINES: usize = 5;
    let lines: Vec<&str> = text
        .lines()
        .filter(|line| !line.trim().is_empty())
        .collect();
    let last = &lines[lines.len().saturating_sub(LINES)..];
    let plain = |c: char| if c.is_control() { ' ' } else { c };
    let text: String = last.join("; ").chars().map(plain).collect();
    text.chars().take(500).collect()
}

/// In `PATH`, or where Debian keeps what an ordinary user's `PATH` leaves out.
fn find(program: &'static str) -> Result<PathBuf, E2fsError> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let directories = std::env::split_paths(&path);
    directories
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .map(|directory| directory.join(OsStr::new(program)))
        .find(|candidate| candidate.is_file())
        .ok_or(E2fsError::Missing { program })
}
