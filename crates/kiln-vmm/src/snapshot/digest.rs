//! SHA-256 of files, of large ones once for as long as they are the same.
//!
//! Of what is mostly holes, memory and disks, only what is not zero counts, with where it is: a copy
//! has the same digest whatever its file system made of the holes.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use rustix::fs::{SeekFrom, seek};
use rustix::io::Errno;
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
    /// Whether only what is not zero counts.
    data_only: bool,
}

/// The last digests, the newest last. Shared by all engines of a process.
static KNOWN: Mutex<Vec<(Key, String)>> = Mutex::new(Vec::new());

/// In portions of so much it is looked for what is not zero.
const PORTION: usize = 64 << 10;

/// The digest of a file that seldom changes. Blocks, for long the first time.
pub(crate) fn known_sha256(path: &Path) -> Result<String, SnapshotError> {
    known(path, false)
}

/// The digest of what a file that seldom changes holds beside zeros: of memory and disks. Blocks, for
/// long the first time.
///
/// # Errors
/// It cannot be read.
pub fn known_data_sha256(path: &Path) -> Result<String, SnapshotError> {
    known(path, true)
}

fn known(path: &Path, data_only: bool) -> Result<String, SnapshotError> {
    let opened = File::open(path).map_err(file("open", path))?;
    let data = opened.metadata().map_err(file("examine", path))?;
    let key = Key {
        device: data.dev(),
        inode: data.ino(),
        bytes: data.len(),
        written: (data.mtime(), data.mtime_nsec()),
        data_only,
    };
    if let Some(digest) = recall(key) {
        return Ok(digest);
    }
    let read = if data_only {
        of_data(&opened)
    } else {
        of(opened)
    };
    let digest = read.map_err(file("read", path))?;
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
    Ok(hex(digest))
}

fn of_data(opened: &File) -> std::io::Result<String> {
    let length = opened.metadata()?.len();
    let mut digest = Sha256::new();
    digest.update(length.to_be_bytes());
    let mut buffer = vec![0; PORTION];
    let mut at = 0;
    while let Some(start) = next_data(opened, at, length)? {
        // At the bounds of portions, whatever the bounds of the data.
        at = start - start % PORTION as u64;
        let portion =
            &mut buffer[..usize::try_from(length - at).map_or(PORTION, |it| it.min(PORTION))];
        opened.read_exact_at(portion, at)?;
        if portion.iter().any(|byte| *byte != 0) {
            digest.update(at.to_be_bytes());
            digest.update(&*portion);
        }
        at += portion.len() as u64;
    }
    Ok(hex(digest))
}

/// Where the next data is, from `at` on.
fn next_data(opened: &File, at: u64, length: u64) -> std::io::Result<Option<u64>> {
    if at >= length {
        return Ok(None);
    }
    match seek(opened, SeekFrom::Data(at)) {
        Ok(start) => Ok(Some(start)),
        // Nothing but a hole follows.
        Err(Errno::NXIO) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

fn hex(digest: Sha256) -> String {
    let digest = digest.finalize();
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
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
    #[test]
    fn holes_and_zeros_are_the_same_and_all_else_counts() {
        let dir = tempfile::tempdir().unwrap();
        let make = |name: &str, sparse: bool, mark: u8| {
            let path = dir.path().join(name);
            let mut content = vec![0; 3 * PORTION + 100];
            content[PORTION + 7] = mark;
            if sparse {
                let file = File::create(&path).unwrap();
                file.set_len(content.len() as u64).unwrap();
                file.write_all_at(&[mark], PORTION as u64 + 7).unwrap();
            } else {
                std::fs::write(&path, content).unwrap();
            }
            known_data_sha256(&path).unwrap()
        };
        let whole = make("whole", false, 1);
        assert_eq!(make("sparse", true, 1), whole);
        assert_ne!(make("other", true, 2), whole);
        assert_ne!(make("zeros", true, 0), whole);
        let longer = dir.path().join("sparse");
        File::options()
            .write(true)
            .open(&longer)
            .unwrap()
            .set_len(4 * PORTION as u64)
            .unwrap();
        assert_ne!(known_data_sha256(&longer).unwrap(), whole);
    }
}
