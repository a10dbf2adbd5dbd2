//! Whatever bytes either side gets: through both handshake scanners, then frames and messages.
//! The first byte says in which pieces they come; the pieces must not matter.
#![no_main]

use kiln_agent_proto::frame::Decoder;
use kiln_agent_proto::handshake::{AckScanner, HelloScanner, Step};
use kiln_agent_proto::message::{Event, FileChange, PortData, Reply, Request, SessionInput, SessionOutput};
use libfuzzer_sys::fuzz_target;
use prost::Message;

fuzz_target!(|data: &[u8]| {
    let Some((&step, data)) = data.split_first() else {
        return;
    };
    let step = usize::from(step).max(1);
    host_handshake(data, step);
    agent_handshake(data, step);
    assert_eq!(frames(data, step), frames(data, data.len().max(1)));
});

fn host_handshake(data: &[u8], step: usize) {
    let mut scanner = AckScanner::new(1);
    for piece in data.chunks(step) {
        if let Some(used) = scanner.push(piece) {
            assert!(used <= piece.len());
            return;
        }
    }
}

fn agent_handshake(data: &[u8], step: usize) {
    let mut scanner = HelloScanner::default();
    for piece in data.chunks(step) {
        if scanner.push(piece) == Step::Session {
            assert!(!scanner.into_session().is_empty());
            return;
        }
    }
}

/// All payloads, and whether the stream was found broken.
fn frames(data: &[u8], step: usize) -> (Vec<Vec<u8>>, bool) {
    let mut decoder = Decoder::default();
    let mut payloads = Vec::new();
    for piece in data.chunks(step) {
        decoder.push(piece);
        loop {
            match decoder.next_frame() {
                Ok(Some(payload)) => {
                    messages(payload);
                    payloads.push(payload.to_vec());
                }
                Ok(None) => break,
                Err(_) => return (payloads, true),
            }
        }
    }
    (payloads, false)
}

/// A message that is understood can be said again, and means the same.
fn messages(payload: &[u8]) {
    fn check<M: Message + Default + PartialEq>(payload: &[u8]) {
        if let Ok(message) = M::decode(payload) {
            let again = M::decode(message.encode_to_vec().as_slice());
            assert!(again.is_ok_and(|again| again == message));
        }
    }
    check::<Request>(payload);
    check::<Reply>(payload);
    check::<SessionInput>(payload);
    check::<SessionOutput>(payload);
    check::<Event>(payload);
    check::<PortData>(payload);
    check::<FileChange>(payload);
}
