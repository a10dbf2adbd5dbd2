//! Who owns a data directory: one process, by a lock that dies with it.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::fs::{FlockOperation, flock};

use crate::error::{Error, ErrorCode};

/// The lock, held as long as this lives.
#[derive(Debug)]
pub(crate) struct DataLock(File);

impl DataLock {
    /// Takes the lock or says who has it.
    pub(crate) fn take(path: &Path) -> Result<Self, Error> {
        let failed = |source: std::io::Error| {
            Error::new(ErrorCode::Host, format!("cannot lock {}", path.display()))
                .with_source(source)
        };
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path)
            .map_err(failed)?;
        if flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
            return Err(in_use(path, &mut file));
        }
        file.set_len(0).map_err(failed)?;
        file.rewind().map_err(failed)?;
        writeln!(file, "{}", std::process::id()).map_err(failed)?;
        Ok(Self(file))
    }
}

impl Drop for DataLock {
    /// Closing the file would not do: a program that is just being started has a copy of it until
    /// it is executed.
    fn drop(&mut self) {
        let _ = flock(&self.0, FlockOperation::Unlock);
    }
}

fn in_use(path: &Path, file: &mut File) -> Error {
    let mut owner = String::new();
    // The number is a courtesy; the lock itself is what counts.
    let _ = file.take(16).read_to_string(&mut owner);
    let dir = path.parent().unwrap_or(path).display();
    let message = format!(
        "the data directory {dir} belongs to process {}",
        owner.trim()
    );
    Error::new(ErrorCode::DataDirInUse, message)
        .with_hint("use that daemon, end it, or choose another data directory")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_owner_at_a_time_and_it_is_named() {
        let dir = tempfile::tempdir().expect("dir");
        let path = dir.path().join("lock");
        let first = DataLock::take(&path).expect("free");
        let error = DataLock::take(&path).expect_err("taken");
        assert_eq!(error.code(), ErrorCode::DataDirInUse);
        assert!(error.message().contains(&std::process::id().to_string()));
        let inherited = first.0.try_clone().expect("as a child has it");
        drop(first);
        DataLock::take(&path).expect("free again");
        drop(inherited);
    }
}
