//! Writing the image file from front to back in large aligned pieces: one is filled while a thread
//! writes the others, past the page cache where the filesystem lets it. An image is read by guests
//! later and elsewhere; filling the host's memory with it now would cost more than writing it.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::Scope;

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;

use super::{BLOCK, BLOCK_SIZE};
use crate::content::{ContentError, Reader};

/// Large enough that a disk does not notice where one ends.
const PIECE: usize = 2 << 20;
/// One is filled, one written, and one waits for whoever is faster.
const PIECES: usize = 3;

/// Why a copy stopped.
pub(super) enum CopyError {
    Write(io::Error),
    Read(ContentError),
}

/// Memory for one write, aligned as direct writes ask for.
struct Piece {
    memory: Vec<u8>,
    /// Where in `memory` the aligned part begins.
    start: usize,
    length: usize,
    /// Where the first byte goes: the start of a block.
    position: u64,
}

impl Piece {
    fn new() -> Piece {
        let memory = vec![0; PIECE + BLOCK_SIZE];
        let start = memory.as_ptr().align_offset(BLOCK_SIZE);
        Piece {
            memory,
            // `align_offset` may give up, by its contract; writes are then not direct.
            start: start.min(BLOCK_SIZE),
            length: 0,
            position: 0,
        }
    }

    fn end(&self) -> u64 {
        self.position + self.length as u64
    }

    fn bytes(&self) -> &[u8] {
        &self.memory[self.start..self.start + self.length]
    }

    /// What is not filled yet.
    fn room(&mut self) -> &mut [u8] {
        &mut self.memory[self.start + self.length..self.start + PIECE]
    }

    /// Adds up to `length` zeros; says how many.
    fn fill(&mut self, length: usize) -> usize {
        let room = self.room();
        let length = length.min(room.len());
        room[..length].fill(0);
        self.length += length;
        length
    }
}

/// A write position that only moves forward. What is skipped stays a hole of the image file.
pub(super) struct Sink {
    filled: Sender<Piece>,
    /// Written pieces, to be filled again.
    written: Receiver<io::Result<Piece>>,
    current: Piece,
}

impl Sink {
    /// Starts the thread that writes to `file`, which is empty; `direct` asks for writes past the
    /// page cache.
    pub(super) fn start<'scope, 'file: 'scope>(
        scope: &'scope Scope<'scope, '_>,
        file: &'file File,
        direct: bool,
    ) -> io::Result<Sink> {
        let (filled, to_write) = channel::<Piece>();
        let (give_back, written) = channel();
        for _ in 1..PIECES {
            // The receiver lives in this function still.
            let _ = give_back.send(Ok(Piece::new()));
        }
        std::thread::Builder::new()
            .name("image-writer".into())
            .spawn_scoped(scope, move || {
                let mut output = Output::new(file, direct);
                for piece in to_write {
                    let result = output.write(piece.bytes(), piece.position);
                    if give_back.send(result.map(|()| piece)).is_err() {
                        break;
                    }
                }
            })?;
        Ok(Sink {
            filled,
            written,
            current: Piece::new(),
        })
    }

    /// Hands the piece over, padded to whole blocks, and goes on at the block `position`.
    fn flush(&mut self, position: u64) -> io::Result<()> {
        if self.current.length > 0 {
            let next = self.written.recv().map_err(|_| gone())??;
            let mut full = std::mem::replace(&mut self.current, next);
            full.fill(full.length.next_multiple_of(BLOCK_SIZE) - full.length);
            self.filled.send(full).map_err(|_| gone())?;
        }
        self.current.length = 0;
        self.current.position = position;
        Ok(())
    }

    /// Waits until everything is written.
    pub(super) fn finish(mut self) -> io::Result<()> {
        self.flush(0)?;
        drop(self.filled);
        self.written.iter().try_for_each(|piece| piece.map(drop))
    }

    /// Goes on at `position`; small gaps are filled with zeros instead of starting a new write.
    pub(super) fn seek(&mut self, position: u64) -> io::Result<()> {
        let current = self.current.end();
        // Going back would put padding over what is there.
        let mut gap = position
            .checked_sub(current)
            .ok_or(io::ErrorKind::InvalidInput)?;
        if gap >= BLOCK {
            self.flush(position / BLOCK * BLOCK)?;
            gap = position % BLOCK;
        }
        while gap > 0 {
            self.make_room()?;
            gap -= self.current.fill(gap as usize) as u64;
        }
        Ok(())
    }

    pub(super) fn write(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            self.make_room()?;
            let room = self.current.room();
            let (now, later) = bytes.split_at(bytes.len().min(room.len()));
            room[..now.len()].copy_from_slice(now);
            self.current.length += now.len();
            bytes = later;
        }
        Ok(())
    }

    /// Copies `length` bytes of `reader` from `position` on.
    pub(super) fn copy(
        &mut self,
        reader: &Reader<'_>,
        mut position: u64,
        mut length: u64,
    ) -> Result<(), CopyError> {
        while length > 0 {
            self.make_room().map_err(CopyError::Write)?;
            let room = self.current.room();
            let size = usize::try_from(length).map_or(room.len(), |length| length.min(room.len()));
            reader
                .read_at(&mut room[..size], position)
                .map_err(CopyError::Read)?;
            self.current.length += size;
            position += size as u64;
            length -= size as u64;
        }
        Ok(())
    }

    fn make_room(&mut self) -> io::Result<()> {
        if self.current.length == PIECE {
            self.flush(self.current.end())?;
        }
        Ok(())
    }
}

