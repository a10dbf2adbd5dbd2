//! Starting a process: who and where it becomes between its birth ([`clone`]) and its program.
#![allow(
    unsafe_code,
    reason = "std's process starts in our control group and has to be moved, which is slow; \
              between clone and exec is everybody's own"
)]

use std::convert::Infallible;
use std::ffi::{CString, c_char};
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::process::{Gid, Pid, Uid};

use super::clone;

/// What is to be executed, by whom and where.
#[derive(Debug)]
pub(crate) struct Launch {
    pub(crate) program: CString,
    pub(crate) argv: Vec<CString>,
    /// `NAME=value` each.
    pub(crate) env: Vec<CString>,
    pub(crate) cwd: CString,
    /// Becomes standard input, output and error.
    pub(crate) stdio: [OwnedFd; 3],
    /// Standard input becomes its controlling terminal.
    pub(crate) terminal: bool,
    /// Directory of the control group that it is in.
    pub(crate) cgroup: Option<OwnedFd>,
    /// It is killed when its parent ends.
    pub(crate) tied: bool,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) groups: Vec<u32>,
}

/// Why there is no process.
#[derive(Debug)]
pub(crate) enum LaunchError {
    /// None could be made, or it could not become what it was to be.
    Setup(io::Error),
    /// It could not enter its directory.
    Directory,
    /// It could not execute its program.
    Program(io::Error),
}

/// Starts the process; it is the caller's to wait for. Gives back our copies of its input and
/// outputs.
pub(crate) fn spawn(launch: Launch) -> Result<(Pid, [OwnedFd; 3]), LaunchError> {
    let launch = Prepared::of(launch).map_err(LaunchError::Setup)?;
    let pid = clone::on_stage(|stage| stage.spawn(&launch))?;
    Ok((pid, launch.launch.stdio))
}

/// Everything that the child needs, in the form in which the kernel takes it: the child itself
/// must not allocate.
pub(super) struct Prepared {
    pub(super) launch: Launch,
    argv: Vec<*const c_char>,
    env: Vec<*const c_char>,
    groups: Vec<Gid>,
    /// The kernel lets nobody but root change who a process is; a test that runs as somebody
    /// stays who it is.
    may_change_user: bool,
    /// What it inherits from us is not what it is to have. To set them is slow.
    changes_groups: bool,
}

impl Prepared {
    pub(super) fn of(mut launch: Launch) -> io::Result<Self> {
        for fd in &mut launch.stdio {
            // Below, one of the three could be overwritten before it has been copied.
            if fd.as_raw_fd() < 3 {
                *fd = rustix::io::fcntl_dupfd_cloexec(&*fd, 3)?;
            }
        }
        let groups: Vec<Gid> = launch.groups.iter().map(|&n| Gid::from_raw(n)).collect();
        Ok(Self {
            argv: pointers(&launch.argv),
            env: pointers(&launch.env),
            changes_groups: rustix::process::getgroups()? != groups,
            groups,
            may_change_user: rustix::process::geteuid().is_root(),
            launch,
        })
    }

    /// As another user, the child would have the agent's memory and be in reach of that user.
    pub(super) fn may_borrow_memory(&self) -> bool {
        !(self.may_change_user && self.launch.uid != 0)
    }
}

/// Ends with a null, as `execve` wants it. The strings stay where they are when their vector
/// moves.
fn pointers(strings: &[CString]) -> Vec<*const c_char> {
    let strings = strings.iter().map(|string| string.as_ptr());
    strings.chain([std::ptr::null()]).collect()
}

/// What the child works with.
pub(super) struct Script<'a> {
    pub(super) launch: &'a Prepared,
    pub(super) report: &'a AtomicU32,
    /// It was not born in its group.
    pub(super) joins: bool,
}

/// Which step failed, in a number that fits the report with its error.
#[derive(Clone, Copy)]
enum Step {
    Setup = 1,
    Directory = 2,
    Program = 3,
}

/// What the child could not do.
pub(super) struct Failure {
    step: Step,
    error: Errno,
}

impl Failure {
    fn setup(error: Errno) -> Self {
        Self {
            step: Step::Setup,
            error,
        }
    }

    fn to_report(&self) -> u32 {
        (self.step as u32) << 16 | (self.error.raw_os_error() as u32 & 0xffff)
    }

    pub(super) fn reported(report: u32) -> Option<Self> {
        let step = match report >> 16 {
            0 => return None,
            2 => Step::Directory,
            3 => Step::Program,
            _ => Step::Setup,
        };
        let error = Errno::from_raw_os_error((report & 0xffff) as i32);
        Some(Self { step, error })
    }
}

impl From<Failure> for LaunchError {
    fn from(failure: Failure) -> Self {
        match failure.step {
            Step::Setup => Self::Setup(failure.error.into()),
            Step::Directory => Self::Directory,
            Step::Program => Self::Program(failure.error.into()),
        }
    }
}

/// The child, which may have the agent's memory: it makes system calls only, and allocates
/// nothing.
pub(super) extern "C" fn child(script: &Script) -> ! {
    let Err(failure) = perform(script);
    script.report.store(failure.to_report(), Ordering::Relaxed);
    // SAFETY: ends this process, without anything that the agent has arranged for its own end.
    unsafe { libc::_exit(127) }
}

