//! Starting the process: what it inherits, and that this is all it inherits.
#![allow(
    unsafe_code,
    reason = "the child prepares itself between fork and exec"
)]

use std::ffi::{CString, OsString};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;

use rustix::fs::{Gid, Uid};
use rustix::io::write;
use rustix::mount::{MountPropagationFlags, mount_bind, mount_change};
use rustix::process::{
    Pid, PidfdFlags, Resource, Rlimit, Signal, WaitId, WaitIdOptions, pidfd_open,
    pidfd_send_signal, setrlimit, setsid, waitid,
};
use rustix::thread::{
    LinkNameSpaceType, UnshareFlags, move_into_link_name_space, set_no_new_privs,
    set_thread_groups, set_thread_res_gid, set_thread_res_uid, unshare_unsafe,
};

use super::descriptors::{keep_only, usual_limit};
use super::identify;
use crate::ProcessIdentity;

/// A VMM to be started: in its own session, with an empty environment, standard input from
/// `/dev/null`, and no file descriptors but those given here.
///
/// No parent-death signal is set: machines outlive the process that starts them.
#[derive(Debug)]
pub struct VmmCommand {
    program: PathBuf,
    args: Vec<OsString>,
    stdout: OwnedFd,
    stderr: OwnedFd,
    inherited: Vec<OwnedFd>,
    environment: Vec<(&'static str, String)>,
    surroundings: Surroundings,
}

/// What the process is put into before its program is executed.
#[derive(Debug, Default)]
pub(crate) struct Surroundings {
    /// Network namespace.
    pub(crate) netns: Option<OwnedFd>,
    /// Whether it becomes the first process of a PID namespace of its own.
    pub(crate) pid_namespace: bool,
    /// Control groups to join: their `cgroup.procs`, open for writing.
    pub(crate) cgroups: Vec<OwnedFd>,
    /// Files mounted upon others, in a mount namespace of its own.
    pub(crate) binds: Vec<(CString, CString)>,
    /// Whether executing never gives privileges.
    pub(crate) no_new_privs: bool,
    /// The user it becomes.
    pub(crate) user: Option<User>,
}

/// A user with a group and further groups.
#[derive(Clone, Debug)]
pub(crate) struct User {
    pub(crate) uid: Uid,
    pub(crate) gid: Gid,
    pub(crate) groups: Vec<Gid>,
}

impl VmmCommand {
    /// A command without arguments.
    #[must_use]
    pub fn new(program: PathBuf, stdout: OwnedFd, stderr: OwnedFd) -> Self {
        Self {
            program,
            args: Vec::new(),
            stdout,
            stderr,
            inherited: Vec::new(),
            environment: Vec::new(),
            surroundings: Surroundings::default(),
        }
    }

    /// Gives the child a variable; it has no others.
    pub(crate) fn env(&mut self, name: &'static str, value: String) -> &mut Self {
        self.environment.push((name, value));
        self
    }

    /// Puts the process into `surroundings`.
    pub(crate) fn surround(&mut self, surroundings: Surroundings) -> &mut Self {
        self.surroundings = surroundings;
        self
    }

    /// Adds arguments.
    pub fn args<I>(&mut self, args: I) -> &mut Self
    where
        I: IntoIterator,
        I::Item: Into<OsString>,
    {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }

    /// Lets the child have `fd`, under the number that is returned.
    pub fn inherit(&mut self, fd: OwnedFd) -> RawFd {
        let number = fd.as_raw_fd();
        self.inherited.push(fd);
        number
    }

    /// Lets the child have all of `fds`.
    pub(crate) fn inherit_all(&mut self, fds: Vec<OwnedFd>) -> Vec<RawFd> {
        fds.into_iter().map(|fd| self.inherit(fd)).collect()
    }

    /// Forks and executes. Blocks until the program runs.
    pub(crate) fn start(self) -> std::io::Result<Newborn> {
        if self.surroundings.netns.is_none() && !self.surroundings.pid_namespace {
            return self.fork();
        }
        // Both are inherited from the thread that forks, which is never the same afterwards.
        std::thread::Builder::new()
            .name("kiln-spawn".to_owned())
            .spawn(move || {
                self.surroundings.enter_as_thread()?;
                self.fork()
            })?
            .join()
            .unwrap_or_else(|_| Err(std::io::Error::other("the thread that forks panicked")))
    }

