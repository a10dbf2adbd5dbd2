//! Serving a restored guest's memory page by page, from a process of its own.
//!
//! Firecracker hands over a userfaultfd and blocks, with its guest, on every page that nobody has
//! served yet: who serves must outlive the daemon, and when it dies the VMM has to die too
//! instead of hanging for ever. So there are two processes, each watching the other: a
//! *supervisor*, and the *server* that it starts. Whichever is left alone kills the VMM, by the
//! descriptor that it inherited, never by number. Both end with the VMM.
//!
//! A program becomes a handler by calling [`serve`]; the engine starts it with everything it needs
//! as inherited descriptors, named in [`VARIABLE`].

mod pages;
mod protocol;
mod server;
mod sys;

use std::collections::HashMap;
use std::io::Error;
use std::os::fd::{OwnedFd, RawFd};
use std::process::{Command, Stdio};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

pub use protocol::{Region, RegionError, parse_regions};

/// The command of the program `kiln` that [serves](serve).
pub const COMMAND: &str = "serve-pages";

/// Names the descriptors that a handler inherits: `listener=5,memory=6,vmm=7`.
pub const VARIABLE: &str = "KILN_UFFD";

/// Why a handler cannot serve.
#[derive(Debug, thiserror::Error)]
pub enum UffdError {
    /// It was not started by an engine.
    #[error("{VARIABLE} does not name what a handler inherits")]
    Environment,
    /// The other process cannot be started.
    #[error("cannot start the server")]
    Start(#[source] Error),
    /// What Firecracker says is not what it should.
    #[error("Firecracker's message is not understood")]
    Message(#[from] RegionError),
    /// A system call failed.
    #[error("cannot {0}")]
    System(&'static str, #[source] Error),
}

/// Serves until the VMM is gone. Blocks. Call it first thing in a process that does nothing else.
///
/// # Errors
/// As [`UffdError`] says; the VMM has been killed then.
pub fn serve() -> Result<(), UffdError> {
    let mut inherited = Inherited::from_environment()?;
    if inherited.names.contains_key("life") {
        server::run(&mut inherited)
    } else {
        supervise(&mut inherited)
    }
}

/// Starts the server and waits for it or for the VMM; a server that goes first takes the VMM
/// with it.
fn supervise(inherited: &mut Inherited) -> Result<(), UffdError> {
    let vmm = inherited.take("vmm")?;
    let outcome = supervised(inherited, &vmm);
    if outcome.is_err() {
        kill(&vmm);
    }
    outcome
}

fn supervised(inherited: &mut Inherited, vmm: &OwnedFd) -> Result<(), UffdError> {
    // This end lives as long as this process: the other end tells the server of its death.
    let (watched, _held) = std::io::pipe().map_err(UffdError::Start)?;
    let watched = OwnedFd::from(watched);
    let mut command = Command::new("/proc/self/exe");
    command
        .args(std::env::args_os().skip(1))
        .env(VARIABLE, inherited.with("life", &watched, vmm)?)
        .stdin(Stdio::null());
    let mut server = command.spawn().map_err(UffdError::Start)?;
    inherited.close();
    drop(watched);
    let server_fd = pidfd_open(Pid::from_child(&server), PidfdFlags::empty())
        .map_err(|errno| UffdError::Start(errno.into()))?;
    let mut fds = [
        PollFd::new(&server_fd, PollFlags::IN),
        PollFd::new(vmm, PollFlags::IN),
    ];
    loop {
        match poll(&mut fds, None) {
            Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(UffdError::System("wait", errno.into())),
            Ok(_) => break,
        }
    }
    // Either way both go: without the VMM there is nothing to serve.
    kill(vmm);
    let _ = server.kill();
    let _ = server.wait();
    Ok(())
}

fn kill(vmm: &OwnedFd) {
    // It may be gone already.
    let _ = pidfd_send_signal(vmm, Signal::KILL);
}

/// Descriptors that this process was started with.
#[derive(Debug)]
struct Inherited {
    names: HashMap<String, RawFd>,
}

impl Inherited {
    fn from_environment() -> Result<Self, UffdError> {
        let text = std::env::var(VARIABLE).map_err(|_| UffdError::Environment)?;
        Ok(Self {
            names: parse_names(&text).ok_or(UffdError::Environment)?,
        })
    }

    fn take(&mut self, name: &str) -> Result<OwnedFd, UffdError> {
        let number = self.names.get(name).copied();
        let number = number.ok_or(UffdError::Environment)?;
        sys::adopt(number).map_err(|error| UffdError::System("use a descriptor", error))
    }

    /// The variable for the server, which also gets `fd` and what was taken out already.
    fn with(&self, name: &str, fd: &OwnedFd, vmm: &OwnedFd) -> Result<String, UffdError> {
        use std::os::fd::AsRawFd;
        for kept in [fd, vmm] {
            rustix::io::fcntl_setfd(kept, rustix::io::FdFlags::empty())
                .map_err(|errno| UffdError::Start(errno.into()))?;
        }
        let mut words: Vec<String> = self
            .names
            .iter()
            .filter(|(name, _)| *name != "vmm")
            .map(|(name, number)| format!("{name}={number}"))
            .collect();
        words.push(format!("vmm={}", vmm.as_raw_fd()));
        words.push(format!("{name}={}", fd.as_raw_fd()));
        Ok(words.join(","))
    }

    /// Closes what the server has now.
    fn close(&mut self) {
        for (name, number) in self.names.drain() {
            if name != "vmm"
                && let Ok(fd) = sys::adopt(number)
            {
                drop(fd);
            }
        }
    }
}

fn parse_names(text: &str) -> Option<HashMap<String, RawFd>> {
    let names: Option<HashMap<String, RawFd>> = text
        .split(',')
        .map(|word| {
            let (name, number) = word.split_once('=')?;
            let number: RawFd = number.parse().ok().filter(|number| *number > 2)?;
            Some((name.to_owned(), number))
        })
        .collect();
    names.filter(|names| {
        ["listener", "memory", "vmm"]
            .iter()
            .all(|name| names.contains_key(*name))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_variable_names_what_is_inherited() {
        let names = parse_names("listener=5,memory=6,vmm=7").unwrap();
        assert_eq!(names["memory"], 6);
        for wrong in [
            "",
            "listener=5,memory=6",
            "listener=1,memory=6,vmm=7",
            "listener=x,memory=6,vmm=7",
        ] {
            assert!(parse_names(wrong).is_none(), "{wrong}");
        }
    }
}
