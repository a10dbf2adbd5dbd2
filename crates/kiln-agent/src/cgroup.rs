//! One control group per session, so that ending a session ends all of its processes, also
//! those that left its process group.
//!
//! Where there are none (a kernel without cgroup2), the agent falls back to sessions and process
//! groups; see [`crate::session::Session::kill`].

use std::cell::RefCell;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};

/// Where the groups of the sessions are made.
#[derive(Clone, Debug)]
pub(crate) struct Cgroups(PathBuf);

impl Cgroups {
    /// Uses `parent`, if it is a cgroup2 directory.
    pub(crate) fn open(parent: &Path) -> Option<Self> {
        let is_cgroup = parent.join("cgroup.procs").exists();
        is_cgroup.then(|| Self(parent.to_owned()))
    }

    /// The group that they are in.
    pub(crate) fn directory(&self) -> &Path {
        &self.0
    }

    /// Makes the group of one session.
    pub(crate) fn create(&self, session: u64) -> io::Result<Cgroup> {
        self.make(&format!("kiln-session-{session}"))
    }

    /// Makes the group of one session that is held to limits: another one than that which may have
    /// been made ahead for a session of this number.
    pub(crate) fn create_limited(&self, session: u64) -> io::Result<Cgroup> {
        self.make(&format!("kiln-limited-{session}"))
    }

    fn make(&self, name: &str) -> io::Result<Cgroup> {
        let path = self.0.join(name);
        match fs::create_dir(&path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
            _ => Ok(Cgroup {
                directory: RefCell::new(Some(open(&path)?)),
                path,
            }),
        }
    }
}

/// The group of one session.
#[derive(Debug)]
pub(crate) struct Cgroup {
    path: PathBuf,
    /// Opened ahead, for the first who is born in it.
    directory: RefCell<Option<OwnedFd>>,
}

fn open(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, Mode::empty())?)
}

impl Cgroup {
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Its directory, for a process to be born in it.
    pub(crate) fn directory(&self) -> io::Result<OwnedFd> {
        match self.directory.take() {
            Some(directory) => Ok(directory),
            None => open(&self.path),
        }
    }

    /// Kills everything in it.
    pub(crate) fn kill(&self) -> io::Result<()> {
        let mut file = fs::OpenOptions::new()
            .write(true)
            .open(self.path.join("cgroup.kill"))?;
        io::Write::write_all(&mut file, b"1")
    }

    /// Removes it; `false` while something runs in it.
    pub(crate) fn remove(&self) -> bool {
        match fs::remove_dir(&self.path) {
            Err(error) => error.kind() == io::ErrorKind::NotFound,
            Ok(()) => true,
        }
    }
}