    fn fork(self) -> std::io::Result<Newborn> {
        let inherited: Vec<RawFd> = self.inherited.iter().map(AsRawFd::as_raw_fd).collect();
        let mut command = Command::new(&self.program);
        command
            .args(&self.args)
            .env_clear()
            .envs(self.environment)
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(self.stdout)
            .stderr(self.stderr);
        let surroundings = self.surroundings;
        // SAFETY: the closure runs in the forked child of a program that may have threads, so it
        // may only do what is async-signal-safe: it makes system calls on memory that exists
        // already (everything was gathered before the fork) and neither allocates nor locks.
        unsafe {
            command.pre_exec(move || {
                surroundings.join_cgroups()?;
                setsid()?;
                keep_only(&inherited)?;
                surroundings.enter_as_child()
            });
        }
        let child = command.spawn()?;
        Newborn::of(child.id())
    }
}

impl Surroundings {
    /// What a child inherits from the thread that forks it.
    fn enter_as_thread(&self) -> std::io::Result<()> {
        if let Some(netns) = &self.netns {
            move_into_link_name_space(netns.as_fd(), Some(LinkNameSpaceType::Network))?;
        }
        if self.pid_namespace {
            // SAFETY: a new PID namespace is for children only; nothing of this process changes.
            unsafe { unshare_unsafe(UnshareFlags::NEWPID) }?;
        }
        Ok(())
    }

    /// First of all, so that everything that follows is accounted for.
    fn join_cgroups(&self) -> std::io::Result<()> {
        for door in &self.cgroups {
            // `0` is whoever writes it, in any PID namespace.
            write(door, b"0")?;
        }
        Ok(())
    }

    /// Privileges are given up last: the steps before need them.
    fn enter_as_child(&self) -> std::io::Result<()> {
        // A dump would be a copy of the guest's memory.
        let none = Rlimit {
            current: Some(0),
            maximum: Some(0),
        };
        setrlimit(Resource::Core, none)?;
        usual_limit()?;
        if !self.binds.is_empty() {
            // SAFETY: this process is about to execute another program; it shares no file system
            // state with anyone.
            unsafe { unshare_unsafe(UnshareFlags::NEWNS) }?;
            let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
            mount_change(c"/", private)?;
            for (from, to) in &self.binds {
                mount_bind(from.as_c_str(), to.as_c_str())?;
            }
        }
        if self.no_new_privs {
            set_no_new_privs(true)?;
        }
        if let Some(user) = &self.user {
            set_thread_groups(&user.groups)?;
            set_thread_res_gid(user.gid, user.gid, user.gid)?;
            // Leaving root behind clears every capability but the ones nobody can use any more.
            set_thread_res_uid(user.uid, user.uid, user.uid)?;
        }
        Ok(())
    }
}

/// A process that was just started and is nobody's yet: dropped, it is killed and reaped.
#[derive(Debug)]
#[must_use]
pub(crate) struct Newborn {
    identity: ProcessIdentity,
    pidfd: Arc<OwnedFd>,
    released: bool,
}

impl Newborn {
    fn of(pid: u32) -> std::io::Result<Self> {
        let pid = i32::try_from(pid)
            .ok()
            .and_then(Pid::from_raw)
            .ok_or_else(|| std::io::Error::other("the kernel gave an impossible process number"))?;
        // Our child and not reaped yet: the number cannot be anyone else's.
        let pidfd = pidfd_open(pid, PidfdFlags::empty())?;
        match identify(pid) {
            Ok(identity) => Ok(Self {
                identity,
                pidfd: Arc::new(pidfd),
                released: false,
            }),
            Err(error) => {
                kill_and_reap(&pidfd);
                Err(std::io::Error::other(error))
            }
        }
    }

    pub(crate) fn pidfd(&self) -> &OwnedFd {
        &self.pidfd
    }

    /// Hands the process over to who watches it.
    pub(crate) fn release(mut self) -> (ProcessIdentity, Arc<OwnedFd>) {
        self.released = true;
        (self.identity.clone(), Arc::clone(&self.pidfd))
    }
}

impl Drop for Newborn {
    fn drop(&mut self) {
        if !self.released {
            kill_and_reap(&self.pidfd);
        }
    }
}

fn kill_and_reap(pidfd: &OwnedFd) {
    // Nothing can be done about a failure here: it is our own child, alive or a zombie.
    let _ = pidfd_send_signal(pidfd, Signal::KILL);
    let _ = waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED);
}
