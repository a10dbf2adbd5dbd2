//! Runs inside a guest of `cargo xtask bench boot`: what a command costs there without Kiln.
//!
//! `raw_fork COUNT PAUSE_MS PROGRAM` starts PROGRAM so many times, each after a pause, and prints
//! the microseconds that each took from the start to the end, one per line.

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "this is its output"
)]

use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [count, pause_ms, program] = words.as_slice() else {
        eprintln!("usage: raw_fork COUNT PAUSE_MS PROGRAM");
        return ExitCode::from(2);
    };
    let (Ok(count), Ok(pause_ms)) = (count.parse::<u32>(), pause_ms.parse()) else {
        eprintln!("COUNT and PAUSE_MS are numbers");
        return ExitCode::from(2);
    };
    for _ in 0..count {
        std::thread::sleep(Duration::from_millis(pause_ms));
        let started = Instant::now();
        match Command::new(program).status() {
            Ok(status) if status.success() => println!("{}", started.elapsed().as_micros()),
            other => {
                eprintln!("{program}: {other:?}");
                return ExitCode::FAILURE;
            }
        }
    }
    ExitCode::SUCCESS
}
