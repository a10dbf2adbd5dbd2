//! Who a process is: boot, number and start time together.

use std::path::Path;

use rustix::process::Pid;

use super::TakeOverError;
use crate::ProcessIdentity;

/// Why a process could not be identified.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The kernel's file could not be read.
    #[error("cannot read {path}")]
    Read {
        /// The file.
        path: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The kernel's file has another form than documented.
    #[error("cannot understand {path}")]
    Form {
        /// The file.
        path: String,
    },
}

/// Identity of the running process `pid`.
///
/// # Errors
/// There is no such process, or `/proc` is not mounted.
pub fn identify(pid: Pid) -> Result<ProcessIdentity, IdentityError> {
    let stat = Stat::read(pid)?;
    Ok(ProcessIdentity {
        boot_id: boot_id()?,
        pid: pid.as_raw_nonzero().get().unsigned_abs(),
        start_time: stat.start_time,
    })
}

/// Identity of this boot of the kernel.
pub(crate) fn boot_id() -> Result<String, IdentityError> {
    let path = "/proc/sys/kernel/random/boot_id";
    Ok(read(Path::new(path))?.trim().to_owned())
}

/// The number of a recorded process, when it can be one.
pub(crate) fn pid_of(identity: &ProcessIdentity) -> Option<Pid> {
    i32::try_from(identity.pid).ok().and_then(Pid::from_raw)
}

/// Whether the process that has the recorded number now is the recorded one.
pub(super) fn verify(recorded: &ProcessIdentity) -> Result<(), TakeOverError> {
    let boot_id = boot_id().map_err(unknown)?;
    let pid = pid_of(recorded).ok_or(TakeOverError::Gone)?;
    if boot_id != recorded.boot_id {
        return Err(TakeOverError::Gone);
    }
    match Stat::read(pid) {
        Ok(stat) if stat.start_time == recorded.start_time && !stat.dead => Ok(()),
        Ok(_) => Err(TakeOverError::Gone),
        Err(IdentityError::Read { source, .. })
            if source.kind() == std::io::ErrorKind::NotFound
                || source.raw_os_error() == Some(rustix::io::Errno::SRCH.raw_os_error()) =>
        {
            Err(TakeOverError::Gone)
        }
        Err(error) => Err(unknown(error)),
    }
}

fn unknown(error: IdentityError) -> TakeOverError {
    TakeOverError::Unknown(std::io::Error::other(error))
}

/// The two fields of `/proc/<pid>/stat` that matter here.
struct Stat {
    /// Zombie or being torn down: nothing of it runs any more.
    dead: bool,
    start_time: u64,
}

impl Stat {
    fn read(pid: Pid) -> Result<Self, IdentityError> {
        let path = format!("/proc/{}/stat", pid.as_raw_nonzero());
        let text = read(Path::new(&path))?;
        Self::parse(&text).ok_or(IdentityError::Form { path })
    }

    /// The second field, the program's name in parentheses, may itself contain spaces and
    /// parentheses: fields are counted from the last `)`, after which the third one follows.
    fn parse(text: &str) -> Option<Self> {
        let mut fields = text.rsplit_once(')')?.1.split_ascii_whitespace();
        let state = fields.next()?;
        // State is field 3, start time field 22.
        let start_time = fields.nth(18)?.parse().ok()?;
        Some(Self {
            dead: matches!(state, "Z" | "X" | "x"),
            start_time,
        })
    }
}

fn read(path: &Path) -> Result<String, IdentityError> {
    std::fs::read(path)
        .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
        .map_err(|source| IdentityError::Read {
            path: path.display().to_string(),
            source,
        })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_name_with_parentheses_does_not_shift_the_fields() {
        let tail = "S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4242 20 21";
        let stat = Stat::parse(&format!("7 (a) b) (c)) {tail}")).unwrap();
        assert_eq!(stat.start_time, 4242);
        assert!(!stat.dead);
    }

    proptest! {
        #[test]
        fn any_text_is_survived(text in ".{0,200}") {
            let _ = Stat::parse(&text);
        }
    }
}
