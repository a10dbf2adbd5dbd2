//! Which of our open files a VMM gets, and how many it may have. Called between fork and exec, so
//! nothing here allocates.
#![allow(
    unsafe_code,
    reason = "descriptors are told by number, and one call has no safe wrapper"
)]

use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, RawFd};

use rustix::fs::{CWD, Mode, OFlags, RawDir, openat};
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Open files that programs are usually allowed. Whoever starts many VMMs needs more, and they would
/// inherit it.
const USUAL_FILES: u64 = 1024;

/// The limit of open files as a program expects it; what it may raise it to stays.
pub(super) fn usual_limit() -> std::io::Result<()> {
    let limit = getrlimit(Resource::Nofile);
    if limit.current.is_none_or(|current| current > USUAL_FILES) {
        let current = Some(USUAL_FILES);
        setrlimit(Resource::Nofile, Rlimit { current, ..limit })?;
    }
    Ok(())
}

/// Marks every descriptor but the standard ones and `kept` to be closed by the exec.
///
/// Marked, not closed: the standard library still reports a failed exec through one of them. In one
/// call where the kernel has it (5.11): one call for each took 40 ms among 1,000 machines.
pub(super) fn keep_only(kept: &[RawFd]) -> std::io::Result<()> {
    if !mark_all() {
        return mark_each(kept);
    }
    for number in kept {
        // SAFETY: whoever starts the process owns it until the exec.
        let fd = unsafe { BorrowedFd::borrow_raw(*number) };
        fcntl_setfd(fd, FdFlags::empty())?;
    }
    Ok(())
}

/// Whether the kernel marked every descriptor above the standard ones. Older ones know no such call,
/// and filters of containers refuse it.
fn mark_all() -> bool {
    let flags = libc::CLOSE_RANGE_CLOEXEC;
    // SAFETY: close_range(2) takes three numbers and no pointer; with this flag it closes nothing.
    unsafe { libc::syscall(libc::SYS_close_range, 3_u32, u32::MAX, flags) == 0 }
}

fn mark_each(kept: &[RawFd]) -> std::io::Result<()> {
    let directory = openat(
        CWD,
        c"/proc/self/fd",
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    let mut buffer = [MaybeUninit::<u8>::uninit(); 2048];
    let mut entries = RawDir::new(&directory, &mut buffer);
    while let Some(entry) = entries.next() {
        let entry = entry?;
        // `.` and `..` are no numbers.
        let Some(number) = parse_fd(entry.file_name().to_bytes()) else {
            continue;
        };
        if number <= 2 {
            continue;
        }
        let flags = if kept.contains(&number) {
            FdFlags::empty()
        } else {
            FdFlags::CLOEXEC
        };
        // SAFETY: the kernel has just listed this number, and nothing else runs in this process
        // that could close it.
        let fd = unsafe { BorrowedFd::borrow_raw(number) };
        fcntl_setfd(fd, flags)?;
    }
    Ok(())
}

fn parse_fd(name: &[u8]) -> Option<RawFd> {
    std::str::from_utf8(name).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;
    use std::os::unix::process::CommandExt;
    use std::process::Command;

    use rustix::io::fcntl_dupfd_cloexec;

    use super::*;

    /// What a program finds open that is started with one file kept and another not.
    fn found_by(mark: fn(&[RawFd]) -> std::io::Result<()>) -> (String, RawFd, RawFd) {
        let file = std::fs::File::open("/dev/null").unwrap();
        // High, where the program opens none itself, and without the mark.
        let high = || {
            let copy = fcntl_dupfd_cloexec(&file, 100).unwrap();
            fcntl_setfd(&copy, FdFlags::empty()).unwrap();
            copy
        };
        let (kept, other) = (high(), high());
        let (number, not) = (kept.as_raw_fd(), other.as_raw_fd());
        let mut command = Command::new("ls");
        command.arg("/proc/self/fd");
        // SAFETY: only system calls on what exists already.
        unsafe {
            command.pre_exec(move || {
                mark(&[number])?;
                usual_limit()
            })
        };
        let output = command.output().unwrap();
        (String::from_utf8(output.stdout).unwrap(), number, not)
    }

    #[test]
    fn only_what_is_kept_is_inherited_with_and_without_the_one_call() {
        for mark in [keep_only, mark_each] {
            let (found, kept, other) = found_by(mark);
            let has = |number: RawFd| found.lines().any(|line| line == number.to_string());
            assert!(has(kept), "{kept}: {found}");
            assert!(!has(other), "{other}: {found}");
        }
    }

    #[test]
    fn who_may_open_many_starts_programs_that_may_open_the_usual_number() {
        let mut command = Command::new("sh");
        command.args(["-c", "ulimit -n"]);
        // SAFETY: only system calls.
        unsafe {
            command.pre_exec(|| {
                let limit = getrlimit(Resource::Nofile);
                setrlimit(
                    Resource::Nofile,
                    Rlimit {
                        current: limit.maximum,
                        ..limit
                    },
                )?;
                usual_limit()
            })
        };
        let told = command.output().unwrap().stdout;
        let told: u64 = String::from_utf8(told).unwrap().trim().parse().unwrap();
        assert!(told <= USUAL_FILES, "{told}");
    }
}
