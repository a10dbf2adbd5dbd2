//! Brings a layer into a file that can be read at any place, and learns its digest on the way.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;

use crate::decompress::{Compression, decompress};
use crate::hashing::Hashing;
use crate::limits::{Budget, LimitError};

/// A layer's plain archive.
#[derive(Debug)]
pub(crate) struct Spooled {
    pub(crate) file: File,
    /// Digest of the plain bytes. `None` for a file in place, not yet read.
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
/// Read ahead of the hash.
const PIECES: usize = 4;

/// Spools a stream into an unnamed file in `directory`, which vanishes with its last user.
pub(crate) fn spool(
    input: impl Read + Send,
    directory: &Path,
    hashing: Hashing,
    budget: &Budget,
    done: &dyn Fn(u64),
) -> Result<Spooled, SpoolError> {
    let decoder = budget.limits().decoder_bytes;
    let plain = decompress(input, decoder).map_err(SpoolError::Read)?;
    let mut file = tempfile::tempfile_in(directory).map_err(SpoolError::Write)?;
    let digest = pump(plain, hashing, budget, done, |piece| file.write_all(piece))?;
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
    hashing: Hashing,
    budget: &Budget,
    done: &dyn Fn(u64),
) -> Result<Spooled, SpoolError> {
    let metadata = file.metadata().map_err(SpoolError::Read)?;
    if !metadata.is_file() {
        return spool(file, directory, hashing, budget, done);
    }
    let mut head = Vec::new();
    (&file)
        .take(6)
        .read_to_end(&mut head)
        .map_err(SpoolError::Read)?;
    io::Seek::rewind(&mut file).map_err(SpoolError::Read)?;
    if Compression::detect(&head) != Compression::None {
        return spool(file, directory, hashing, budget, done);
    }
    let limit = budget.limits().layer_bytes;
    if metadata.len() > limit {
        return Err(SpoolError::TooLarge(limit));
    }
    budget.take_total(metadata.len())?;
    Ok(Spooled { file, digest: None })
}

/// Digest of a whole file, which others may read meanwhile; ends early, with an error, once `stop`
/// is set.
pub(crate) fn digest_in_place(
    file: &File,
    hashing: Hashing,
    stop: &AtomicBool,
) -> io::Result<[u8; 32]> {
    let mut hash = hashing.start();
    read_ahead::<io::Error>(Positioned { file, position: 0 }, |piece| {
        hash.update(piece);
        if stop.load(Ordering::Relaxed) {
            return Err(io::ErrorKind::Interrupted.into());
        }
        Ok(())
    })?;
    Ok(hash.finish())
}

/// Reads a file without moving its offset, which others use.
struct Positioned<'a> {
    file: &'a File,
    position: u64,
}

impl Read for Positioned<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.file.read_at(buffer, self.position)?;
        self.position += length as u64;
        Ok(length)
    }
}

/// Reads (and decompresses) to the end on a thread of its own, while `take` gets the pieces in
/// order on this one.
fn read_ahead<E: From<io::Error>>(
    mut input: impl Read + Send,
    mut take: impl FnMut(&[u8]) -> Result<(), E>,
) -> Result<(), E> {
    let (filled, pieces) = channel::<io::Result<(Vec<u8>, usize)>>();
    let (give_back, empty) = channel::<Vec<u8>>();
    for _ in 0..PIECES {
        let _ = give_back.send(vec![0; PIECE]);
    }
    // Both ends of this side go with the closure: a reader that waits for a piece must wake up.
    std::thread::scope(move |scope| {
        std::thread::Builder::new()
            .name("image-reader".into())
            .spawn_scoped(scope, move || {
                for mut piece in empty {
                    let read = match input.read(&mut piece) {
                        Ok(0) => return,
                        Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok((piece, 0)),
                        read => read.map(|length| (piece, length)),
                    };
                    if filled.send(read).is_err() {
                        return;
                    }
                }
            })?;
        for piece in pieces {
            let (piece, length) = piece?;
            take(&piece[..length])?;
            // The reader may have come to the end already.
            let _ = give_back.send(piece);
        }
        Ok(())
    })
}

/// Reads to the end, counts, hashes and hands on.
fn pump(
    input: impl Read + Send,
    hashing: Hashing,
    budget: &Budget,
    done: &dyn Fn(u64),
    mut take: impl FnMut(&[u8]) -> io::Result<()>,
) -> Result<[u8; 32], SpoolError> {
    let limit = budget.limits().layer_bytes;
    let mut hash = hashing.start();
    let mut total = 0u64;
    read_ahead(input, |piece| {
        total += piece.len() as u64;
        if total > limit {
            return Err(SpoolError::TooLarge(limit));
        }
        budget.take_total(piece.len() as u64)?;
        hash.update(piece);
        take(piece).map_err(SpoolError::Write)?;
        done(total);
        Ok(())
    })?;
    Ok(hash.finish())
}

impl From<io::Error> for SpoolError {
    fn from(error: io::Error) -> SpoolError {
        SpoolError::Read(error)
    }
}
