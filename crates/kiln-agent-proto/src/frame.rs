//! Frames: a little-endian `u32` length, then that many bytes.
//!
//! One stream of the multiplexed connection is a sequence of frames. A length above
//! [`MAX_PAYLOAD`] ends the stream before anything is allocated for it.

use std::io;

use futures_util::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use prost::Message;

/// Largest payload of a frame.
pub const MAX_PAYLOAD: usize = 64 * 1024;

const HEADER: usize = 4;
/// What one read asks for: a message with a whole [`CHUNK`](crate::limits::CHUNK).
const READ: usize = 33 * 1024;

/// A stream that does not carry frames, or ended inside one.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The announced length is not allowed.
    #[error("a frame of {0} bytes is too long")]
    TooLong(usize),
    /// The payload is not the message that belongs here.
    #[error("a frame holds no valid message")]
    Malformed(#[from] prost::DecodeError),
    /// The stream ended in the middle of a frame.
    #[error("the stream ended inside a frame")]
    Truncated,
    /// The transport failed.
    #[error("the stream broke")]
    Io(#[from] io::Error),
}

/// Appends `message` as one frame.
///
/// # Errors
/// [`FrameError::TooLong`]; `out` is unchanged then.
pub fn encode(message: &impl Message, out: &mut Vec<u8>) -> Result<(), FrameError> {
    let len = message.encoded_len();
    if len > MAX_PAYLOAD {
        return Err(FrameError::TooLong(len));
    }
    out.reserve(HEADER + len);
    out.extend_from_slice(&(len as u32).to_le_bytes());
    message.encode_raw(out);
    Ok(())
}

/// Takes bytes as they come and gives back frames.
#[derive(Debug, Default)]
pub struct Decoder {
    buffer: Vec<u8>,
    start: usize,
}

impl Decoder {
    /// Adds bytes from the stream.
    pub fn push(&mut self, bytes: &[u8]) {
        self.compact();
        self.buffer.extend_from_slice(bytes);
    }

    /// The payload of the next whole frame, if it is there. After an error the stream is lost.
    ///
    /// # Errors
    /// [`FrameError::TooLong`], as soon as the length is known.
    pub fn next_frame(&mut self) -> Result<Option<&[u8]>, FrameError> {
        let rest = &self.buffer[self.start..];
        let Some((header, body)) = rest.split_first_chunk::<HEADER>() else {
            return Ok(None);
        };
        let len = u32::from_le_bytes(*header) as usize;
        if len > MAX_PAYLOAD {
            return Err(FrameError::TooLong(len));
        }
        if body.len() < len {
            return Ok(None);
        }
        let begin = self.start + HEADER;
        self.start = begin + len;
        Ok(Some(&self.buffer[begin..begin + len]))
    }

    /// Whether nothing of an unfinished frame is held.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.start == self.buffer.len()
    }

    fn compact(&mut self) {
        if self.start > 0 {
            self.buffer.drain(..self.start);
            self.start = 0;
        }
    }
}

/// Reads messages from a stream.
#[derive(Debug)]
pub struct FrameReader<R> {
    stream: R,
    decoder: Decoder,
}

impl<R: AsyncRead + Unpin> FrameReader<R> {
    /// Starts at the next byte of `stream`.
    pub fn new(stream: R) -> Self {
        Self {
            stream,
            decoder: Decoder::default(),
        }
    }

    /// The next message; `None` when the stream ended between two frames. Cancel-safe.
    ///
    /// # Errors
    /// Every [`FrameError`]; the stream is lost then.
    pub async fn next<M: Message + Default>(&mut self) -> Result<Option<M>, FrameError> {
        loop {
            if let Some(payload) = self.decoder.next_frame()? {
                return Ok(Some(M::decode(payload)?));
            }
            if !self.fill().await? {
                return if self.decoder.is_empty() {
                    Ok(None)
                } else {
                    Err(FrameError::Truncated)
                };
            }
        }
    }

    /// Reads once, into the decoder's own buffer, so that nothing is lost when cancelled.
    async fn fill(&mut self) -> Result<bool, FrameError> {
        self.decoder.compact();
        let buffer = &mut self.decoder.buffer;
        let len = buffer.len();
        let read = {
            let mut guard = Grown::new(buffer, READ);
            let read = self.stream.read(guard.spare()).await?;
            guard.keep(read);
            read
        };
        debug_assert!(buffer.len() == len + read);
        Ok(read > 0)
    }
}

