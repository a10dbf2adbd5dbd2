//! Where the daemon's log goes, and how much of it is kept.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use tracing_subscriber::{EnvFilter, fmt::MakeWriter};

/// A log larger than this is put aside, over the one before it.
pub const MAX_LOG: u64 = 4 * 1024 * 1024;

/// Environment variable with the filter, in the syntax of `tracing-subscriber`.
pub const FILTER_VARIABLE: &str = "KILN_LOG";

/// Logs to standard error.
pub fn to_stderr() {
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter())
        .with_writer(io::stderr);
    // A second subscriber is an embedder's own: theirs stays.
    drop(builder.try_init());
}

/// Logs to a bounded file, and sends there too what is written to standard error: a panic's
/// message, the last words.
///
/// # Errors
/// When the file cannot be opened.
pub fn to_file(path: &Path) -> io::Result<()> {
    let file = BoundedFile::open(path, MAX_LOG)?;
    rustix::stdio::dup2_stderr(&file.file)?;
    let writer = SharedFile(Arc::new(Mutex::new(file)));
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter())
        .with_ansi(false)
        .with_writer(writer);
    drop(builder.try_init());
    Ok(())
}

fn filter() -> EnvFilter {
    EnvFilter::try_from_env(FILTER_VARIABLE).unwrap_or_else(|_| EnvFilter::new("info"))
}

#[derive(Clone, Debug)]
struct SharedFile(Arc<Mutex<BoundedFile>>);

impl<'a> MakeWriter<'a> for SharedFile {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

impl Write for SharedFile {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .append(line)?;
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A file that is put aside when it grows too large.
#[derive(Debug)]
struct BoundedFile {
    path: PathBuf,
    file: File,
    size: u64,
    limit: u64,
}

impl BoundedFile {
    fn open(path: &Path, limit: u64) -> io::Result<Self> {
        let file = OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o600)
            .open(path)?;
        let size = file.metadata()?.len();
        let mut bounded = Self {
            path: path.to_owned(),
            file,
            size,
            limit,
        };
        if size > limit {
            bounded.put_aside()?;
        }
        Ok(bounded)
    }

    fn append(&mut self, line: &[u8]) -> io::Result<()> {
        if self.size > self.limit {
            self.put_aside()?;
            rustix::stdio::dup2_stderr(&self.file)?;
        }
        self.file.write_all(line)?;
        self.size = self.size.saturating_add(line.len() as u64);
        Ok(())
    }

    fn put_aside(&mut self) -> io::Result<()> {
        let mut old = self.path.clone().into_os_string();
        old.push(".old");
        fs::rename(&self.path, &old)?;
        self.file = OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o600)
            .open(&self.path)?;
        self.size = 0;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_that_is_too_large_at_start_is_put_aside() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("daemon.log");
        fs::write(&path, [b'x'; 101]).unwrap();
        let mut log = BoundedFile::open(&path, 100).unwrap();
        log.file.write_all(b"new").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert_eq!(
            fs::read(dir.path().join("daemon.log.old")).unwrap().len(),
            101
        );
    }

    #[test]
    fn a_log_that_fits_is_continued() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("daemon.log");
        fs::write(&path, "old ").unwrap();
        BoundedFile::open(&path, 100)
            .unwrap()
            .append(b"new")
            .unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"old new");
    }
}
