//! What waits between a client and the agent, within the windows of the protocol.
//!
//! Pure: no tasks, no streams.

use std::collections::VecDeque;

use bytes::{Buf as _, Bytes};
use kiln_agent_proto::limits::{CHUNK, INPUT_FRAMES, INPUT_WINDOW, OUTPUT_RUNS, OUTPUT_WINDOW};
use kiln_agent_proto::message::session_input::Kind;

use super::super::error::GuestError;
use crate::exec::{ExecExit, ExecOutput};

/// Output is acknowledged when so many bytes, or so many pieces, were consumed since.
const ACK_BYTES: u64 = OUTPUT_WINDOW / 4;
const ACK_PIECES: usize = OUTPUT_RUNS / 4;

/// Input that the agent has not confirmed.
#[derive(Debug)]
pub(super) struct InputQueue {
    frames: VecDeque<Kind>,
    /// Count of the first of `frames`.
    first: u64,
    /// How many of `frames` were sent on the present stream.
    sent: usize,
    /// Bytes of standard input ever queued, sent, and taken by the command.
    queued: u64,
    sent_bytes: u64,
    taken: u64,
}

impl InputQueue {
    pub(super) fn new(frames: u64, received: u64, taken: u64) -> Self {
        Self {
            frames: VecDeque::new(),
            first: frames,
            sent: 0,
            queued: received,
            sent_bytes: received,
            taken,
        }
    }

    /// Takes what fits off the front of `bytes`; `false` when nothing does.
    pub(super) fn push_bytes(&mut self, bytes: &mut Bytes) -> bool {
        let window = INPUT_WINDOW.saturating_sub(self.queued - self.taken) as usize;
        let n = bytes.len().min(window).min(CHUNK);
        if n == 0 {
            return false;
        }
        if !self.append(&bytes[..n]) {
            if self.is_full() {
                return false;
            }
            self.frames.push_back(Kind::Stdin(bytes[..n].to_vec()));
        }
        bytes.advance(n);
        self.queued += n as u64;
        true
    }

    /// Small pieces become one, as long as they wait.
    fn append(&mut self, bytes: &[u8]) -> bool {
        let unsent = self.frames.len() > self.sent;
        match self.frames.back_mut() {
            Some(Kind::Stdin(last)) if unsent && last.len() + bytes.len() <= CHUNK => {
                last.extend_from_slice(bytes);
                true
            }
            _ => false,
        }
    }

    /// Queues another input; `false` when there is no room.
    pub(super) fn push(&mut self, kind: &Kind) -> bool {
        if self.is_full() {
            return false;
        }
        self.frames.push_back(kind.clone());
        true
    }

    fn is_full(&self) -> bool {
        self.frames.len() as u64 >= INPUT_FRAMES
    }

    /// The next input to send, which then counts as sent.
    pub(super) fn send_next(&mut self) -> Option<Kind> {
        let kind = self.frames.get(self.sent)?.clone();
        self.sent += 1;
        if let Kind::Stdin(bytes) = &kind {
            self.sent_bytes += bytes.len() as u64;
        }
        Some(kind)
    }

    /// The agent has so many inputs; the command has so many bytes.
    pub(super) fn ack(&mut self, frames: u64, taken: u64) -> Result<(), GuestError> {
        let sent = self.first + self.sent as u64;
        if frames > sent || taken > self.sent_bytes {
            return Err(GuestError::Protocol("it confirms input that was not sent"));
        }
        let confirmed = frames.saturating_sub(self.first) as usize;
        self.frames.drain(..confirmed);
        self.sent -= confirmed;
        self.first += confirmed as u64;
        self.taken = self.taken.max(taken);
        Ok(())
    }

    /// On a new stream: what the agent has is confirmed, everything else is sent again.
    pub(super) fn restart(
        &mut self,
        frames: u64,
        received: u64,
        taken: u64,
    ) -> Result<(), GuestError> {
        if frames < self.first {
            return Err(GuestError::Protocol("it has lost input that it confirmed"));
        }
        self.ack(frames, taken)?;
        let again: u64 = self.frames.iter().take(self.sent).map(stdin_len).sum();
        self.sent = 0;
        self.sent_bytes -= again;
        if received != self.sent_bytes {
            return Err(GuestError::Protocol("its count of the input is wrong"));
        }
        Ok(())
    }
}

fn stdin_len(kind: &Kind) -> u64 {
    match kind {
        Kind::Stdin(bytes) => bytes.len() as u64,
        _ => 0,
    }
}