/// A buffer with room added at its end, which is taken away again when the read is cancelled.
struct Grown<'a> {
    buffer: &'a mut Vec<u8>,
    len: usize,
}

impl<'a> Grown<'a> {
    fn new(buffer: &'a mut Vec<u8>, room: usize) -> Self {
        let len = buffer.len();
        buffer.resize(len + room, 0);
        Self { buffer, len }
    }

    fn spare(&mut self) -> &mut [u8] {
        &mut self.buffer[self.len..]
    }

    fn keep(&mut self, read: usize) {
        self.len += read;
    }
}

impl Drop for Grown<'_> {
    fn drop(&mut self) {
        self.buffer.truncate(self.len);
    }
}

/// Writes messages to a stream.
#[derive(Debug)]
pub struct FrameWriter<W> {
    stream: W,
    pending: Vec<u8>,
    written: usize,
}

impl<W: AsyncWrite + Unpin> FrameWriter<W> {
    /// Writes from here on to `stream`.
    pub fn new(stream: W) -> Self {
        Self {
            stream,
            pending: Vec::new(),
            written: 0,
        }
    }

    /// Adds a message to what [`flush`](Self::flush) will write.
    ///
    /// # Errors
    /// [`FrameError::TooLong`]; nothing was added.
    pub fn queue(&mut self, message: &impl Message) -> Result<(), FrameError> {
        encode(message, &mut self.pending)
    }

    /// Whether everything queued is written.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.pending.is_empty()
    }

    /// Writes what is queued. Cancel-safe: the rest stays queued.
    ///
    /// # Errors
    /// The transport's.
    pub async fn flush(&mut self) -> Result<(), FrameError> {
        while self.written < self.pending.len() {
            let n = self.stream.write(&self.pending[self.written..]).await?;
            if n == 0 {
                return Err(io::Error::from(io::ErrorKind::WriteZero).into());
            }
            self.written += n;
        }
        self.pending.clear();
        self.written = 0;
        self.stream.flush().await?;
        Ok(())
    }

    /// Queues one message and writes it.
    ///
    /// # Errors
    /// As [`queue`](Self::queue) and [`flush`](Self::flush).
    pub async fn send(&mut self, message: &impl Message) -> Result<(), FrameError> {
        self.queue(message)?;
        self.flush().await
    }

    /// Says that nothing follows.
    ///
    /// # Errors
    /// The transport's.
    pub async fn close(&mut self) -> Result<(), FrameError> {
        self.stream.close().await?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn frame(payload: &[u8]) -> Vec<u8> {
        let mut out = (payload.len() as u32).to_le_bytes().to_vec();
        out.extend_from_slice(payload);
        out
    }

    #[test]
    fn an_announced_length_is_refused_before_its_bytes_come() {
        let mut decoder = Decoder::default();
        decoder.push(&(MAX_PAYLOAD as u32 + 1).to_le_bytes());
        assert!(matches!(
            decoder.next_frame(),
            Err(FrameError::TooLong(n)) if n == MAX_PAYLOAD + 1
        ));
    }

    #[test]
    fn a_payload_of_the_largest_size_passes() {
        let mut decoder = Decoder::default();
        decoder.push(&frame(&vec![7; MAX_PAYLOAD]));
        assert_eq!(
            decoder.next_frame().unwrap().map(<[u8]>::len),
            Some(MAX_PAYLOAD)
        );
        assert!(decoder.is_empty());
    }

    proptest! {
        #[test]
        fn frames_survive_any_split(
            payloads in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 0..8),
            step in 1usize..9,
        ) {
            let wire: Vec<u8> = payloads.iter().flat_map(|p| frame(p)).collect();
            let mut decoder = Decoder::default();
            let mut seen = Vec::new();
            for piece in wire.chunks(step) {
                decoder.push(piece);
                while let Some(payload) = decoder.next_frame().unwrap() {
                    seen.push(payload.to_vec());
                }
            }
            prop_assert_eq!(seen, payloads);
            prop_assert!(decoder.is_empty());
        }

        #[test]
        fn garbage_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..400), step in 1usize..50) {
            let mut decoder = Decoder::default();
            for piece in bytes.chunks(step) {
                decoder.push(piece);
                while let Ok(Some(_)) = decoder.next_frame() {}
            }
        }
    }
}
