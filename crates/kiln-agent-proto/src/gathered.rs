//! A stream whose small writes are gathered until they are flushed, and whose small reads are
//! served from what was read ahead.
//!
//! The multiplexer writes and reads a frame's header and body one after the other. On a virtio port
//! each write is a buffer, a notification of the host, and a wake-up at the other end.
//!
//! It writes before it reads, too, and would never hear the last words of one that is gone. So a
//! write that fails is told to the reader, when there is nothing more to read.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use futures_util::io::{AsyncRead, AsyncWrite};

/// So much is gathered at most: a whole frame of the multiplexer, and as much as a virtio port
/// takes at once.
const LIMIT: usize = 32 * 1024;

/// So much is read ahead at most: the small frames that a command begins and ends with.
const AHEAD: usize = 1024;

/// Gathers what is written, and reads ahead.
#[derive(Debug)]
pub struct Gathered<S> {
    stream: S,
    pending: Vec<u8>,
    written: usize,
    /// What was read and not asked for yet.
    ahead: Box<[u8; AHEAD]>,
    ahead_from: usize,
    ahead_to: usize,
    /// Why nothing can be written any more.
    failed: Option<io::ErrorKind>,
}

impl<S> Gathered<S> {
    /// Gathers what is written to `stream`, and reads ahead of who reads from it.
    pub fn new(stream: S) -> Self {
        Self {
            stream,
            pending: Vec::new(),
            written: 0,
            ahead: Box::new([0; AHEAD]),
            ahead_from: 0,
            ahead_to: 0,
            failed: None,
        }
    }

    /// What was read, or why nothing more can be expected.
    fn or_failure(&self, read: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        match (read, self.failed) {
            (Poll::Pending, Some(failed)) => Poll::Ready(Err(failed.into())),
            (read, _) => read,
        }
    }

    fn take_ahead(&mut self, buffer: &mut [u8]) -> usize {
        let there = &self.ahead[self.ahead_from..self.ahead_to];
        let n = there.len().min(buffer.len());
        buffer[..n].copy_from_slice(&there[..n]);
        self.ahead_from += n;
        n
    }
}