fn perform(script: &Script) -> Result<Infallible, Failure> {
    let launch = &script.launch.launch;
    set_up(script).map_err(Failure::setup)?;
    // After the user, as whom it has to be allowed.
    rustix::process::chdir(&launch.cwd).map_err(|error| Failure {
        step: Step::Directory,
        error,
    })?;
    reset_signals();
    // SAFETY: strings and vectors of them, each with its null at the end, which the script
    // borrows.
    unsafe {
        libc::execve(
            launch.program.as_ptr(),
            script.launch.argv.as_ptr(),
            script.launch.env.as_ptr(),
        );
    }
    let error = io::Error::last_os_error().raw_os_error().unwrap_or(0);
    Err(Failure {
        step: Step::Program,
        error: Errno::from_raw_os_error(error),
    })
}

fn set_up(script: &Script) -> Result<(), Errno> {
    let launch = &script.launch.launch;
    let [stdin, stdout, stderr] = &launch.stdio;
    rustix::stdio::dup2_stdin(stdin)?;
    rustix::stdio::dup2_stdout(stdout)?;
    rustix::stdio::dup2_stderr(stderr)?;
    // A session and process group of its own: signals to the group reach it and not us.
    rustix::process::setsid()?;
    if launch.terminal {
        rustix::process::ioctl_tiocsctty(stdin)?;
    }
    if let (Some(group), true) = (&launch.cgroup, script.joins) {
        join(group)?;
    }
    if script.launch.may_change_user {
        if script.launch.changes_groups {
            rustix::thread::set_thread_groups(&script.launch.groups)?;
        }
        let gid = Gid::from_raw(launch.gid);
        rustix::thread::set_thread_res_gid(gid, gid, gid)?;
        let uid = Uid::from_raw(launch.uid);
        rustix::thread::set_thread_res_uid(uid, uid, uid)?;
    }
    if launch.tied {
        // After the user: a change of that unties it.
        rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
    }
    rustix::process::umask(Mode::from_raw_mode(0o022));
    Ok(())
}

fn join(group: &OwnedFd) -> Result<(), Errno> {
    let flags = OFlags::WRONLY | OFlags::CLOEXEC;
    let procs = rustix::fs::openat(group.as_fd(), c"cgroup.procs", flags, Mode::empty())?;
    rustix::io::write(&procs, b"0")?;
    Ok(())
}

/// Rust ignores SIGPIPE, and ignored signals stay ignored; nothing stays blocked.
fn reset_signals() {
    // SAFETY: all zeroes is the default action with an empty mask, and an empty set of signals.
    unsafe {
        let default: libc::sigaction = std::mem::zeroed();
        libc::sigaction(libc::SIGPIPE, &raw const default, std::ptr::null_mut());
        let none: libc::sigset_t = std::mem::zeroed();
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Read as _;

    use super::*;

    fn shell(script: &str) -> (Launch, File) {
        let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
        let text = |text: &str| CString::new(text).unwrap();
        let launch = Launch {
            program: text("/bin/sh"),
            argv: ["sh", "-c", script].map(text).into(),
            env: vec![text("A=1")],
            cwd: text("/"),
            stdio: [
                File::open("/dev/null").unwrap().into(),
                write.try_clone().unwrap(),
                write,
            ],
            terminal: false,
            cgroup: None,
            tied: false,
            uid: rustix::process::getuid().as_raw(),
            gid: rustix::process::getgid().as_raw(),
            groups: Vec::new(),
        };
        (launch, read.into())
    }

    type Way = fn(&clone::Stage, &Prepared) -> Result<Pid, LaunchError>;

    /// As on a new kernel, and as on an old one.
    const WAYS: [Way; 2] = [clone::Stage::spawn, clone::Stage::spawn_by_fork];

    fn run(way: Way, launch: Launch, mut output: File) -> Result<String, LaunchError> {
        let prepared = Prepared::of(launch).unwrap();
        let pid = clone::on_stage(|stage| way(stage, &prepared))?;
        drop(prepared);
        let mut said = String::new();
        output.read_to_string(&mut said).unwrap();
        rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::empty()).unwrap();
        Ok(said)
    }

    #[test]
    fn a_child_has_what_it_was_given_and_nothing_of_ours() {
        for way in WAYS {
            let script = "echo $A $(umask) $PWD; grep SigBlk /proc/self/status; \
                kill -PIPE $$; echo SIGPIPE is ignored";
            let (launch, output) = shell(script);
            let said = run(way, launch, output).unwrap();
            let wanted = "1 0022 /\nSigBlk:\t0000000000000000\n";
            assert_eq!(said, wanted);
        }
    }

    #[test]
    fn what_fails_is_told() {
        for way in WAYS {
            let (mut launch, output) = shell("");
            launch.program = c"/nonexistent".into();
            let error = run(way, launch, output).unwrap_err();
            assert!(
                matches!(&error, LaunchError::Program(e) if e.kind() == io::ErrorKind::NotFound),
                "{error:?}"
            );
            let (mut launch, output) = shell("");
            launch.cwd = c"/nonexistent".into();
            let error = run(way, launch, output).unwrap_err();
            assert!(matches!(error, LaunchError::Directory), "{error:?}");
        }
    }

    #[test]
    fn another_user_never_has_our_memory() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("SKIPPED: another_user_never_has_our_memory: only root changes users");
            return;
        }
        for way in WAYS {
            let (mut launch, output) = shell("id -u; id -g; id -G");
            (launch.uid, launch.gid, launch.groups) = (4242, 4243, vec![4244]);
            assert!(!Prepared::of(shell_as(4242)).unwrap().may_borrow_memory());
            let said = run(way, launch, output).unwrap();
            assert_eq!(said, "4242\n4243\n4243 4244\n");
        }
        assert!(Prepared::of(shell_as(0)).unwrap().may_borrow_memory());
    }

    fn shell_as(uid: u32) -> Launch {
        Launch { uid, ..shell("").0 }
    }
}
