//! The last output of a session, by offset.
//!
//! Owns bytes, which stream each came from, and how far the client has them. Offsets count all
//! output bytes of the session from its start, standard output and error together. Knows nothing
//! of processes or clients.

use std::collections::VecDeque;

use kiln_agent_proto::limits::{CHUNK, OUTPUT_RUNS, OUTPUT_WINDOW};

/// Where output came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// Standard output, or the terminal.
    Stdout,
    /// Standard error.
    Stderr,
}

/// Output that is next for a client.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Piece {
    /// Bytes of one stream.
    Bytes(Source, Vec<u8>),
    /// This many bytes are not there any more.
    Lost(u64),
}

/// The ring. At most [`OUTPUT_WINDOW`] bytes in at most [`OUTPUT_RUNS`] runs.
#[derive(Debug, Default)]
pub(crate) struct Ring {
    bytes: VecDeque<u8>,
    /// Consecutive bytes of one stream, oldest first.
    runs: VecDeque<(Source, u32)>,
    /// Offset of the oldest byte.
    start: u64,
    /// Offset up to which the client has everything.
    acked: u64,
    /// Whether bytes that the client does not have yet are kept at any price.
    hold: bool,
}

impl Ring {
    pub(crate) fn end(&self) -> u64 {
        self.start + self.bytes.len() as u64
    }

    pub(crate) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// From now on nothing is dropped that a client beginning at `offset` lacks.
    pub(crate) fn hold_from(&mut self, offset: u64) {
        self.hold = true;
        self.acked = offset.clamp(self.start, self.end());
    }

    /// From now on the oldest bytes are dropped to make room.
    pub(crate) fn release(&mut self) {
        self.hold = false;
    }

    /// The client has everything before `offset`; `false` for an offset that it cannot have.
    pub(crate) fn ack(&mut self, offset: u64) -> bool {
        if offset > self.end() {
            return false;
        }
        self.acked = self.acked.max(offset);
        true
    }

    /// How many bytes [`push`](Self::push) takes now.
    pub(crate) fn room(&self) -> usize {
        if !self.hold {
            return CHUNK;
        }
        if self.unacked_runs() >= OUTPUT_RUNS {
            return 0;
        }
        let unacked = self.end() - self.acked.max(self.start);
        OUTPUT_WINDOW.saturating_sub(unacked) as usize
    }

    /// Runs that cannot be dropped. Exact only when it matters: near the limit.
    fn unacked_runs(&self) -> usize {
        if self.runs.len() < OUTPUT_RUNS {
            return self.runs.len();
        }
        let mut end = self.start;
        let acked = self.runs.iter().take_while(|(_, len)| {
            end += u64::from(*len);
            end <= self.acked
        });
        self.runs.len() - acked.count()
    }

    /// Takes bytes, at most [`room`](Self::room); drops the oldest to fit them.
    pub(crate) fn push(&mut self, source: Source, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        self.bytes.extend(bytes);
        match self.runs.back_mut() {
            Some((last, len)) if *last == source => *len += bytes.len() as u32,
            _ => self.runs.push_back((source, bytes.len() as u32)),
        }
        let excess = self.bytes.len().saturating_sub(OUTPUT_WINDOW as usize);
        self.drop_oldest(excess);
        while self.runs.len() > OUTPUT_RUNS {
            let first = self.runs.front().map_or(0, |run| run.1);
            self.drop_oldest(first as usize);
        }
    }

    /// Forgets everything; a client that comes later is told what it missed.
    pub(crate) fn clear(&mut self) {
        self.start = self.end();
        self.bytes = VecDeque::new();
        self.runs = VecDeque::new();
    }

    fn drop_oldest(&mut self, count: usize) {
        self.bytes.drain(..count);
        self.start += count as u64;
        let mut left = count as u32;
        while let Some((_, len)) = self.runs.front_mut() {
            if *len > left {
                *len -= left;
                break;
            }
            left -= *len;
            self.runs.pop_front();
        }
    }