impl<S: AsyncWrite + Unpin> Gathered<S> {
    /// Writes what is pending; what cannot be written any more is forgotten.
    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while self.failed.is_none() && self.written < self.pending.len() {
            let rest = &self.pending[self.written..];
            match ready!(Pin::new(&mut self.stream).poll_write(cx, rest)) {
                Ok(0) => self.failed = Some(io::ErrorKind::WriteZero),
                Ok(n) => self.written += n,
                Err(error) => self.failed = Some(error.kind()),
            }
        }
        self.pending.clear();
        self.written = 0;
        Poll::Ready(())
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Gathered<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        if self.ahead_from == self.ahead_to {
            if buffer.len() >= AHEAD {
                let read = Pin::new(&mut self.stream).poll_read(cx, buffer);
                return self.or_failure(read);
            }
            let Self { stream, ahead, .. } = &mut *self;
            let read = Pin::new(stream).poll_read(cx, &mut ahead[..]);
            let n = ready!(self.or_failure(read))?;
            (self.ahead_from, self.ahead_to) = (0, n);
        }
        Poll::Ready(Ok(self.take_ahead(buffer)))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Gathered<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.pending.len() == LIMIT {
            ready!(self.poll_drain(cx));
        }
        if self.failed.is_some() {
            return Poll::Ready(Ok(bytes.len()));
        }
        let n = bytes.len().min(LIMIT - self.pending.len());
        self.pending.extend_from_slice(&bytes[..n]);
        Poll::Ready(Ok(n))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_drain(cx));
        if self.failed.is_none()
            && let Err(error) = ready!(Pin::new(&mut self.stream).poll_flush(cx))
        {
            self.failed = Some(error.kind());
        }
        Poll::Ready(Ok(()))
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_drain(cx));
        match self.failed {
            Some(failed) => Poll::Ready(Err(failed.into())),
            None => Pin::new(&mut self.stream).poll_close(cx),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt as _;
    use futures_util::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use proptest::prelude::*;

    /// Takes at most so many bytes at a time, and counts the times.
    struct Sink {
        at_once: usize,
        taken: Vec<u8>,
        writes: usize,
    }

    impl AsyncWrite for Sink {
        fn poll_write(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            bytes: &[u8],
        ) -> Poll<io::Result<usize>> {
            let n = bytes.len().min(self.at_once);
            self.taken.extend_from_slice(&bytes[..n]);
            self.writes += 1;
            Poll::Ready(Ok(n))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    fn sink(at_once: usize) -> Gathered<Sink> {
        Gathered::new(Sink {
            at_once,
            taken: Vec::new(),
            writes: 0,
        })
    }

    #[test]
    fn a_header_and_its_body_are_one_write() {
        let mut stream = sink(usize::MAX);
        let frame = async {
            stream.write_all(b"header").await.unwrap();
            stream.write_all(b"body").await.unwrap();
            stream.flush().await.unwrap();
        };
        frame.now_or_never().unwrap();
        assert_eq!(stream.stream.writes, 1);
        assert_eq!(stream.stream.taken, b"headerbody");
    }

    /// Gives at most so many bytes at a time, and counts the times.
    struct Spring {
        at_once: usize,
        bytes: Vec<u8>,
        reads: usize,
    }

    impl AsyncRead for Spring {
        fn poll_read(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            buffer: &mut [u8],
        ) -> Poll<io::Result<usize>> {
            let n = buffer.len().min(self.at_once).min(self.bytes.len());
            buffer[..n].copy_from_slice(&self.bytes[..n]);
            self.bytes.drain(..n);
            self.reads += 1;
            Poll::Ready(Ok(n))
        }
    }

    fn spring(at_once: usize, bytes: &[u8]) -> Gathered<Spring> {
        Gathered::new(Spring {
            at_once,
            bytes: bytes.to_vec(),
            reads: 0,
        })
    }

    #[test]
    fn a_header_and_its_body_are_one_read() {
        let mut stream = spring(usize::MAX, b"headerbody");
        let (mut header, mut body) = ([0; 6], [0; 4]);
        let frame = async {
            stream.read_exact(&mut header).await.unwrap();
            stream.read_exact(&mut body).await.unwrap();
        };
        frame.now_or_never().unwrap();
        assert_eq!((&header, &body), (b"header", b"body"));
        assert_eq!(stream.stream.reads, 1);
    }

    /// Has said something, and is gone.
    struct Gone(Vec<u8>);

    impl AsyncRead for Gone {
        fn poll_read(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
            buffer: &mut [u8],
        ) -> Poll<io::Result<usize>> {
            if self.0.is_empty() {
                return Poll::Pending;
            }
            buffer[0] = self.0.remove(0);
            Poll::Ready(Ok(1))
        }
    }

    impl AsyncWrite for Gone {
        fn poll_write(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
            _: &[u8],
        ) -> Poll<io::Result<usize>> {
            Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_close(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    #[test]
    fn what_one_that_is_gone_has_said_is_read_before_writing_fails() {
        for size in [1, AHEAD] {
            let mut stream = Gathered::new(Gone(b"bye".to_vec()));
            let talk = async {
                for _ in 0..3 {
                    stream.write_all(&[0; 2 * LIMIT]).await.unwrap();
                    stream.flush().await.unwrap();
                }
                let (mut said, mut buffer) = (Vec::new(), vec![0; size]);
                let end = loop {
                    match stream.read(&mut buffer).await {
                        Ok(n) => said.extend_from_slice(&buffer[..n]),
                        Err(error) => break error.kind(),
                    }
                };
                assert_eq!((&said[..], end), (&b"bye"[..], io::ErrorKind::BrokenPipe));
                assert!(stream.close().await.is_err());
                assert!(stream.pending.is_empty());
            };
            talk.now_or_never().unwrap();
        }
    }

    proptest! {
        #[test]
        fn everything_is_read_in_order(
            len in 0usize..10_000,
            at_once in 1usize..5_000,
            sizes in prop::collection::vec(1usize..3_000, 1..8),
        ) {
            let all: Vec<u8> = (0..len).map(|n| (n % 251) as u8).collect();
            let mut stream = spring(at_once, &all);
            let mut read = Vec::new();
            for size in sizes.into_iter().cycle() {
                let mut buffer = vec![0; size];
                match stream.read(&mut buffer).now_or_never().unwrap().unwrap() {
                    0 => break,
                    n => read.extend_from_slice(&buffer[..n]),
                }
            }
            prop_assert_eq!(read, all);
        }

        #[test]
        fn everything_arrives_in_order_and_little_is_held(
            pieces in prop::collection::vec((0usize..50_000, any::<u8>()), 0..8),
            at_once in 1usize..40_000,
        ) {
            let mut stream = sink(at_once);
            let mut all = Vec::new();
            for (len, byte) in pieces {
                let piece = vec![byte; len];
                stream.write_all(&piece).now_or_never().unwrap().unwrap();
                prop_assert!(stream.pending.len() <= LIMIT);
                all.extend(piece);
            }
            stream.close().now_or_never().unwrap().unwrap();
            prop_assert_eq!(stream.stream.taken, all);
        }
    }
}
