//! `cargo xtask bench boot`: how long `kiln run -- true` takes, and what daemon and agent weigh.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use clap::Args;
use serde_json::Value;

use super::bare::{BareError, Recipe};
use super::proc::{rss_mib, status_mib};
use super::raw_fork::{self, RawForkError};
use super::report::Report;
use super::round_trip;
use super::stats::Samples;
use super::timings::Timings;
use super::transfer::{self, TransferError};
use crate::kiln::{Kiln, KilnError};
use crate::setup::{self, Purpose, SetupError};
use crate::step::{self, StepError};
use crate::workspace;

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Print one flat JSON object instead of a table.
    #[arg(long)]
    json: bool,
    /// How often each thing is measured.
    #[arg(long, default_value_t = 10, value_name = "N")]
    runs: u32,
    /// How many machines are started at once.
    #[arg(long, default_value_t = 20, value_name = "N")]
    burst: u32,
    /// How much is sent into a guest and back, in MiB.
    #[arg(long, default_value_t = 1024, value_name = "MIB")]
    transfer: u32,
}

/// Why there are no figures.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BenchError {
    #[error(transparent)]
    Setup(#[from] SetupError),
    #[error(transparent)]
    Build(#[from] StepError),
    #[error(transparent)]
    Kiln(#[from] KilnError),
    #[error("cannot start `{command}`")]
    Spawn {
        command: String,
        #[source]
        source: std::io::Error,
    },
    #[error("`{command}` ended with {status}:\n{output}")]
    Failed {
        command: String,
        status: std::process::ExitStatus,
        output: String,
    },
    #[error("the sandbox to measure in did not come up")]
    NoSandbox,
    #[error("`kiln ps --json` does not name the VMM of the sandbox")]
    NoVmm,
    #[error("the samples cannot be read")]
    Samples(#[source] serde_json::Error),
    #[error("cannot work in the target directory")]
    Directory(#[source] std::io::Error),
    #[error("bytes did not come through")]
    Transfer(#[from] TransferError),
    #[error("the bare side failed")]
    Bare(#[from] BareError),
    #[error("there is no raw fork to compare with")]
    RawFork(#[from] RawForkError),
    #[error(transparent)]
    Image(#[from] super::image::ImageBenchError),
}

/// Raw forks for each exec: both sides see the same load of the machine.
const RAW_FORKS: u32 = 3;

pub(crate) fn run(options: &Options) -> Result<ExitCode, BenchError> {
    setup::ensure(Purpose::Bench)?;
    step::run(&mut step::cargo([
        "build",
        "--release",
        "--locked",
        "-p",
        "kiln-cli",
    ]))?;
    let kiln = Kiln::with_data_dir(workspace::target().join("bench"))?;
    let mut report = Report::default();
    finished(&mut kiln.command(["run", "--", "true"]))?;
    let recipe = recipe(&kiln, &mut report)?;
    runs(&kiln, recipe.as_ref(), options.runs, &mut report)?;
    weights(&kiln, &mut report)?;
    execs(&kiln, options.runs, &mut report)?;
    transfers(&kiln, options.transfer, &mut report)?;
    burst(&kiln, options.burst, &mut report)?;
    kiln.close()?;
    report.show(options.json);
    Ok(ExitCode::SUCCESS)
}

/// The bare side's command line, from a machine that Kiln runs; none where it is not QEMU.
fn recipe(kiln: &Kiln, report: &mut Report) -> Result<Option<Recipe>, BenchError> {
    let sandbox = Sandbox::start(kiln)?;
    sandbox.exec(&["sync"])?;
    let taken = sandbox.vmm_pid().and_then(|pid| {
        let dir = tempfile::tempdir_in(workspace::target()).map_err(BenchError::Directory)?;
        let recipe = Recipe::of_process(pid, dir)?;
        let initramfs_mib = recipe.initramfs_mib()?;
        Ok((recipe, initramfs_mib))
    });
    match taken {
        Ok((recipe, initramfs_mib)) => {
            report.single("initramfs_mib", "the guest's initramfs", initramfs_mib);
            Ok(Some(recipe))
        }
        Err(error @ (BenchError::Bare(BareError::NotUnderstood(_)) | BenchError::NoVmm)) => {
            report.missing("initramfs_mib", error.to_string());
            report.missing("run_ratio", error.to_string());
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// Whole runs, each followed by a bare one, so that a busy machine slows both alike.
fn runs(
    kiln: &Kiln,
    recipe: Option<&Recipe>,
    count: u32,
    report: &mut Report,
) -> Result<(), BenchError> {
    let (mut walls, mut hosts, mut bares) =
        (Samples::default(), Samples::default(), Samples::default());
    for _ in 0..count {
        let started = Instant::now();
        let output = finished(&mut kiln.command(["run", "--timings", "--json", "--", "true"]))?;
        walls.push(ms(started.elapsed()));
        if let Some(host_us) = Timings::in_output(&output).and_then(|timings| timings.host_us()) {
            hosts.push(ms(Duration::from_micros(host_us)));
        }
        if let Some(recipe) = recipe {
            bares.push(ms(recipe.run(&["true"])?));
        }
    }
    report.median("run_ms", "kiln run -- true, warm", &walls);
    report.median("host_ms", "of it on the host, outside the VMM", &hosts);
    if let (Some(wall), Some(bare)) = (walls.median(), bares.median()) {
        report.median("bare_ms", "the same machine by a bare QEMU", &bares);
        report.single("run_ratio", "kiln run over bare QEMU", wall / bare);
    }
    Ok(())
}

/// How long the daemon is left alone before it counts as idle.
const IDLE: Duration = Duration::from_secs(3);

/// Memory of the idle daemon and of PID 1 in a guest.
fn weights(kiln: &Kiln, report: &mut Report) -> Result<(), BenchError> {
    let daemon = format!("/proc/{}/smaps_rollup", kiln.info()?.daemon_pid);
    std::thread::sleep(IDLE);
    match std::fs::read_to_string(&daemon)
        .ok()
        .as_deref()
        .and_then(rss_mib)
    {
        Some(mib) => report.single("daemon_rss_mib", "resident memory of the idle daemon", mib),
        None => report.missing("daemon_rss_mib", format!("{daemon} cannot be read")),
    }
    let agent = finished(&mut kiln.command(["run", "--", "cat", "/proc/1/smaps_rollup"]))?;
    match rss_mib(&agent) {
        Some(mib) => report.single(
            "agent_rss_mib",
            "resident memory of PID 1 in the guest",
            mib,
        ),
        None => report.missing("agent_rss_mib", "the guest's kernel has no smaps_rollup"),
    }
    Ok(())
}

/// A command for a program that uses the API, and for one who types `kiln exec`, over a raw fork in
/// the same guest.
fn execs(kiln: &Kiln, count: u32, report: &mut Report) -> Result<(), BenchError> {
    const TRUE: &str = "/bin/true";
    let sandbox = Sandbox::start(kiln)?;
    raw_fork::install(|words| {
        let mut command = kiln.command(["exec", "--interactive", &sandbox.name, "--"]);
        command.args(words);
        command
    })?;
    let in_guest = raw_fork::command(RAW_FORKS, TRUE);
    let in_guest: Vec<&str> = in_guest.iter().map(String::as_str).collect();
    let program = round_trip::build()?;
    let (mut trips, mut typed) = (Samples::default(), Samples::default());
    let mut forks = Samples::default();
    // In turns: what else the machine does slows all alike.
    for _ in 0..count {
        let mut trip = round_trip::command(&program, &kiln.socket(), &sandbox.name, TRUE);
        raw_fork::read(&finished(&mut trip)?, &mut trips)?;
        std::thread::sleep(raw_fork::PAUSE);
        typed.push(ms(sandbox.exec(&[TRUE])?));
        raw_fork::read(&sandbox.told(&in_guest)?, &mut forks)?;
    }
    let (Some(trip), Some(typed), Some(fork)) = (trips.median(), typed.median(), forks.median())
    else {
        report.missing("exec_ms", "no sample was taken");
        return Ok(());
    };
    report.median("raw_fork_ms", "a raw fork of true in the guest", &forks);
    report.single(
        "exec_ms",
        "true by the API over a raw fork there",
        trip - fork,
    );
    report.single(
        "exec_typed_ms",
        "kiln exec -- true over it, with the start of kiln",
        typed - fork,
    );
    Ok(())
}

/// A gigabyte into a guest and back, and what the programs on its way need for it.
fn transfers(kiln: &Kiln, mib: u32, report: &mut Report) -> Result<(), BenchError> {
    const FORGET: &str = "echo 5 > /proc/1/clear_refs; grep VmRSS: /proc/1/status";
    if mib == 0 {
        report.missing("transfer_mib_s", "--transfer is 0");
        return Ok(());
    }
    let sandbox = Sandbox::start(kiln)?;
    let daemon = kiln.info()?.daemon_pid.unsigned_abs();
    std::thread::sleep(IDLE);
    let before = sandbox.told(&["sh", "-c", FORGET])?;
    let mut echo = kiln.command(["exec", "--interactive", &sandbox.name, "--", "cat"]);
    let moved = transfer::run(&mut echo, mib, daemon)?;
    let after = sandbox.told(&["grep", "VmHWM:", "/proc/1/status"])?;
    report.single(
        "transfer_mib_s",
        "MiB/s through exec and back, the same bytes",
        moved.mib_per_s,
    );
    report.single(
        "transfer_daemon_mib",
        "memory the daemon needed for it",
        moved.daemon_mib,
    );
    report.single(
        "transfer_client_mib",
        "memory the command line needed",
        moved.client_mib,
    );
    match (status_mib(&before, "VmRSS:"), status_mib(&after, "VmHWM:")) {
        (Some(before), Some(after)) => {
            report.single(
                "transfer_agent_mib",
                "memory the agent needed",
                after - before,
            );
        }
        _ => report.missing(
            "transfer_agent_mib",
            "the guest's kernel does not tell a peak",
        ),
    }
    Ok(())
}

/// Many runs at once; all have to reach their command.
fn burst(kiln: &Kiln, count: u32, report: &mut Report) -> Result<(), BenchError> {
    let mut started = Vec::new();
    for _ in 0..count {
        let mut command = kiln.command(["run", "--", "true"]);
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let child = command.spawn().map_err(|source| BenchError::Spawn {
            command: step::shown(&command),
            source,
        })?;
        started.push(child);
    }
    let mut failed = 0;
    for child in started {
        let output = child
            .wait_with_output()
            .map_err(|source| BenchError::Spawn {
                command: "kiln run -- true".to_owned(),
                source,
            })?;
        if !output.status.success() {
            failed += 1;
            eprintln!("{}", String::from_utf8_lossy(&output.stderr).trim_end());
        }
    }
    report.single(
        "burst_failed",
        "of the machines started at once",
        f64::from(failed),
    );
    Ok(())
}

/// A sandbox that waits to be used; removed when dropped.
#[derive(Debug)]
struct Sandbox<'a> {
    kiln: &'a Kiln,
    name: String,
    holder: Child,
}

impl<'a> Sandbox<'a> {
    fn start(kiln: &'a Kiln) -> Result<Self, BenchError> {
        let name = format!("bench-{}", std::process::id());
        let mut command = kiln.command(["run", "--name", &name, "--"]);
        command.args(["sh", "-c", "echo ready; exec sleep 3600"]);
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        let mut holder = command.spawn().map_err(|source| BenchError::Spawn {
            command: step::shown(&command),
            source,
        })?;
        let stdout = holder.stdout.take();
        let sandbox = Self { kiln, name, holder };
        let mut line = String::new();
        let read = stdout.map(|stdout| BufReader::new(stdout).read_line(&mut line));
        if matches!(read, Some(Ok(_))) && line.trim() == "ready" {
            return Ok(sandbox);
        }
        Err(BenchError::NoSandbox)
    }

    /// The process number of its VMM.
    fn vmm_pid(&self) -> Result<u32, BenchError> {
        let list = finished(&mut self.kiln.command(["ps", "--json"]))?;
        let list: Value = serde_json::from_str(list.trim()).map_err(|_| BenchError::NoVmm)?;
        let mut sandboxes = list.as_array().into_iter().flatten();
        let ours = sandboxes.find(|sandbox| sandbox["name"] == self.name.as_str());
        ours.and_then(|sandbox| sandbox["pid"].as_u64())
            .and_then(|pid| u32::try_from(pid).ok())
            .ok_or(BenchError::NoVmm)
    }

    /// What a command answers.
    fn told(&self, arguments: &[&str]) -> Result<String, BenchError> {
        let mut command = self.kiln.command(["exec", &self.name, "--"]);
        finished(command.args(arguments))
    }

    /// How long a command takes, seen from the host.
    fn exec(&self, arguments: &[&str]) -> Result<Duration, BenchError> {
        let mut command = self.kiln.command(["exec", &self.name, "--"]);
        command.args(arguments);
        let started = Instant::now();
        finished(&mut command)?;
        Ok(started.elapsed())
    }
}

impl Drop for Sandbox<'_> {
    fn drop(&mut self) {
        let mut remove = self.kiln.command(["rm", "--force", &self.name]);
        let _ = remove.stdout(Stdio::null()).status();
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

/// Runs a command to a good end and returns both its outputs.
fn finished(command: &mut Command) -> Result<String, BenchError> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .map_err(|source| BenchError::Spawn {
            command: step::shown(command),
            source,
        })?;
    let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.push_str(&String::from_utf8_lossy(&output.stderr));
    if output.status.success() {
        return Ok(text);
    }
    let (command, status) = (step::shown(command), output.status);
    Err(BenchError::Failed {
        command,
        status,
        output: text,
    })
}

fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}
