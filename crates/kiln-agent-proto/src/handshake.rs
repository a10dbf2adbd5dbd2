//! How the two ends agree where a session begins, on a stream without edges.
//!
//! A virtio-serial port does not tell the guest that the host's end was closed and opened again
//! (after a restore, or when a daemon took over), so bytes of an old session can meet a new one.
//! The host therefore sends a *hello* with a fresh nonce; the agent acknowledges the last hello
//! it sees, and the session begins behind it.
//!
//! When no acknowledgement comes the host tries again with a new nonce, behind [`FILLER`]: that
//! completes whatever frame of an old session the agent still waits for, and then is an illegal
//! version byte to it, so the old session dies. Between the acknowledged hello and the session
//! the agent skips filler and acknowledges further hellos.

/// Bytes of a hello or an acknowledgement.
pub const TOKEN: usize = 16;

/// How much filler a repeated hello follows: more than the largest frame of the multiplexer.
pub const FILLER: usize = 64 * 1024;

/// The filler: no multiplexer frame begins with it.
pub const FILLER_BYTE: u8 = 0xff;

const HELLO: [u8; 8] = *b"\xff\xfeKLHELO";
const ACK: [u8; 8] = *b"\xff\xfeKLACK1";

/// The host's hello.
#[must_use]
pub fn hello(nonce: u64) -> [u8; TOKEN] {
    token(HELLO, nonce)
}

/// The agent's acknowledgement.
#[must_use]
pub fn ack(nonce: u64) -> [u8; TOKEN] {
    token(ACK, nonce)
}

/// What the host sends when an acknowledgement is overdue.
#[must_use]
pub fn repeated_hello(nonce: u64) -> Vec<u8> {
    let mut bytes = vec![FILLER_BYTE; FILLER];
    bytes.extend_from_slice(&hello(nonce));
    bytes
}

fn token(kind: [u8; 8], nonce: u64) -> [u8; TOKEN] {
    let mut bytes = [0; TOKEN];
    bytes[..8].copy_from_slice(&kind);
    bytes[8..].copy_from_slice(&nonce.to_le_bytes());
    bytes
}

/// The host's side: finds the acknowledgement of one nonce and drops everything before it.
#[derive(Debug)]
pub struct AckScanner {
    wanted: [u8; TOKEN],
    tail: Vec<u8>,
}

impl AckScanner {
    /// Waits for the acknowledgement of `nonce`.
    #[must_use]
    pub fn new(nonce: u64) -> Self {
        Self {
            wanted: ack(nonce),
            tail: Vec::with_capacity(TOKEN),
        }
    }

    /// Takes bytes. When the acknowledgement is in, gives back how many of `bytes` belong to the
    /// handshake; the session begins behind them.
    pub fn push(&mut self, bytes: &[u8]) -> Option<usize> {
        let held = self.tail.len();
        self.tail.extend_from_slice(bytes);
        let found = self.tail.windows(TOKEN).position(|w| w == self.wanted);
        if let Some(at) = found {
            return Some((at + TOKEN).saturating_sub(held));
        }
        keep_tail(&mut self.tail);
        None
    }
}

/// What the agent has to do after [`HelloScanner::push`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing: read on.
    Wait,
    /// Send the acknowledgement of this nonce, then read on.
    Acknowledge(u64),
    /// The session has begun. Its first bytes are [`HelloScanner::into_session`].
    Session,
}

/// The agent's side: finds the last hello, then the first byte of the session.
#[derive(Debug, Default)]
pub struct HelloScanner {
    tail: Vec<u8>,
    acknowledged: bool,
}

impl HelloScanner {
    /// Takes bytes and says what to do about them.
    ///
    /// A host starts its session only when it has the acknowledgement, so a hello that is seen
    /// after one was acknowledged means that the acknowledgement came too late: it is
    /// acknowledged in turn.
    pub fn push(&mut self, bytes: &[u8]) -> Step {
        self.tail.extend_from_slice(bytes);
        if self.acknowledged && self.begins_session() {
            return Step::Session;
        }
        if let Some((end, nonce)) = last_hello(&self.tail) {
            self.tail.drain(..end);
            self.acknowledged = true;
            return Step::Acknowledge(nonce);
        }
        if self.acknowledged {
            return self.skip_filler();
        }
        keep_tail(&mut self.tail);
        Step::Wait
    }

    /// The bytes of the session that were read with the handshake.
    #[must_use]
    pub fn into_session(self) -> Vec<u8> {
        self.tail
    }

    fn begins_session(&self) -> bool {
        self.tail.first().is_some_and(|&byte| byte != FILLER_BYTE)
    }

    /// Drops filler, but not what may be the beginning of another hello.
    fn skip_filler(&mut self) -> Step {
        let filler = self.tail.iter().take_while(|&&b| b == FILLER_BYTE).count();
        self.tail.drain(..filler.saturating_sub(1));
        if self.tail.len() <= 1 || hello_prefix(&self.tail) {
            return Step::Wait;
        }
        self.tail.remove(0);
        Step::Session
    }
}

fn hello_prefix(bytes: &[u8]) -> bool {
    let n = bytes.len().min(HELLO.len());
    bytes[..n] == HELLO[..n]
}

