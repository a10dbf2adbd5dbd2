//! Running other programs: one line that says which, then its own output.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};

/// Why a program did not do its work.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StepError {
    #[error("cannot start `{command}`")]
    Spawn {
        command: String,
        #[source]
        source: std::io::Error,
    },
    #[error("`{command}` ended with {status}{}", output_suffix(.output))]
    Failed {
        command: String,
        status: ExitStatus,
        output: String,
    },
}

fn output_suffix(output: &str) -> String {
    if output.trim().is_empty() {
        String::new()
    } else {
        format!(":\n{}", output.trim_end())
    }
}

/// The command as one would type it.
pub(crate) fn shown(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words
        .map(|word| quoted(&word.to_string_lossy()))
        .collect::<Vec<_>>()
        .join(" ")
}

/// A word as a POSIX shell reads it back unchanged.
pub(crate) fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,@%+".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// Announces the command, runs it, and demands success. What it says goes to standard error:
/// standard output is for the answer of the chore.
pub(crate) fn run(command: &mut Command) -> Result<(), StepError> {
    eprintln!("+ {}", shown(command));
    let status = command
        .stdout(std::io::stderr())
        .status()
        .map_err(|source| StepError::Spawn {
            command: shown(command),
            source,
        })?;
    if status.success() {
        return Ok(());
    }
    Err(StepError::Failed {
        command: shown(command),
        status,
        output: String::new(),
    })
}

/// Runs the command quietly and returns its standard output; its errors are kept for the message.
pub(crate) fn capture(command: &mut Command) -> Result<Vec<u8>, StepError> {
    let output = command.output().map_err(|source| StepError::Spawn {
        command: shown(command),
        source,
    })?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    Err(StepError::Failed {
        command: shown(command),
        status: output.status,
        output: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}

/// `cargo`, as the one that runs us, in the root of the checkout.
pub(crate) fn cargo<I, S>(arguments: I) -> Command
where
    I: IntoIterator<Item = S>,
    S: AsRef<OsStr>,
{
    let program = std::env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo"));
    let mut command = Command::new(program);
    command
        .args(arguments)
        .current_dir(crate::workspace::root());
    command
}

/// The directories in which programs are looked for: `PATH`, then those of the administrator,
/// which an ordinary user's `PATH` leaves out on Debian.
pub(crate) fn program_dirs() -> Vec<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut dirs: Vec<PathBuf> = std::env::split_paths(&path).collect();
    for extra in ["/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/bin", "/bin"] {
        if !dirs.iter().any(|dir| dir == Path::new(extra)) {
            dirs.push(PathBuf::from(extra));
        }
    }
    dirs
}

/// The first executable of that name in the given directories.
pub(crate) fn find_program(name: &str, dirs: &[PathBuf]) -> Option<PathBuf> {
    use std::os::unix::fs::PermissionsExt as _;
    dirs.iter().map(|dir| dir.join(name)).find(|path| {
        path.metadata()
            .is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_quoted_for_the_shell() {
        assert_eq!(quoted("a/b-c"), "a/b-c");
        assert_eq!(quoted(""), "''");
        assert_eq!(quoted("it's $HOME"), r"'it'\''s $HOME'");
    }

    #[test]
    fn a_failure_carries_what_the_program_said() {
        let error = capture(Command::new("sh").args(["-c", "echo wrong >&2; exit 3"])).unwrap_err();
        let text = error.to_string();
        assert!(
            text.contains("exit status: 3") && text.ends_with("wrong"),
            "{text}"
        );
    }

    #[test]
    fn a_missing_program_is_named() {
        let error = run(&mut Command::new("no-such-program-here")).unwrap_err();
        assert_eq!(error.to_string(), "cannot start `no-such-program-here`");
    }
}