    /// What follows at `offset`, at most [`CHUNK`] bytes; `None` when nothing is there yet.
    pub(crate) fn read(&self, offset: u64) -> Option<Piece> {
        if offset < self.start {
            return Some(Piece::Lost(self.start - offset));
        }
        let mut begin = self.start;
        for &(source, len) in &self.runs {
            let end = begin + u64::from(len);
            if offset < end {
                let from = (offset - self.start) as usize;
                let to = ((end - self.start) as usize).min(from + CHUNK);
                return Some(Piece::Bytes(source, self.copy(from, to)));
            }
            begin = end;
        }
        None
    }

    fn copy(&self, from: usize, to: usize) -> Vec<u8> {
        let (front, back) = self.bytes.as_slices();
        let split = front.len();
        let mut out = Vec::with_capacity(to - from);
        out.extend_from_slice(&front[from.min(split)..to.min(split)]);
        out.extend_from_slice(&back[from.saturating_sub(split)..to.saturating_sub(split)]);
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Everything from `offset` on, as (source, byte), and what was lost before.
    fn collect(ring: &Ring, mut offset: u64) -> (u64, Vec<(Source, u8)>) {
        let (mut lost, mut out) = (0, Vec::new());
        while let Some(piece) = ring.read(offset) {
            match piece {
                Piece::Lost(n) => {
                    lost += n;
                    offset += n;
                }
                Piece::Bytes(source, bytes) => {
                    assert!(!bytes.is_empty() && bytes.len() <= CHUNK);
                    offset += bytes.len() as u64;
                    out.extend(bytes.into_iter().map(|b| (source, b)));
                }
            }
        }
        (lost, out)
    }

    #[test]
    fn a_held_ring_takes_no_more_than_the_window() {
        let mut ring = Ring::default();
        ring.hold_from(0);
        let mut pushed = 0;
        while ring.room() > 0 {
            let n = ring.room().min(CHUNK);
            ring.push(Source::Stdout, &vec![1; n]);
            pushed += n as u64;
        }
        assert_eq!(pushed, OUTPUT_WINDOW);
        assert_eq!(ring.start, 0);
        assert!(ring.ack(CHUNK as u64));
        assert_eq!(ring.room(), CHUNK);
        assert!(!ring.ack(OUTPUT_WINDOW + 1));
    }

    #[test]
    fn a_released_ring_drops_the_oldest_and_says_how_much() {
        let mut ring = Ring::default();
        for n in 0..=OUTPUT_WINDOW as usize / CHUNK {
            ring.push(Source::Stderr, &vec![n as u8; CHUNK]);
        }
        let (lost, kept) = collect(&ring, 0);
        assert_eq!(lost, CHUNK as u64);
        assert_eq!(kept.len() as u64, OUTPUT_WINDOW);
        assert_eq!(kept[0], (Source::Stderr, 1));
    }

    #[test]
    fn the_number_of_runs_is_bounded() {
        let mut ring = Ring::default();
        ring.hold_from(0);
        let mut n = 0;
        while ring.room() > 0 {
            let source = [Source::Stdout, Source::Stderr][n % 2];
            ring.push(source, b"x");
            n += 1;
        }
        assert_eq!(n, OUTPUT_RUNS);
        assert!(ring.ack(1));
        assert!(ring.room() > 0);
        ring.release();
        for n in 0..OUTPUT_RUNS * 2 {
            ring.push([Source::Stdout, Source::Stderr][n % 2], b"y");
        }
        assert!(ring.runs.len() <= OUTPUT_RUNS);
    }

    proptest! {
        #[test]
        fn what_is_kept_is_the_end_of_what_was_pushed(
            pushes in prop::collection::vec((any::<bool>(), 0usize..70_000, any::<u8>()), 0..20),
            from in 0u64..1_000_000,
        ) {
            let mut ring = Ring::default();
            let mut all = Vec::new();
            for (err, len, byte) in pushes {
                let source = if err { Source::Stderr } else { Source::Stdout };
                for piece in vec![byte; len].chunks(CHUNK) {
                    ring.push(source, piece);
                    all.extend(piece.iter().map(|&b| (source, b)));
                }
            }
            prop_assert_eq!(ring.end(), all.len() as u64);
            let from = from.min(ring.end());
            let (lost, kept) = collect(&ring, from);
            prop_assert_eq!(lost, ring.start.saturating_sub(from));
            prop_assert_eq!(&kept[..], &all[(from + lost) as usize..]);
        }
    }
}
