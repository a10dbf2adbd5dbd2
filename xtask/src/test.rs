//! `cargo xtask test`: sets up what the tests need, then runs every check and every test.
//!
//! Owns the order of the steps and the count at the end; what is tested lies with the crates.
//! Nothing ends the run early, so that one broken lint does not hide a broken test.

mod deny;
mod tally;

use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Command, ExitCode, ExitStatus};
use std::time::Duration;

use clap::Args;

use crate::deps::{self, DepsError};
use crate::setup::{self, Purpose, SetupError};
use crate::step;
use crate::{kiln, lab, parity, soak, workspace};
use tally::Tally;

#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Leave out what boots machines (end-to-end tests, lab, soak) and `cargo deny`.
    #[arg(long, conflicts_with = "lab")]
    fast: bool,
    /// Only the lab's scenarios.
    #[arg(long)]
    lab: bool,
}

/// Why the tests could not even be run.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TestError {
    #[error(transparent)]
    Setup(#[from] SetupError),
    #[error(transparent)]
    Deps(#[from] DepsError),
    #[error("cannot write the log {path}")]
    Log {
        path: String,
        #[source]
        source: std::io::Error,
    },
    #[error("cannot start `{command}`")]
    Spawn {
        command: String,
        #[source]
        source: std::io::Error,
    },
}

/// How long a check of a change soaks; an hour of it is a command.
const SOAK: Duration = Duration::from_secs(120);
const SOAK_SEED: u64 = 6;

/// The package of the end-to-end scenarios: real machines, so one at a time.
const SYSTEM_TESTS: &str = "e2e";

pub(crate) fn run(options: &Options) -> Result<ExitCode, TestError> {
    setup::ensure(Purpose::Test)?;
    let mut session = Session::start()?;
    if !options.fast {
        session.release();
    }
    if !options.lab {
        session.static_checks();
        if !options.fast {
            session.deny();
        }
        session.tests(options.fast)?;
    }
    if options.fast {
        session.skip("lab and cargo deny: left out by --fast");
    } else {
        session.lab();
        if !options.lab {
            session.soak();
        }
    }
    Ok(session.close())
}

/// One run of the tests: its log and its count.
#[derive(Debug)]
struct Session {
    log: File,
    tally: Tally,
}

impl Session {
    fn start() -> Result<Self, TestError> {
        let path = workspace::target().join("xtask-test.log");
        let open = || {
            std::fs::create_dir_all(workspace::target())?;
            File::create(&path)
        };
        let log = open().map_err(|source| TestError::Log {
            path: path.display().to_string(),
            source,
        })?;
        Ok(Self {
            log,
            tally: Tally::default(),
        })
    }

    /// System tests and lab use the binary as it is released; a debug build would measure itself.
    fn release(&mut self) {
        self.check(kiln::build());
    }

    fn static_checks(&mut self) {
        self.check(step::run(&mut step::cargo(["fmt", "--all", "--check"])));
        let clippy = [
            "clippy",
            "--workspace",
            "--all-targets",
            "--locked",
            "--",
            "-D",
            "warnings",
        ];
        self.check(step::run(&mut step::cargo(clippy)));
        self.check(deps::run());
        self.check(parity::run(&parity::Options::default()));
    }

    fn deny(&mut self) {
        match deny::check() {
            Ok(skipped) => skipped.iter().for_each(|why| self.skip(why)),
            Err(error) => self.check(Err::<(), _>(error)),
        }
    }

    /// Everything that can run side by side first, then the system tests one by one.
    fn tests(&mut self, fast: bool) -> Result<(), TestError> {
        let has_system_tests = deps::metadata()?
            .members()
            .any(|member| member.name == SYSTEM_TESTS);
        let mut side_by_side = step::cargo(["test", "--workspace", "--locked", "--no-fail-fast"]);
        if has_system_tests {
            side_by_side.args(["--exclude", SYSTEM_TESTS]);
        }
        self.cargo_test(side_by_side.args(["--", "--show-output"]))?;
        if !has_system_tests {
            return Ok(());
        }
        if fast {
            self.skip("system tests: left out by --fast");
            return Ok(());
        }
        let mut serial = step::cargo([
            "test",
            "--locked",
            "--no-fail-fast",
            "-p",
            SYSTEM_TESTS,
            "--",
        ]);
        serial
            .args(["--show-output", "--test-threads=1"])
            .env("KILN_BIN", workspace::release_kiln())
            // Built for the tests above. Only debug builds can be made to die at a step.
            .env("KILN_DEBUG_BIN", workspace::debug_kiln());
        self.cargo_test(&mut serial)
    }

    /// Runs a `cargo test`, passing its output on while reading results and skips off it.
    fn cargo_test(&mut self, command: &mut Command) -> Result<(), TestError> {
        eprintln!("+ {}", step::shown(command));
        let failed_before = self.tally.failed;
        let status = self.follow(command)?;
        if !status.success() && self.tally.failed == failed_before {
            // It did not compile, or a test binary died without a result line.
            self.tally
                .fail(format!("`{}` ended with {status}", step::shown(command)));
        }
        Ok(())
    }

    /// Follows a program's two outputs through one pipe, so that their order is kept.
    fn follow(&mut self, command: &mut Command) -> Result<ExitStatus, TestError> {
        let shown = step::shown(command);
        let failed = |source| TestError::Spawn {
            command: shown.clone(),
            source,
        };
        let (reader, writer) = std::io::pipe().map_err(failed)?;
        let mut child = command
            .stdin(std::process::Stdio::null())
            .stdout(writer.try_clone().map_err(failed)?)
            .stderr(writer)
            .spawn()
            .map_err(failed)?;
        // The command keeps copies of the writing end, which would hold off the end of file.
        command
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null());
        for line in BufReader::new(reader).split(b'\n').map_while(Result::ok) {
            let line = String::from_utf8_lossy(&line);
            println!("{line}");
            // The log is a convenience; a full disk must not lose the run itself.
            let _ = writeln!(self.log, "{line}");
            self.tally.read(&line);
        }
        child.wait().map_err(failed)
    }

    fn lab(&mut self) {
        for scenario in lab::SCENARIOS {
            eprintln!("+ lab: {}", scenario.name);
            match scenario.run() {
                Ok(lab::Verdict::Passed) => self.tally.pass(),
                Ok(lab::Verdict::Skipped(why)) => {
                    self.skip(&format!("lab {}: {why}", scenario.name));
                }
                Ok(lab::Verdict::Failed(how)) => {
                    self.tally.fail(format!("lab {}: {how}", scenario.name));
                }
                Err(error) => self.check(Err::<(), _>(error)),
            }
        }
    }

    /// Two minutes of it; the same ones each time, so that a change is what makes a difference.
    fn soak(&mut self) {
        eprintln!("+ soak");
        match soak::soak(SOAK, SOAK_SEED) {
            Ok(soak::Verdict::Held { untried }) => {
                self.tally.pass();
                untried.iter().for_each(|what| self.skip(what));
            }
            Ok(soak::Verdict::Skipped(why)) => self.skip(&format!("soak: {why}")),
            Ok(soak::Verdict::Failed(how)) => self.tally.fail(format!("soak: {how}")),
            Err(error) => self.check(Err::<(), _>(error)),
        }
    }

    /// Counts a check that failed; one that holds is no test and counts nothing.
    fn check<E: std::error::Error>(&mut self, outcome: Result<(), E>) {
        if let Err(error) = outcome {
            eprintln!("FAILED: {error}");
            self.tally.fail(error.to_string());
        }
    }

    fn skip(&mut self, why: &str) {
        let line = format!("SKIPPED: {why}");
        eprintln!("{line}");
        self.tally.skip(line);
    }

    fn close(self) -> ExitCode {
        println!("{}", self.tally);
        if self.tally.failed == 0 {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        }
    }
}
