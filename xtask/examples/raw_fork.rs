//! Runs inside a guest of `cargo xtask bench boot`: what a command costs there without Kiln.
//!
//! `raw_fork COUNT PAUSE_MS PROGRAM` forks, executes PROGRAM and waits for its end so many times,
//! each after a pause, and prints the microseconds that each took, one per line.
#![allow(
    unsafe_code,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a fork is what it is about, and the output is its result"
)]

use std::ffi::{CStr, CString};
use std::io;
use std::process::ExitCode;
use std::time::{Duration, Instant};

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [count, pause_ms, program] = words.as_slice() else {
        eprintln!("usage: raw_fork COUNT PAUSE_MS PROGRAM");
        return ExitCode::from(2);
    };
    let (Ok(count), Ok(pause_ms), Ok(program)) = (
        count.parse::<u32>(),
        pause_ms.parse(),
        CString::new(program.as_str()),
    ) else {
        eprintln!("COUNT and PAUSE_MS are numbers, PROGRAM has no NUL byte");
        return ExitCode::from(2);
    };
    for _ in 0..count {
        std::thread::sleep(Duration::from_millis(pause_ms));
        let started = Instant::now();
        match run(&program) {
            Ok(0) => println!("{}", started.elapsed().as_micros()),
            other => {
                eprintln!("{}: {other:?}", program.to_string_lossy());
                return ExitCode::FAILURE;
            }
        }
    }
    ExitCode::SUCCESS
}

/// Forks, executes and waits; gives the status as `waitpid` does.
fn run(program: &CStr) -> io::Result<i32> {
    let arguments = [program.as_ptr(), std::ptr::null()];
    // SAFETY: this process has one thread. The child executes the program or ends; the arguments
    // end with a null pointer and live until then.
    let child = unsafe {
        match libc::fork() {
            0 => {
                libc::execv(program.as_ptr(), arguments.as_ptr());
                libc::_exit(127);
            }
            child => child,
        }
    };
    let mut status = 0;
    // SAFETY: the status is written to a variable of ours.
    match unsafe { libc::waitpid(child, &raw mut status, 0) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(status),
    }
}
