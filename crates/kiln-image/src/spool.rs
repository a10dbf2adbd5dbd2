//! Brings a layer into a file that can be read at any place, and learns its digest on the way.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use sha2::{Digest, Sha256};

use crate::decompress::{Compression, decompress};
use crate::limits::{Budget, LimitError};

/// A layer's plain archive.
#[derive(Debug)]
pub(crate) struct Spooled {
    pub(crate) file: File,
    /// SHA-256 of the plain bytes: OCI's diff id. `None` for a file in place, not yet read.
    pub(crate) digest: Option<[u8; 32]>,
}

/// Why a layer could not be spooled.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SpoolError {
    #[error("cannot read or decompress")]
    Read(#[source] io::Error),
    #[error("cannot write the temporary file")]
    Write(#[source] io::Error),
    #[error("more than {0} bytes after decompression")]
    TooLarge(u64),
    #[error(transparent)]
    Limit(#[from] LimitError),
}

const PIECE: usize = 256 << 10;

/// Spools a stream into an unnamed file in `directory`, which vanishes with its last user.
pub(crate) fn spool(
    input: impl Read + Send,
    directory: &Path,
    budget: &Budget,
    done: &dyn Fn(u64),
) -> Result<Spooled, SpoolError> {
    let decoder = budget.limits().decoder_bytes;
    let plain = decompress(input, decoder).map_err(SpoolError::Read)?;
    let mut file = tempfile::tempfile_in(directory).map_err(SpoolError::Write)?;
    let digest = pump(plain, budget, done, |piece| {
        file.write_all(piece).map_err(SpoolError::Write)
    })?;
    Ok(Spooled {
        file,
        digest: Some(digest),
    })
}

/// Uses a regular file in place when it is not compressed, and leaves its digest for later; spools
/// any other.
pub(crate) fn spool_file(
    mut file: File,
    directory: &Path,
    budget: &Budget,
    done: &dyn Fn(u64),
) -> Result<Spooled, SpoolError> {
    let metadata = file.metadata().map_err(SpoolError::Read)?;
    if !metadata.is_file() {
        return spool(file, directory, budget, done);
    }
    let mut head = Vec::new();
    (&file)
        .take(6)
        .read_to_end(&mut head)
        .map_err(SpoolError::Read)?;
    io::Seek::rewind(&mut file).map_err(SpoolError::Read)?;
    if Compression::detect(&head) != Compression::None {
        return spool(file, directory, budget, done);
    }
    let limit = budget.limits().layer_bytes;
    if metadata.len() > limit {
        return Err(SpoolError::TooLarge(limit));
    }
    budget.take_total(metadata.len())?;
    Ok(Spooled { file, digest: None })
}

/// SHA-256 of a whole file, which others may read meanwhile; ends early, with an error, once `stop`
/// is set.
pub(crate) fn digest_in_place(file: &File, stop: &AtomicBool) -> io::Result<[u8; 32]> {
    let mut hash = Sha256::new();
    let mut buffer = vec![0; PIECE];
    let mut position = 0;
    while !stop.load(Ordering::Relaxed) {
        match file.read_at(&mut buffer, position) {
            Ok(0) => return Ok(hash.finalize().into()),
            Ok(length) => {
                hash.update(&buffer[..length]);
                position += length as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Err(io::ErrorKind::Interrupted.into())
}

/// Reads to the end, counts, hashes and hands on.
fn pump(
    mut input: impl Read,
    budget: &Budget,
    done: &dyn Fn(u64),
    mut take: impl FnMut(&[u8]) -> Result<(), SpoolError>,
) -> Result<[u8; 32], SpoolError> {
    let limit = budget.limits().layer_bytes;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; PIECE];
    let mut total = 0u64;
    loop {
        let length = match input.read(&mut buffer) {
            Ok(0) => return Ok(hash.finalize().into()),
            Ok(length) => length,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(SpoolError::Read(error)),
        };
        total += length as u64;
        if total > limit {
            return Err(SpoolError::TooLarge(limit));
        }
        budget.take_total(length as u64)?;
        hash.update(&buffer[..length]);
        take(&buffer[..length])?;
        done(total);
    }
}
