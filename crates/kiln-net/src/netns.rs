//! Network namespaces held by a file descriptor: nothing is pinned in the file system, so one
//! disappears by itself when its last holder does.
//!
//! A thread that switched namespaces must not be used for anything else, so every switch happens
//! on a thread of its own that ends afterwards.
#![allow(
    unsafe_code,
    reason = "unshare(2) is unsafe in rustix because of CLONE_FILES"
)]

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::thread;

use rustix::fs::{Mode, OFlags};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe};

/// Enough for netlink buffers, which live on the heap.
const STACK_LEN: usize = 256 << 10;

/// Why something could not be done in a namespace.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NamespaceError {
    /// The namespace could not be created.
    #[error("cannot create a network namespace")]
    Create(#[source] io::Error),
    /// The namespace could not be opened.
    #[error("cannot open a network namespace at {path}")]
    Open {
        /// Where it was looked for.
        path: String,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The namespace could not be entered.
    #[error("cannot enter a network namespace")]
    Enter(#[source] io::Error),
    /// No thread could be started to do the work, or it died.
    #[error("cannot run a thread in a network namespace")]
    Thread(#[source] io::Error),
}

/// A network namespace, alive as long as this value, a process or a socket in it.
#[derive(Debug)]
pub struct NetNamespace {
    fd: OwnedFd,
}

impl NetNamespace {
    /// Create a namespace and do the first work in it, on one thread.
    ///
    /// # Errors
    /// [`NamespaceError`] without the privilege, or when no thread can start.
    pub fn create<T: Send>(work: impl FnOnce() -> T + Send) -> Result<(Self, T), NamespaceError> {
        on_thread(move || {
            // SAFETY: CLONE_NEWNET does not touch the descriptor table, which is what makes
            // unshare(2) dangerous to a program that shares it; only this short-lived thread moves.
            unsafe { unshare_unsafe(UnshareFlags::NEWNET) }
                .map_err(|errno| NamespaceError::Create(errno.into()))?;
            let namespace = Self::current()?;
            Ok((namespace, work()))
        })
    }

    /// The calling thread's namespace.
    ///
    /// # Errors
    /// [`NamespaceError::Open`] without `/proc`.
    pub fn current() -> Result<Self, NamespaceError> {
        // Not /proc/self, which is the main thread's.
        Self::open("/proc/thread-self/ns/net")
    }

    /// The namespace of a running process, to adopt its network after a restart. The caller makes
    /// sure, by a pidfd, that the number still means that process.
    ///
    /// # Errors
    /// [`NamespaceError::Open`] when there is no such process.
    pub fn of_process(pid: u32) -> Result<Self, NamespaceError> {
        Self::open(&format!("/proc/{pid}/ns/net"))
    }

    fn open(path: &str) -> Result<Self, NamespaceError> {
        let fd = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).map_err(
            |errno| NamespaceError::Open {
                path: path.to_owned(),
                source: errno.into(),
            },
        )?;
        Ok(Self { fd })
    }

    /// Move the calling thread into the namespace. For `pre_exec`: async-signal-safe, allocates
    /// nothing. (`Command::uid` is applied before such closures, and a process without privileges
    /// cannot enter: change the user after this.)
    ///
    /// # Errors
    /// What `setns(2)` says.
    pub fn enter(&self) -> io::Result<()> {
        Ok(move_into_link_name_space(
            self.fd.as_fd(),
            Some(LinkNameSpaceType::Network),
        )?)
    }

    /// Where another program of this machine finds it, while this process lives and holds it: for
    /// `jailer --netns`.
    pub fn path(&self) -> std::path::PathBuf {
        let fd = std::os::fd::AsRawFd::as_raw_fd(&self.fd);
        format!("/proc/{}/fd/{fd}", std::process::id()).into()
    }

    /// Do some work inside, on a thread of its own.
    ///
    /// # Errors
    /// [`NamespaceError`] when the thread cannot start or cannot enter.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, NamespaceError> {
        on_thread(|| {
            self.enter().map_err(NamespaceError::Enter)?;
            Ok(work())
        })
    }

    /// Another handle of the same namespace, for a child process to hold.
    ///
    /// # Errors
    /// When no descriptor is left.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self {
            fd: self.fd.try_clone()?,
        })
    }
}

impl AsFd for NetNamespace {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl From<OwnedFd> for NetNamespace {
    fn from(fd: OwnedFd) -> Self {
        Self { fd }
    }
}

impl From<NetNamespace> for OwnedFd {
    fn from(namespace: NetNamespace) -> Self {
        namespace.fd
    }
}

fn on_thread<T: Send>(
    work: impl FnOnce() -> Result<T, NamespaceError> + Send,
) -> Result<T, NamespaceError> {
    thread::scope(|scope| {
        thread::Builder::new()
            .name("kiln-netns".to_owned())
            .stack_size(STACK_LEN)
            .spawn_scoped(scope, work)
            .map_err(NamespaceError::Thread)?
            .join()
            .unwrap_or_else(|_| Err(NamespaceError::Thread(io::Error::other("it panicked"))))
    })
}