/// The writing thread ended early: it panicked.
fn gone() -> io::Error {
    io::ErrorKind::BrokenPipe.into()
}

/// The image file, written directly for as long as its filesystem agrees.
struct Output<'a> {
    file: &'a File,
    direct: bool,
}

impl Output<'_> {
    fn new(file: &File, direct: bool) -> Output<'_> {
        Output {
            file,
            direct: direct && set_direct(file, true).is_ok(),
        }
    }

    fn write(&mut self, bytes: &[u8], position: u64) -> io::Result<()> {
        match self.file.write_all_at(bytes, position) {
            // Other alignment asked for, or a short write before this one. The cache takes it.
            Err(error)
                if self.direct && error.raw_os_error() == Some(Errno::INVAL.raw_os_error()) =>
            {
                set_direct(self.file, false)?;
                self.direct = false;
                self.file.write_all_at(bytes, position)
            }
            other => other,
        }
    }
}

impl Drop for Output<'_> {
    fn drop(&mut self) {
        // What follows is not aligned. Cannot fail where it could be set.
        if self.direct {
            let _ = set_direct(self.file, false);
        }
    }
}

fn set_direct(file: &File, direct: bool) -> rustix::io::Result<()> {
    let mut flags = fcntl_getfl(file)?;
    flags.set(OFlags::DIRECT, direct);
    fcntl_setfl(file, flags)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Writes pieces of these lengths with these gaps between them; returns what should be there.
    fn write(file: &File, direct: bool, pieces: &[(u64, usize)]) -> io::Result<Vec<u8>> {
        let mut expected = Vec::new();
        std::thread::scope(|scope| {
            let mut sink = Sink::start(scope, file, direct)?;
            for (number, (gap, length)) in (1u8..).zip(pieces) {
                expected.resize(expected.len() + *gap as usize, 0);
                sink.seek(expected.len() as u64)?;
                let bytes = vec![number; *length];
                sink.write(&bytes)?;
                expected.extend(bytes);
            }
            sink.finish()
        })?;
        Ok(expected)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(40))]

        #[test]
        fn what_is_written_is_there_and_nothing_else(
            pieces in proptest::collection::vec((0u64..20_000, 0usize..900_000), 0..12),
            direct: bool,
        ) {
            let file = tempfile::tempfile_in(std::env::current_dir().unwrap()).unwrap();
            let expected = write(&file, direct, &pieces).unwrap();
            let mut found = vec![0; file.metadata().unwrap().len() as usize];
            file.read_exact_at(&mut found, 0).unwrap();
            prop_assert!(found.len() < expected.len().next_multiple_of(BLOCK_SIZE) + 1);
            found.resize(expected.len().max(found.len()), 0);
            prop_assert!(found[..expected.len()] == expected);
            prop_assert!(found[expected.len()..].iter().all(|byte| *byte == 0));
            // Ordinary writes work again.
            file.write_all_at(b"x", 1).unwrap();
        }
    }

    #[test]
    fn going_back_is_refused() {
        let file = tempfile::tempfile().unwrap();
        std::thread::scope(|scope| {
            let mut sink = Sink::start(scope, &file, false).unwrap();
            sink.write(b"xx").unwrap();
            let error = sink.seek(1).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        });
    }

    #[test]
    fn the_writers_errors_arrive() {
        let name = tempfile::NamedTempFile::new().unwrap();
        let read_only = File::open(name.path()).unwrap();
        for pieces in [&[(0, 10)][..], &[(0, 9 << 20)]] {
            let error = write(&read_only, false, pieces).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(Errno::BADF.raw_os_error()));
        }
    }
}
