//! Which of the host's programs go into the lab, and the shared libraries that they need.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::tree::{Tree, TreeError};
use crate::step::{self, StepError};

/// Why programs cannot be gathered.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ProgramsError {
    #[error("the lab needs {0} of this host")]
    Missing(&'static str),
    #[error(transparent)]
    Copy(#[from] TreeError),
    #[error("busybox cannot be asked for its applets")]
    Applets(#[source] StepError),
}

/// `sh` is the host's: busybox's own prefers its applets to programs, whatever `PATH` says.
/// Without these the lab does not start or could not do what tests ask of it.
const NEEDED: &[&str] = &["busybox", "bash", "sh", "ip", "nft", "mke2fs"];

/// Taken along where the host has them; busybox stands in for the common ones.
const WELCOME: &[&str] = &[
    "bridge",
    "cat",
    "chmod",
    "chown",
    "cmp",
    "cp",
    "curl",
    "date",
    "dd",
    "debugfs",
    "df",
    "dig",
    "dnsmasq",
    "du",
    "e2fsck",
    "echo",
    "env",
    "false",
    "find",
    "getfacl",
    "getfattr",
    "grep",
    "head",
    "id",
    "iperf3",
    "kill",
    "ln",
    "ls",
    "lsns",
    "mkdir",
    "mkfs.ext4",
    "mount",
    "mountpoint",
    "mv",
    "nc",
    "nsenter",
    "ping",
    "prlimit",
    "ps",
    "resize2fs",
    "rm",
    "sed",
    "seq",
    "setfacl",
    "setfattr",
    "setpriv",
    "sha256sum",
    "sleep",
    "sort",
    "ss",
    "stat",
    "strace",
    "sync",
    "tail",
    "tc",
    "tcpdump",
    "tee",
    "timeout",
    "touch",
    "tr",
    "true",
    "truncate",
    "tune2fs",
    "umount",
    "uname",
    "unshare",
    "wc",
    "wg",
    "xargs",
];

/// Copies the programs with their libraries, then lets busybox fill the gaps.
pub(super) fn gather(tree: &Tree) -> Result<(), ProgramsError> {
    let dirs = step::program_dirs();
    for name in NEEDED {
        let program = step::find_program(name, &dirs).ok_or(ProgramsError::Missing(name))?;
        install(tree, &program, name)?;
    }
    for name in WELCOME {
        if let Some(program) = step::find_program(name, &dirs) {
            install(tree, &program, name)?;
        }
    }
    applets(tree)
}

fn install(tree: &Tree, program: &Path, name: &str) -> Result<(), TreeError> {
    tree.copy(program, &Path::new("usr/bin").join(name))?;
    libraries(tree, program)
}

/// Copies the shared libraries of a program to where its loader looks for them.
pub(super) fn libraries(tree: &Tree, program: &Path) -> Result<(), TreeError> {
    // ldd fails on static programs and scripts: these need no libraries.
    let Ok(listing) = step::capture(Command::new("ldd").arg(program)) else {
        return Ok(());
    };
    for library in paths_in(&String::from_utf8_lossy(&listing)) {
        if !tree.has(&library) {
            tree.copy(&library, &library)?;
        }
    }
    Ok(())
}

/// The paths in ldd's lines: `libc.so.6 => /lib/libc.so.6 (0x…)` and `/lib64/ld-linux… (0x…)`.
fn paths_in(listing: &str) -> Vec<PathBuf> {
    let path = |line: &str| {
        let line = line.split_once("=>").map_or(line, |(_, path)| path);
        line.split_whitespace()
            .next()
            .filter(|word| word.starts_with('/'))
            .map(PathBuf::from)
    };
    listing.lines().filter_map(path).collect()
}

fn applets(tree: &Tree) -> Result<(), ProgramsError> {
    let list =
        step::capture(Command::new("busybox").arg("--list")).map_err(ProgramsError::Applets)?;
    for applet in String::from_utf8_lossy(&list).lines() {
        let place = Path::new("usr/bin").join(applet);
        if !tree.has(&place) {
            tree.link(Path::new("busybox"), &place)?;
        }
    }
    // The kernel calls modprobe by this path.
    tree.link(Path::new("../bin/busybox"), Path::new("usr/sbin/modprobe"))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_and_the_loader_are_found_in_ldds_listing() {
        let listing = "\tlinux-vdso.so.1 (0x00007ffd)\n\
            \tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f00)\n\
            \tlibgone.so => not found\n\
            \t/lib64/ld-linux-x86-64.so.2 (0x00007f01)\n";
        let expected: Vec<PathBuf> = vec![
            "/lib/x86_64-linux-gnu/libc.so.6".into(),
            "/lib64/ld-linux-x86-64.so.2".into(),
        ];
        assert_eq!(paths_in(listing), expected);
    }
}
