//! Real guests: created, used, stopped and removed by many clients at once.

use std::process::Stdio;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::LoadError;
use crate::bench::report::Report;
use crate::kiln::Kiln;
use crate::traces::{self, Size, Traces};

/// How long the daemon is left alone before it counts as idle: it gives memory back after a second.
const IDLE: Duration = Duration::from_secs(4);
/// What an idle daemon may have more than before; the figure.
const GROWTH_MIB: f64 = 5.0;
const MEMORY: &str = "128M";
const DISK: &str = "64M";

pub(super) fn run(
    kiln: &Kiln,
    sandboxes: usize,
    clients: usize,
    report: &mut Report,
) -> Result<(), LoadError> {
    // Kernel and image are made, and as many tasks have run at once as will.
    let mut errors = crowd(kiln, "warm", clients, clients);
    std::thread::sleep(IDLE);
    let (before, idle) = (Traces::of(kiln)?, Size::of_daemon(kiln)?);
    let began = Instant::now();
    errors.extend(crowd(kiln, "load", sandboxes, clients));
    let took = began.elapsed();
    let left = Traces::left(kiln, &before)?;
    std::thread::sleep(IDLE);
    let after = Size::of_daemon(kiln)?;
    let finding = traces::store(kiln)?;
    if !traces::is_consistent(&finding) {
        errors.push(format!("the store: {finding}"));
    }
    errors.iter().for_each(|error| eprintln!("error: {error}"));
    left.iter().for_each(|it| eprintln!("left: {it}"));
    tell(report, sandboxes, took, &errors, &left);
    size(report, idle, after);
    Ok(())
}

fn tell(report: &mut Report, count: usize, took: Duration, errors: &[String], left: &[String]) {
    report.single(
        "errors",
        "of clients that use real guests at once",
        errors.len() as f64,
    );
    report.single(
        "leaks",
        "things left of them on the host",
        left.len() as f64,
    );
    let each = took.as_secs_f64() / count as f64;
    report.single(
        "life_s",
        "a guest made, used, stopped, removed, of many",
        each,
    );
}

fn size(report: &mut Report, idle: Size, after: Size) {
    let growth = after.resident_mib - idle.resident_mib;
    report.bounded(
        "rss_growth_mib",
        "more memory in the idle daemon",
        growth,
        GROWTH_MIB,
    );
    report.single(
        "idle_rss_mib",
        "memory of the idle daemon before",
        idle.resident_mib,
    );
    let more = after.files as f64 - idle.files as f64;
    report.bounded("fd_growth", "more open files in the idle daemon", more, 0.0);
}

/// Lives of `count` sandboxes, `clients` at a time; what went wrong.
fn crowd(kiln: &Kiln, prefix: &str, count: usize, clients: usize) -> Vec<String> {
    let (next, errors) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let client = || {
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= count {
                return;
            }
            if let Err(error) = life(kiln, &format!("{prefix}-{number}")) {
                errors
                    .lock()
                    .unwrap_or_else(std::sync::PoisonError::into_inner)
                    .push(error);
            }
        }
    };
    std::thread::scope(|scope| (0..clients).for_each(|_| drop(scope.spawn(client))));
    errors
        .into_inner()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// One sandbox from its beginning to its end.
fn life(kiln: &Kiln, name: &str) -> Result<(), String> {
    let lived = (|| {
        let create = ["create", "--name", name, "--memory", MEMORY, "--disk", DISK];
        command(kiln, &create)?;
        command(kiln, &["start", name])?;
        let told = command(kiln, &["exec", name, "--", "echo", name])?;
        if told.trim() != name {
            return Err(format!("exec in {name} answered {told:?}"));
        }
        command(kiln, &["stop", name])?;
        command(kiln, &["rm", name])
    })();
    if lived.is_err() {
        // The next ones should not suffer from it; what this leaves is counted.
        let _ = command(kiln, &["rm", "--force", name]);
    }
    lived.map(drop)
}

/// Standard output, or what went wrong.
fn command(kiln: &Kiln, arguments: &[&str]) -> Result<String, String> {
    let output = kiln.command(arguments).stdin(Stdio::null()).output();
    let output = output.map_err(|error| format!("{arguments:?}: {error}"))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(format!(
        "{arguments:?} ended with {}: {}",
        output.status,
        said.trim_end()
    ))
}
