//! Running apt's programs with a deadline and bounded output.

use std::ffi::OsString;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

/// The descriptions of a few hundred packages are a few hundred KiB.
const OUTPUT_LIMIT: u64 = 64 << 20;

/// What a program answered.
pub(crate) struct Answer {
    pub(crate) success: bool,
    /// The exit code; `None` when it was killed.
    pub(crate) code: Option<i32>,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: String,
    /// It was killed at the deadline.
    pub(crate) timed_out: bool,
}

/// Runs `program` to its end or to the deadline.
pub(crate) fn run(
    program: &Path,
    arguments: &[OsString],
    directory: &Path,
    deadline: Duration,
) -> io::Result<Answer> {
    let mut command = Command::new(program);
    command
        .args(arguments)
        .current_dir(directory)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .stdin(Stdio::null());
    run_prepared(&mut command, deadline)
}

/// Runs a command that has all but its outputs to its end or to the deadline.
pub(crate) fn run_prepared(command: &mut Command, deadline: Duration) -> io::Result<Answer> {
    let mut child = command
        .env("LC_ALL", "C.UTF-8")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let stdout = collect(child.stdout.take());
    let stderr = collect(child.stderr.take());
    let timed_out = !ended_within(&child, deadline)?;
    if timed_out {
        child.kill()?;
    }
    let status = child.wait()?;
    if timed_out {
        // Grandchildren may hold the pipes open; what they would still say is not waited for.
        return Ok(Answer {
            success: false,
            code: None,
            stdout: Vec::new(),
            stderr: String::new(),
            timed_out,
        });
    }
    Ok(Answer {
        success: status.success(),
        code: status.code(),
        stdout: joined(stdout)?,
        stderr: String::from_utf8_lossy(&joined(stderr)?).into_owned(),
        timed_out,
    })
}

/// The program of that name in `PATH`.
pub(crate) fn find_in_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    let mut candidates = std::env::split_paths(&path).map(|directory| directory.join(name));
    candidates.find(|candidate| candidate.is_file())
}

type Collector = thread::JoinHandle<io::Result<Vec<u8>>>;

fn collect(pipe: Option<impl Read + Send + 'static>) -> Collector {
    thread::spawn(move || {
        let mut output = Vec::new();
        if let Some(pipe) = pipe {
            pipe.take(OUTPUT_LIMIT).read_to_end(&mut output)?;
        }
        Ok(output)
    })
}

fn joined(collector: Collector) -> io::Result<Vec<u8>> {
    collector
        .join()
        .map_err(|_| io::Error::other("the reader of a program's output died"))?
}

fn ended_within(child: &Child, deadline: Duration) -> io::Result<bool> {
    let process = pidfd_open(Pid::from_child(child), PidfdFlags::empty())?;
    let end = Instant::now() + deadline;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let timeout = Timespec::try_from(left).map_err(io::Error::other)?;
        match poll(
            &mut [PollFd::from_borrowed_fd(process.as_fd(), PollFlags::IN)],
            Some(&timeout),
        ) {
            Ok(0) => return Ok(false),
            Ok(_) => return Ok(true),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, deadline: Duration) -> Answer {
        let arguments = ["-c".into(), script.into()];
        run(Path::new("/bin/sh"), &arguments, Path::new("/"), deadline).unwrap()
    }

    #[test]
    fn output_and_failure_come_back() {
        let answer = shell("echo out; echo err >&2; exit 3", Duration::from_secs(20));
        assert!(!answer.success && !answer.timed_out);
        assert_eq!(answer.stdout, b"out\n");
        assert_eq!(answer.stderr, "err\n");
    }

    #[test]
    fn a_program_that_hangs_is_killed_at_the_deadline() {
        let begin = Instant::now();
        let answer = shell("sleep 60", Duration::from_millis(100));
        assert!(answer.timed_out);
        assert!(begin.elapsed() < Duration::from_secs(30));
    }
}