fn last_hello(bytes: &[u8]) -> Option<(usize, u64)> {
    let mut found = None;
    let mut at = 0;
    while let Some(window) = bytes[at..].first_chunk::<TOKEN>() {
        let (kind, nonce) = window.split_at(HELLO.len());
        if kind == HELLO {
            let nonce = nonce.iter().rev().fold(0, |n, &b| n << 8 | u64::from(b));
            found = Some((at + TOKEN, nonce));
            at += TOKEN;
        } else {
            at += 1;
        }
    }
    found
}

/// Keeps only what can still become part of a token.
fn keep_tail(buffer: &mut Vec<u8>) {
    let drop = buffer.len().saturating_sub(TOKEN - 1);
    buffer.drain(..drop);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Feeds `wire` in pieces of `step` bytes; gives the acknowledged nonces and the session.
    fn agent(wire: &[u8], step: usize) -> (Vec<u64>, Option<Vec<u8>>) {
        let mut scanner = HelloScanner::default();
        let mut acks = Vec::new();
        let mut pieces = wire.chunks(step);
        while let Some(piece) = pieces.next() {
            match scanner.push(piece) {
                Step::Wait => {}
                Step::Acknowledge(nonce) => acks.push(nonce),
                Step::Session => {
                    let mut session = scanner.into_session();
                    pieces.for_each(|p| session.extend_from_slice(p));
                    return (acks, Some(session));
                }
            }
        }
        (acks, None)
    }

    #[test]
    fn golden_bytes() {
        assert_eq!(
            hello(0x0102_0304_0506_0708),
            *b"\xff\xfeKLHELO\x08\x07\x06\x05\x04\x03\x02\x01"
        );
        assert_eq!(ack(1), *b"\xff\xfeKLACK1\x01\0\0\0\0\0\0\0");
        let repeated = repeated_hello(1);
        assert_eq!(repeated.len(), FILLER + TOKEN);
        assert!(repeated[..FILLER].iter().all(|&b| b == 0xff));
    }

    #[test]
    fn a_hello_that_came_in_one_read_with_a_session_waits_for_the_next_byte() {
        let mut scanner = HelloScanner::default();
        assert_eq!(scanner.push(&hello(7)), Step::Acknowledge(7));
        assert_eq!(scanner.push(b"\0\x01"), Step::Session);
        assert_eq!(scanner.into_session(), b"\0\x01");
    }

    #[test]
    fn the_last_of_several_hellos_is_acknowledged() {
        let wire = [hello(1).as_slice(), &repeated_hello(2)].concat();
        let mut scanner = HelloScanner::default();
        assert_eq!(scanner.push(&wire), Step::Acknowledge(2));
    }

    #[test]
    fn a_late_acknowledgement_is_repeated_for_the_next_hello() {
        let mut scanner = HelloScanner::default();
        assert_eq!(scanner.push(&hello(1)), Step::Acknowledge(1));
        assert_eq!(scanner.push(&[FILLER_BYTE; 100]), Step::Wait);
        assert_eq!(scanner.push(&hello(2)), Step::Acknowledge(2));
        assert_eq!(scanner.push(b"\0"), Step::Session);
    }

    #[test]
    fn an_old_acknowledgement_is_not_taken_for_a_new_one() {
        let mut scanner = AckScanner::new(2);
        assert_eq!(scanner.push(&ack(1)), None);
        assert_eq!(scanner.push(&ack(2)), Some(TOKEN));
    }

    proptest! {
        #[test]
        fn the_host_finds_its_acknowledgement_in_any_garbage(
            garbage in prop::collection::vec(any::<u8>(), 0..200),
            nonce: u64,
            session in prop::collection::vec(any::<u8>(), 0..50),
            step in 1usize..40,
        ) {
            let wire = [&garbage[..], &ack(nonce), &session].concat();
            let mut scanner = AckScanner::new(nonce);
            let mut rest = None;
            let mut fed = 0;
            for piece in wire.chunks(step) {
                if let Some(used) = scanner.push(piece) {
                    rest = Some(wire[fed + used..].to_vec());
                    break;
                }
                fed += piece.len();
            }
            prop_assert_eq!(rest, Some(session));
        }

        #[test]
        fn the_agent_finds_the_hello_in_any_garbage(
            garbage in prop::collection::vec(any::<u8>(), 0..200),
            nonce: u64,
            session in prop::collection::vec(any::<u8>(), 0..50),
            step in 1usize..40,
        ) {
            // The host waits for the acknowledgement before it sends a byte of the session.
            let mut wire = [&garbage[..], &hello(nonce)].concat();
            wire.resize(wire.len().next_multiple_of(step), FILLER_BYTE);
            wire.push(0);
            wire.extend_from_slice(&session);
            let (acks, rest) = agent(&wire, step);
            prop_assert_eq!(acks.last(), Some(&nonce));
            let expected: Vec<u8> = std::iter::once(0).chain(session).collect();
            prop_assert_eq!(rest, Some(expected));
        }

        #[test]
        fn garbage_is_not_kept(
            garbage in prop::collection::vec(any::<u8>(), 0..2000),
            step in 1usize..300,
        ) {
            let mut scanner = HelloScanner::default();
            let mut host = AckScanner::new(3);
            for piece in garbage.chunks(step) {
                scanner.push(piece);
                host.push(piece);
                prop_assert!(scanner.tail.len() < TOKEN);
                prop_assert!(host.tail.len() < TOKEN);
            }
        }
    }
}
