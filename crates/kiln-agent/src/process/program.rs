//! Finding the program of a command, as `execvp` would, but with an answer that says why not.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

/// Why a program cannot be run.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum ProgramError {
    /// It does not exist: exit code 127.
    NotFound,
    /// It is not a file that can be executed: exit code 126.
    NotExecutable,
}

/// Finds `program` in `path`, or, if it has a slash, seen from `cwd`.
pub(crate) fn find(program: &OsStr, path: &OsStr, cwd: &Path) -> Result<PathBuf, ProgramError> {
    if program.is_empty() {
        return Err(ProgramError::NotFound);
    }
    if program.as_bytes().contains(&b'/') {
        return check(&cwd.join(program)).map(|()| PathBuf::from(program));
    }
    let mut reason = ProgramError::NotFound;
    for directory in path.as_bytes().split(|&b| b == b':') {
        let mut candidate = PathBuf::from(if directory.is_empty() {
            OsString::from(".")
        } else {
            OsStr::from_bytes(directory).to_owned()
        });
        candidate.push(program);
        match check(&cwd.join(&candidate)) {
            Ok(()) => return Ok(candidate),
            Err(ProgramError::NotExecutable) => reason = ProgramError::NotExecutable,
            Err(ProgramError::NotFound) => {}
        }
    }
    Err(reason)
}

fn check(path: &Path) -> Result<(), ProgramError> {
    match std::fs::metadata(path) {
        Ok(meta) if meta.is_file() && meta.permissions().mode() & 0o111 != 0 => Ok(()),
        Ok(_) => Err(ProgramError::NotExecutable),
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
            Err(ProgramError::NotExecutable)
        }
        Err(_) => Err(ProgramError::NotFound),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn programs_are_found_as_a_shell_finds_them() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (dir.path().join("a"), dir.path().join("b"));
        for d in [&a, &b] {
            fs::create_dir(d).unwrap();
        }
        fs::write(a.join("plain"), "").unwrap();
        fs::write(b.join("tool"), "").unwrap();
        fs::set_permissions(b.join("tool"), fs::Permissions::from_mode(0o755)).unwrap();
        let path = OsString::from(format!("{}:{}", a.display(), b.display()));
        let look = |name: &str| find(OsStr::new(name), &path, dir.path());

        assert_eq!(look("tool"), Ok(b.join("tool")));
        assert_eq!(look("b/tool"), Ok(PathBuf::from("b/tool")));
        assert_eq!(look("plain"), Err(ProgramError::NotExecutable));
        assert_eq!(look("b"), Err(ProgramError::NotFound));
        assert_eq!(look("./b"), Err(ProgramError::NotExecutable));
        assert_eq!(look("nothing"), Err(ProgramError::NotFound));
        assert_eq!(look(""), Err(ProgramError::NotFound));
    }
}
