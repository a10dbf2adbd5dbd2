//! Writing the image file from front to back in large pieces.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use crate::content::{ContentError, Reader};

const BUFFER: usize = 1 << 20;

/// Why a copy stopped.
pub(super) enum CopyError {
    Write(io::Error),
    Read(ContentError),
}

/// A write position with a buffer before it. What is skipped stays a hole of the image file.
pub(super) struct Sink<'a> {
    file: &'a File,
    buffer: Vec<u8>,
    /// Where the buffer's first byte goes.
    position: u64,
}

impl<'a> Sink<'a> {
    pub(super) fn new(file: &'a File) -> Sink<'a> {
        Sink {
            file,
            buffer: Vec::with_capacity(BUFFER),
            position: 0,
        }
    }

    pub(super) fn flush(&mut self) -> io::Result<()> {
        self.file.write_all_at(&self.buffer, self.position)?;
        self.position += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }

    /// Goes on at `position`; small gaps are filled with zeros instead of starting a new write.
    pub(super) fn seek(&mut self, position: u64) -> io::Result<()> {
        const SMALL: u64 = 4096;
        let current = self.position + self.buffer.len() as u64;
        let gap = position.wrapping_sub(current);
        if gap < SMALL && gap as usize <= BUFFER - self.buffer.len() {
            self.buffer.resize(self.buffer.len() + gap as usize, 0);
        } else {
            self.flush()?;
            self.position = position;
        }
        Ok(())
    }

    pub(super) fn write(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let (now, later) = bytes.split_at(self.room()?.min(bytes.len()));
            self.buffer.extend_from_slice(now);
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
            let room = self.room().map_err(CopyError::Write)?;
            let piece = usize::try_from(length).map_or(room, |length| length.min(room));
            let start = self.buffer.len();
            self.buffer.resize(start + piece, 0);
            reader
                .read_at(&mut self.buffer[start..], position)
                .map_err(CopyError::Read)?;
            position += piece as u64;
            length -= piece as u64;
        }
        Ok(())
    }

    fn room(&mut self) -> io::Result<usize> {
        if self.buffer.len() >= BUFFER {
            self.flush()?;
        }
        Ok(BUFFER - self.buffer.len())
    }
}