/// Which stream bytes came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    Stdout,
    Stderr,
}

#[derive(Debug)]
enum Piece {
    Bytes(Source, Vec<u8>),
    Lost(u64),
    Exited(ExecExit),
}

/// Output that the client has not taken.
#[derive(Debug)]
pub(super) struct OutputQueue {
    pieces: VecDeque<Piece>,
    bytes: u64,
    received: u64,
    consumed: u64,
    acked: u64,
    /// Pieces consumed since the last acknowledgement.
    unacked_pieces: usize,
}

impl OutputQueue {
    pub(super) fn new(offset: u64) -> Self {
        Self {
            pieces: VecDeque::new(),
            bytes: 0,
            received: offset,
            consumed: offset,
            acked: offset,
            unacked_pieces: 0,
        }
    }

    /// Offset of the next byte that the agent sends.
    pub(super) fn received(&self) -> u64 {
        self.received
    }

    /// Offset of the next byte that the client gets.
    pub(super) fn consumed(&self) -> u64 {
        self.consumed
    }

    /// Takes bytes from the agent.
    ///
    /// On one stream an agent sends no more than a window beyond what was acknowledged. What an
    /// earlier stream left here comes on top, once: see [`is_over_window`](Self::is_over_window).
    pub(super) fn push(&mut self, source: Source, bytes: Vec<u8>) -> Result<(), GuestError> {
        let len = bytes.len() as u64;
        if self.bytes + len > 2 * OUTPUT_WINDOW || self.pieces.len() > 2 * OUTPUT_RUNS + 64 {
            return Err(GuestError::Protocol(
                "it sends more output than the window allows",
            ));
        }
        self.bytes += len;
        self.received = self.offset_after(len)?;
        match self.pieces.back_mut() {
            Some(Piece::Bytes(last, buffer))
                if *last == source && buffer.len() + bytes.len() <= CHUNK =>
            {
                buffer.extend_from_slice(&bytes);
            }
            _ if bytes.is_empty() => {}
            _ => self.pieces.push_back(Piece::Bytes(source, bytes)),
        }
        Ok(())
    }

    /// The agent has dropped the next `count` bytes.
    pub(super) fn push_lost(&mut self, count: u64) -> Result<(), GuestError> {
        self.received = self.offset_after(count)?;
        let full = self.pieces.len() > 2 * OUTPUT_RUNS + 64;
        match self.pieces.back_mut() {
            Some(Piece::Lost(lost)) => *lost = lost.saturating_add(count),
            _ if full => {
                return Err(GuestError::Protocol("it loses output too often"));
            }
            _ => self.pieces.push_back(Piece::Lost(count)),
        }
        Ok(())
    }

    fn offset_after(&self, count: u64) -> Result<u64, GuestError> {
        let next = self.received.checked_add(count);
        next.ok_or(GuestError::Protocol("it counts beyond all numbers"))
    }

    pub(super) fn push_exit(&mut self, exit: ExecExit) {
        self.pieces.push_back(Piece::Exited(exit));
    }

    /// The next output for the client.
    pub(super) fn pop(&mut self) -> Option<ExecOutput> {
        let piece = self.pieces.pop_front()?;
        self.unacked_pieces += 1;
        Some(match piece {
            Piece::Bytes(source, bytes) => {
                self.bytes -= bytes.len() as u64;
                self.consumed += bytes.len() as u64;
                let bytes = Bytes::from(bytes);
                match source {
                    Source::Stdout => ExecOutput::Stdout(bytes),
                    Source::Stderr => ExecOutput::Stderr(bytes),
                }
            }
            Piece::Lost(count) => {
                self.consumed += count;
                ExecOutput::Lost(count)
            }
            Piece::Exited(exit) => ExecOutput::Exited(exit),
        })
    }

    /// More waits here than one stream may send: the client is behind by a whole break.
    pub(super) fn is_over_window(&self) -> bool {
        self.bytes > OUTPUT_WINDOW || self.pieces.len() > OUTPUT_RUNS
    }

    pub(super) fn ack_is_due(&self) -> bool {
        self.consumed - self.acked.min(self.consumed) >= ACK_BYTES
            || self.unacked_pieces >= ACK_PIECES
    }

