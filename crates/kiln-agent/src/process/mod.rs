//! Starting one command: its user, environment, directory, terminal or pipes, and control group.
//!
//! Owns everything up to a running process. What becomes of it is for [`crate::session`].

mod environment;
mod program;
mod user;

use std::cell::OnceCell;
use std::ffi::{CString, NulError, OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use kiln_agent_proto::message::{ErrorCode, Exec, WindowSize};
use rustix::process::Pid;
use rustix::pty::OpenptFlags;

pub(crate) use self::user::Users;
use crate::cgroup::Cgroup;
use crate::sys::child::{self, Launch, LaunchError};

/// A command that cannot be started.
#[derive(Debug)]
pub(crate) struct SpawnError {
    pub(crate) code: ErrorCode,
    pub(crate) message: String,
}

fn refuse<T>(code: ErrorCode, message: impl Into<String>) -> Result<T, SpawnError> {
    Err(SpawnError {
        code,
        message: message.into(),
    })
}

/// A command that runs, and our ends of its input and output.
#[derive(Debug)]
pub(crate) struct Spawned {
    pub(crate) pid: Pid,
    pub(crate) io: SpawnedIo,
}

/// Our ends.
#[derive(Debug)]
pub(crate) enum SpawnedIo {
    /// The terminal's.
    Terminal(OwnedFd),
    /// The pipes'.
    Pipes {
        stdin: Option<OwnedFd>,
        stdout: Outlet,
        stderr: Outlet,
    },
}

/// A pipe that a command writes to.
#[derive(Debug)]
pub(crate) struct Outlet {
    /// Where it is read.
    pub(crate) read: OwnedFd,
    /// As long as it is kept, the pipe does not end when the command lets go of it: each end would
    /// be a wake-up while the command is still on its way out.
    pub(crate) write: OwnedFd,
}

/// Who that is, by the guest's own lists of users; root for an empty text.
pub(crate) fn resolve_user(user: &str) -> Result<user::User, String> {
    Users::of(Path::new("/etc"))
        .resolve(user)
        .map_err(|error| error.to_string())
}

/// Starts `exec`. The caller's reaper gets its exit; nobody else waits for it. One that is `tied`
/// is killed when we end.
pub(crate) fn spawn(
    exec: &Exec,
    users: &Users,
    cgroup: Option<&Cgroup>,
    tied: bool,
) -> Result<Spawned, SpawnError> {
    let plan = plan(exec, users)?;
    let (stdio, ends) = match exec.tty {
        Some(size) => terminal(size),
        None => pipes(exec.stdin),
    }
    .or_else(|error| refuse(ErrorCode::Internal, format!("no pipe or terminal: {error}")))?;
    let cgroup = cgroup.map(Cgroup::directory).transpose();
    let cgroup = cgroup.or_else(|error| refuse(ErrorCode::Internal, error.to_string()))?;
    let launch = plan.launch(exec.tty.is_some(), stdio, cgroup, tied);
    let launch = launch.or_else(|_| refuse(ErrorCode::BadRequest, "a NUL byte inside a text"))?;
    match child::spawn(launch) {
        Ok((pid, theirs)) => Ok(Spawned {
            pid,
            io: ends.with(theirs),
        }),
        Err(error) => plan.refused(&error),
    }
}

/// Everything that is settled before anything is made.
struct Plan {
    program: PathBuf,
    argv: Vec<Vec<u8>>,
    env: environment::Environment,
    cwd: PathBuf,
    user: user::User,
}

fn plan(exec: &Exec, users: &Users) -> Result<Plan, SpawnError> {
    let Some(name) = exec.argv.first() else {
        return refuse(ErrorCode::BadRequest, "no program given");
    };
    if exec.argv.iter().any(|arg| arg.contains(&0)) || exec.cwd.contains(&0) {
        return refuse(ErrorCode::BadRequest, "an argument contains a NUL byte");
    }
    let user = users
        .resolve(&exec.user)
        .or_else(|error| refuse(ErrorCode::NoSuchUser, error.to_string()))?;
    let env = environment::build(&user, exec.tty.is_some(), &exec.env).or_else(|name| {
        let text = format!("{name:?} cannot be an environment variable");
        refuse(ErrorCode::BadRequest, text)
    })?;
    let cwd = working_directory(&exec.cwd, exec.make_cwd, &user)?;
    let path = env.iter().find(|(name, _)| name == "PATH");
    let path = path.map_or(OsStr::new(""), |(_, value)| value);
    let program = program::find(OsStr::from_bytes(name), path, &cwd).or_else(|error| {
        let name = String::from_utf8_lossy(name);
        match error {
            program::ProgramError::NotFound => refuse(
                ErrorCode::NotFound,
                format!("{name}: not found in the guest"),
            ),
            program::ProgramError::NotExecutable => {
                refuse(ErrorCode::NotExecutable, format!("{name}: not executable"))
            }
        }
    })?;
    Ok(Plan {
        program,
        argv: exec.argv.clone(),
        env,
        cwd,
        user,
    })
}

/// A home that does not exist is no reason to refuse; a directory that was asked for is, unless it
/// is to be made: then it is root's, as the image's other directories are.
fn working_directory(wanted: &[u8], make: bool, user: &user::User) -> Result<PathBuf, SpawnError> {
    if wanted.is_empty() {
        let home = user.home.clone();
        return Ok(if home.is_dir() {
            home
        } else {
            PathBuf::from("/")
        });
    }
    let cwd = Path::new("/").join(OsStr::from_bytes(wanted));
    if make {
        // What stands in the way is told below.
        let _ = std::fs::create_dir_all(&cwd);
    }
    match std::fs::metadata(&cwd) {
        Ok(meta) if meta.is_dir() => Ok(cwd),
        Ok(_) => refuse(
            ErrorCode::BadCwd,
            format!("{}: not a directory", cwd.display()),
        ),
        Err(error) => refuse(ErrorCode::BadCwd, format!("{}: {error}", cwd.display())),
    }
}

impl Plan {
    /// In the kernel's words.
    fn launch(
        &self,
        terminal: bool,
        stdio: [OwnedFd; 3],
        cgroup: Option<OwnedFd>,
        tied: bool,
    ) -> Result<Launch, NulError> {
        let variable = |(name, value): &(OsString, OsString)| {
            CString::new([name.as_bytes(), b"=", value.as_bytes()].concat())
        };
        Ok(Launch {
            program: CString::new(self.program.as_os_str().as_bytes())?,
            argv: each(&self.argv, |arg| CString::new(arg.as_slice()))?,
            env: each(&self.env, variable)?,
            cwd: CString::new(self.cwd.as_os_str().as_bytes())?,
            stdio,
            terminal,
            cgroup,
            tied,
            uid: self.user.uid,
            gid: self.user.gid,
            groups: self.user.groups.clone(),
        })
    }

    /// Why the kernel did not execute it.
    fn refused<T>(&self, error: &LaunchError) -> Result<T, SpawnError> {
        let program = self.program.display();
        match error {
            LaunchError::Directory => refuse(
                ErrorCode::BadCwd,
                format!(
                    "{}: cannot enter it as {}",
                    self.cwd.display(),
                    self.user.name
                ),
            ),
            LaunchError::Setup(error) => refuse(ErrorCode::Internal, format!("{program}: {error}")),
            LaunchError::Program(error) => match error.kind() {
                // It was there a moment ago: its interpreter is missing.
                io::ErrorKind::NotFound => refuse(
                    ErrorCode::NotExecutable,
                    format!("{program}: its interpreter is missing"),
                ),
                io::ErrorKind::OutOfMemory | io::ErrorKind::WouldBlock => {
                    refuse(ErrorCode::Internal, format!("{program}: {error}"))
                }
                _ => refuse(ErrorCode::NotExecutable, format!("{program}: {error}")),
            },
        }
    }
}

fn each<T>(
    texts: &[T],
    in_c: impl Fn(&T) -> Result<CString, NulError>,
) -> Result<Vec<CString>, NulError> {
    texts.iter().map(in_c).collect()
}

/// Our ends, before the command has its own.
enum Ends {
    Terminal(OwnedFd),
    Pipes {
        stdin: Option<OwnedFd>,
        stdout: OwnedFd,
        stderr: OwnedFd,
    },
}

impl Ends {
    /// With our copies of the command's ends. A terminal is hung up only when none is left.
    fn with(self, theirs: [OwnedFd; 3]) -> SpawnedIo {
        match self {
            Self::Terminal(master) => SpawnedIo::Terminal(master),
            Self::Pipes {
                stdin,
                stdout,
                stderr,
            } => {
                let [_, out, err] = theirs;
                let outlet = |read, write| Outlet { read, write };
                SpawnedIo::Pipes {
                    stdin,
                    stdout: outlet(stdout, out),
                    stderr: outlet(stderr, err),
                }
            }
        }
    }
}

fn terminal(size: WindowSize) -> io::Result<([OwnedFd; 3], Ends)> {
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let master = rustix::pty::openpt(flags)?;
    rustix::pty::grantpt(&master)?;
    rustix::pty::unlockpt(&master)?;
    let slave = rustix::pty::ioctl_tiocgptpeer(&master, flags)?;
    resize(&master, size)?;
    let stdio = [slave.try_clone()?, slave.try_clone()?, slave];
    Ok((stdio, Ends::Terminal(master)))
}

/// Gives a terminal another size; its foreground process group gets SIGWINCH.
pub(crate) fn resize(terminal: impl std::os::fd::AsFd, size: WindowSize) -> io::Result<()> {
    let clamp = |n: u32| u16::try_from(n).unwrap_or(u16::MAX);
    let size = rustix::termios::Winsize {
        ws_row: clamp(size.rows),
        ws_col: clamp(size.cols),
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    Ok(rustix::termios::tcsetwinsize(terminal, size)?)
}

fn pipes(stdin: bool) -> io::Result<([OwnedFd; 3], Ends)> {
    let (theirs_in, ours_in) = if stdin {
        let (read, write) = pipe()?;
        (read, Some(write))
    } else {
        (nothing()?, None)
    };
    let (stdout, theirs_out) = pipe()?;
    let (stderr, theirs_err) = pipe()?;
    let ours = Ends::Pipes {
        stdin: ours_in,
        stdout,
        stderr,
    };
    Ok(([theirs_in, theirs_out, theirs_err], ours))
}

/// An input that is at its end. Opened once: a copy costs a tenth of an open.
fn nothing() -> io::Result<OwnedFd> {
    thread_local! {
        static NULL: OnceCell<OwnedFd> = const { OnceCell::new() };
    }
    NULL.with(|null| {
        if let Some(null) = null.get() {
            return null.try_clone();
        }
        let opened = File::open("/dev/null")?;
        null.get_or_init(|| opened.into()).try_clone()
    })
}

fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?)
}
