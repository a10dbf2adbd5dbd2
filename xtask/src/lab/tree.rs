//! The lab's root filesystem while it is gathered in a directory of the host.

use std::fs;
use std::io;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

/// A file of the host that cannot be put into the tree.
#[derive(Debug, thiserror::Error)]
#[error("cannot put {host} at {guest} in the lab")]
pub(crate) struct TreeError {
    host: PathBuf,
    guest: PathBuf,
    #[source]
    source: io::Error,
}

/// A directory that becomes the lab's root. Paths in the guest are relative to it.
#[derive(Debug)]
pub(super) struct Tree {
    root: PathBuf,
}

/// As on today's Debian: the old directories are links into `/usr`.
const MERGED: &[&str] = &["bin", "sbin", "lib", "lib64"];
const DIRECTORIES: &[&str] = &[
    "dev",
    "etc",
    "lab",
    "mnt",
    "proc",
    "root",
    "run",
    "srv",
    "sys",
    "tmp",
    "usr/local/bin",
    "var/lib",
    "var/log",
    "var/tmp",
];

impl Tree {
    pub(super) fn create(root: PathBuf) -> Result<Self, TreeError> {
        let tree = Self { root };
        for dir in DIRECTORIES {
            tree.directory(Path::new(dir))?;
        }
        for name in MERGED {
            let inside = Path::new("usr").join(name);
            tree.directory(&inside)?;
            tree.link(&inside, Path::new(name))?;
        }
        Ok(tree)
    }

    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    /// Where a path of the guest lies on the host while the tree is gathered.
    fn place(&self, guest: &Path) -> PathBuf {
        self.root.join(guest.strip_prefix("/").unwrap_or(guest))
    }

    pub(super) fn has(&self, guest: &Path) -> bool {
        self.place(guest).symlink_metadata().is_ok()
    }

    pub(super) fn directory(&self, guest: &Path) -> Result<(), TreeError> {
        fs::create_dir_all(self.place(guest)).map_err(failed(Path::new("a directory"), guest))
    }

    pub(super) fn link(&self, target: &Path, guest: &Path) -> Result<(), TreeError> {
        symlink(target, self.place(guest)).map_err(failed(target, guest))
    }

    pub(super) fn text(&self, text: &str, guest: &Path, mode: u32) -> Result<(), TreeError> {
        let place = self.place(guest);
        let write = || {
            fs::write(&place, text)?;
            fs::set_permissions(&place, fs::Permissions::from_mode(mode))
        };
        write().map_err(failed(Path::new("a text"), guest))
    }

    /// Copies a file, following links, or a directory with all that is below it, keeping links.
    pub(super) fn copy(&self, host: &Path, guest: &Path) -> Result<(), TreeError> {
        let place = self.place(guest);
        let copy = || {
            if let Some(parent) = place.parent() {
                fs::create_dir_all(parent)?;
            }
            if host.is_dir() {
                copy_below(host, &place)
            } else {
                fs::copy(host, &place).map(drop)
            }
        };
        copy().map_err(failed(host, guest))
    }
}

fn copy_below(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in from.read_dir()? {
        let entry = entry?;
        let (kind, place) = (entry.file_type()?, to.join(entry.file_name()));
        if kind.is_dir() {
            copy_below(&entry.path(), &place)?;
        } else if kind.is_symlink() {
            symlink(fs::read_link(entry.path())?, place)?;
        } else if kind.is_file() {
            fs::copy(entry.path(), place)?;
        }
        // Sockets and pipes belong to processes that are not in the lab.
    }
    Ok(())
}

fn failed(host: &Path, guest: &Path) -> impl FnOnce(io::Error) -> TreeError {
    let (host, guest) = (host.to_owned(), guest.to_owned());
    move |source| TreeError {
        host,
        guest,
        source,
    }
}
