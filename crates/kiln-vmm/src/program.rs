//! The VMM's program: where it is and which version it says it has.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::process::Command;
use tokio::time::timeout;

/// Printing a version takes milliseconds; a loaded machine gets its time.
const DEADLINE: Duration = Duration::from_secs(20);
/// Nobody's version is longer.
const MAX_OUTPUT_BYTES: u64 = 16 * 1024;

/// A program that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ProgramError {
    /// It is not there.
    #[error("{0} does not exist")]
    Missing(PathBuf),
    /// It cannot be started.
    #[error("cannot start {program}")]
    Start {
        /// The program.
        program: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// It does not say a version that is understood.
    #[error("{program} --version says {output:?}")]
    Version {
        /// The program.
        program: PathBuf,
        /// What it said.
        output: String,
    },
    /// It is too old, or its version has a form of its own.
    #[error("{program} has version {version}, which this Kiln does not work with")]
    Unsupported {
        /// The program.
        program: PathBuf,
        /// What it said.
        version: String,
    },
    /// It does not answer.
    #[error("{program} --version does not answer")]
    Silent {
        /// The program.
        program: PathBuf,
    },
}

/// Where the program is: the explicit path, else the one of environment variable `variable`,
/// else the first of `name` on `PATH`.
pub(crate) fn find(explicit: Option<&Path>, variable: &str, name: &str) -> Option<PathBuf> {
    let found = find_as_given(explicit, variable, name)?;
    // Machines are started in another directory.
    std::path::absolute(found).ok()
}

fn find_as_given(explicit: Option<&Path>, variable: &str, name: &str) -> Option<PathBuf> {
    if let Some(path) = explicit {
        return Some(path.to_owned());
    }
    if let Some(path) = std::env::var_os(variable).filter(|path| !path.is_empty()) {
        return Some(path.into());
    }
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .map(|dir| dir.join(name))
        .find(|candidate| is_executable(candidate))
}

fn is_executable(path: &Path) -> bool {
    use rustix::fs::{Access, access};
    path.is_file() && access(path, Access::EXEC_OK).is_ok()
}

/// What `program --version` says behind `prefix`, up to the next blank.
pub(crate) async fn version(program: &Path, prefix: &str) -> Result<String, ProgramError> {
    version_by(program, "--version", prefix).await
}

/// The same by another option.
pub(crate) async fn version_by(
    program: &Path,
    option: &str,
    prefix: &str,
) -> Result<String, ProgramError> {
    let output = timeout(DEADLINE, run(program, option))
        .await
        .map_err(|_| ProgramError::Silent {
            program: program.to_owned(),
        })?
        .map_err(|source| match source.kind() {
            std::io::ErrorKind::NotFound => ProgramError::Missing(program.to_owned()),
            _ => ProgramError::Start {
                program: program.to_owned(),
                source,
            },
        })?;
    parse(&output, prefix).ok_or_else(|| ProgramError::Version {
        program: program.to_owned(),
        output: output.chars().take(200).collect(),
    })
}

async fn run(program: &Path, option: &str) -> std::io::Result<String> {
    let mut child = Command::new(program)
        .arg(option)
        .env_clear()
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()?;
    let mut output = Vec::new();
    if let Some(stdout) = child.stdout.take() {
        stdout
            .take(MAX_OUTPUT_BYTES)
            .read_to_end(&mut output)
            .await?;
    }
    child.wait().await?;
    Ok(String::from_utf8_lossy(&output).into_owned())
}

fn parse(output: &str, prefix: &str) -> Option<String> {
    let rest = output.lines().find_map(|line| line.strip_prefix(prefix))?;
    let version = rest.split_whitespace().next()?;
    version
        .starts_with(|c: char| c.is_ascii_digit())
        .then(|| version.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_the_word_behind_the_prefix() {
        let qemu = "QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7)\nCopyright\n";
        assert_eq!(parse(qemu, "QEMU emulator version ").unwrap(), "7.2.22");
        let firecracker = "Firecracker v1.16.1\n\n2026 exiting\n";
        assert_eq!(parse(firecracker, "Firecracker v").unwrap(), "1.16.1");
        assert_eq!(parse("Firecracker vNext", "Firecracker v"), None);
        assert_eq!(parse("", "Firecracker v"), None);
    }

    #[test]
    fn a_relative_path_holds_in_every_directory() {
        let found = find(Some(Path::new("bin/vmm")), "KILN_NONE", "vmm").unwrap();
        assert!(found.is_absolute() && found.ends_with("bin/vmm"));
        assert!(find(None, "KILN_NONE", "sh").unwrap().is_absolute());
        assert_eq!(find(None, "KILN_NONE", "no-such-program"), None);
    }

    #[tokio::test]
    async fn a_program_that_is_missing_or_another_one_is_told() {
        assert!(matches!(
            version(Path::new("/nonexistent/vmm"), "x").await,
            Err(ProgramError::Missing(_))
        ));
        assert!(matches!(
            version(Path::new("/bin/true"), "Firecracker v").await,
            Err(ProgramError::Version { .. })
        ));
    }
}
