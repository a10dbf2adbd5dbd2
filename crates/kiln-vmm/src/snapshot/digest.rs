//! SHA-256 of files, of large ones once for as long as they are the same.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use sha2::{Digest, Sha256};

use super::{SnapshotError, file};

/// Kernels and memories whose digests are kept; the oldest are forgotten.
const KEPT: usize = 64;

/// A file that was written to or replaced has another one. The time of its last change of status
/// does not count: it changes with every other name that a file gets in a jail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Key {
    device: u64,
    inode: u64,
    bytes: u64,
    written: (i64, i64),
}

/// The last digests, the newest last. Shared by all engines of a process.
static KNOWN: Mutex<Vec<(Key, String)>> = Mutex::new(Vec::new());

/// The digest of a file that seldom changes. Blocks, for long the first time.
pub(crate) fn known_sha256(path: &Path) -> Result<String, SnapshotError> {
    let opened = File::open(path).map_err(file("open", path))?;
    let data = opened.metadata().map_err(file("examine", path))?;
    let key = Key {
        device: data.dev(),
        inode: data.ino(),
        bytes: data.len(),
        written: (data.mtime(), data.mtime_nsec()),
    };
    if let Some(digest) = recall(key) {
        return Ok(digest);
    }
    let digest = of(opened).map_err(file("read", path))?;
    remember(key, digest.clone());
    Ok(digest)
}

/// The digest of a file.
pub(super) fn sha256(path: &Path) -> Result<String, SnapshotError> {
    let opened = File::open(path).map_err(file("open", path))?;
    of(opened).map_err(file("read", path))
}

fn recall(key: Key) -> Option<String> {
    let known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    let found = known.iter().find(|(other, _)| *other == key);
    found.map(|(_, digest)| digest.clone())
}

fn remember(key: Key, digest: String) {
    let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    known.retain(|(other, _)| *other != key);
    if known.len() >= KEPT {
        known.remove(0);
    }
    known.push((key, digest));
}

fn of(mut opened: File) -> std::io::Result<String> {
    let mut digest = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match opened.read(&mut buffer)? {
            0 => break,
            count => digest.update(&buffer[..count]),
        }
    }
    let digest = digest.finalize();
    Ok(digest.iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_read_again_when_it_was_written_to_or_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        std::fs::write(&path, "one").unwrap();
        let one = known_sha256(&path).unwrap();
        assert_eq!(one, sha256(&path).unwrap());
        std::fs::hard_link(&path, dir.path().join("other")).unwrap();
        assert_eq!(known_sha256(&dir.path().join("other")).unwrap(), one);
        std::fs::write(&path, "three").unwrap();
        assert_ne!(known_sha256(&path).unwrap(), one);
        std::fs::remove_file(&path).unwrap();
        assert!(known_sha256(&path).is_err());
    }
}
