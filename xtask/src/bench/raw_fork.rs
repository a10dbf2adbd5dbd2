//! The baseline of `exec_ms`: the same command started in the same guest by a plain program.
//!
//! Both sides start it after the same pause. A loop without one would measure a guest whose every
//! path is hot, which no command that comes from outside ever meets.

use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use super::stats::Samples;
use crate::step::{self, StepError};
use crate::workspace;

/// Before each command, on both sides.
pub(super) const PAUSE: Duration = Duration::from_millis(50);

/// Where the program lies in the guest.
const IN_GUEST: &str = "/tmp/raw_fork";

/// Why there is no baseline.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RawForkError {
    #[error(transparent)]
    Step(#[from] StepError),
    #[error("cannot open {path}")]
    Open {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("the program in the guest printed what is no number of microseconds: {0:?}")]
    NotUnderstood(String),
}

/// Builds the program, static, so that it runs in any guest.
fn build() -> Result<PathBuf, RawForkError> {
    step::run(&mut step::cargo([
        "rustc",
        "--locked",
        "--quiet",
        "-p",
        "xtask",
        "--example",
        "raw_fork",
        "--",
        "-C",
        "target-feature=+crt-static",
        "-C",
        "opt-level=3",
    ]))?;
    Ok(workspace::target().join("debug/examples/raw_fork"))
}

/// Brings the program into a guest. `exec` starts a command there with the standard input open.
pub(super) fn install(exec: impl FnOnce(&[&str]) -> Command) -> Result<(), RawForkError> {
    let path = build()?;
    let file = File::open(&path).map_err(|source| RawForkError::Open { path, source })?;
    let script = format!("cat > {IN_GUEST} && chmod +x {IN_GUEST}");
    let mut command = exec(&["sh", "-c", &script]);
    step::run(command.stdin(Stdio::from(file)))?;
    Ok(())
}

/// The command, to be executed in the guest, that starts `program` so often.
pub(super) fn command(count: u32, program: &str) -> [String; 4] {
    let pause = PAUSE.as_millis().to_string();
    [
        IN_GUEST.to_owned(),
        count.to_string(),
        pause,
        program.to_owned(),
    ]
}

/// Adds what the program printed to `samples`, in milliseconds.
pub(super) fn read(output: &str, samples: &mut Samples) -> Result<(), RawForkError> {
    for line in output.lines() {
        let us: f64 = line
            .parse()
            .map_err(|_| RawForkError::NotUnderstood(line.to_owned()))?;
        samples.push(us / 1000.0);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_numbers_are_samples() {
        let mut samples = Samples::default();
        read("1000\n3000\n2000\n", &mut samples).unwrap();
        assert_eq!(samples.median(), Some(2.0));
        assert!(read("12\nsh: not found\n", &mut samples).is_err());
    }
}