    /// The acknowledgement to send, if it is time for one.
    pub(super) fn take_ack(&mut self) -> Option<u64> {
        if !self.ack_is_due() {
            return None;
        }
        self.acked = self.consumed;
        self.unacked_pieces = 0;
        Some(self.acked)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn bytes(n: usize) -> Bytes {
        Bytes::from(vec![7; n])
    }

    #[test]
    fn input_waits_for_the_window() {
        let mut queue = InputQueue::new(0, 0, 0);
        let mut all = bytes(INPUT_WINDOW as usize + 10);
        while queue.push_bytes(&mut all) {}
        assert_eq!(all.len(), 10);
        while queue.send_next().is_some() {}
        queue.ack(1, 10).unwrap();
        assert!(queue.push_bytes(&mut all));
        assert!(all.is_empty());
    }

    #[test]
    fn small_inputs_that_wait_become_one() {
        let mut queue = InputQueue::new(0, 0, 0);
        for _ in 0..5000 {
            assert!(queue.push_bytes(&mut bytes(1)));
        }
        assert_eq!(queue.frames.len(), 1);
    }

    #[test]
    fn the_number_of_inputs_is_bounded() {
        let mut queue = InputQueue::new(0, 0, 0);
        while queue.push(&Kind::Signal(2)) {}
        assert_eq!(queue.frames.len() as u64, INPUT_FRAMES);
        assert!(!queue.push_bytes(&mut bytes(1)));
    }

    #[test]
    fn an_agent_cannot_confirm_what_was_not_sent() {
        let mut queue = InputQueue::new(5, 100, 100);
        assert!(queue.push_bytes(&mut bytes(10)));
        assert!(queue.ack(6, 100).is_err());
        queue.send_next().unwrap();
        assert!(queue.ack(7, 100).is_err());
        assert!(queue.ack(6, 111).is_err());
        assert!(queue.ack(u64::MAX, u64::MAX).is_err());
        queue.ack(6, 110).unwrap();
        assert!(queue.restart(5, 110, 110).is_err());
    }

    #[test]
    fn output_beyond_the_window_is_refused() {
        let mut queue = OutputQueue::new(0);
        let mut taken = 0;
        while queue.push(Source::Stdout, vec![0; CHUNK]).is_ok() {
            taken += CHUNK as u64;
        }
        assert_eq!(taken, 2 * OUTPUT_WINDOW);
        let mut queue = OutputQueue::new(0);
        let mut n = 0;
        while queue
            .push([Source::Stdout, Source::Stderr][n % 2], vec![0])
            .is_ok()
        {
            n += 1;
        }
        assert!(n <= 2 * OUTPUT_RUNS + 65);
        assert!(OutputQueue::new(5).push_lost(u64::MAX).is_err());
    }

    #[test]
    fn tiny_pieces_of_one_stream_become_one() {
        let mut queue = OutputQueue::new(0);
        for _ in 0..CHUNK {
            queue.push(Source::Stderr, vec![1]).unwrap();
        }
        assert_eq!(queue.pieces.len(), 1);
        assert_eq!(queue.pop(), Some(ExecOutput::Stderr(vec![1; CHUNK].into())));
    }

    proptest! {
        /// A stream that breaks anywhere: the agent gets every input once and in order.
        #[test]
        fn input_survives_breaks(
            steps in prop::collection::vec((0u8..4, 1usize..300), 1..80),
        ) {
            let mut queue = InputQueue::new(0, 0, 0);
            let (mut wanted, mut got) = (Vec::new(), Vec::new());
            let (mut frames, mut in_flight) = (0u64, VecDeque::new());
            let mut next = 0u8;
            for (step, n) in steps {
                match step {
                    0 => {
                        let piece: Vec<u8> = (0..n).map(|i| next.wrapping_add(i as u8)).collect();
                        next = next.wrapping_add(n as u8);
                        let mut left = Bytes::from(piece.clone());
                        while queue.push_bytes(&mut left) {}
                        wanted.extend_from_slice(&piece[..piece.len() - left.len()]);
                    }
                    1 => in_flight.extend(queue.send_next()),
                    2 => if let Some(Kind::Stdin(piece)) = in_flight.pop_front() {
                        got.extend(piece);
                        frames += 1;
                        queue.ack(frames, got.len() as u64).unwrap();
                    },
                    _ => {
                        in_flight.clear();
                        let received = got.len() as u64;
                        queue.restart(frames, received, received).unwrap();
                    }
                }
            }
            for kind in in_flight.into_iter().chain(std::iter::from_fn(|| queue.send_next())) {
                if let Kind::Stdin(piece) = kind {
                    got.extend(piece);
                }
            }
            prop_assert_eq!(got, wanted);
        }
    }
}
