//! Whatever QEMU, or who sits in its place, says on the control socket: the same lines however
//! they arrive, and never a panic.
#![no_main]

use kiln_vmm::qemu::qmp::{LineSplitter, Message};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (usize, &[u8])| {
    let (cut, bytes) = input;
    let whole = lines(bytes, bytes.len().max(1));
    let pieces = lines(bytes, cut % 64 + 1);
    assert_eq!(whole, pieces);
    for line in whole {
        let _ = Message::parse(&line);
    }
});

fn lines(bytes: &[u8], size: usize) -> Vec<Vec<u8>> {
    let mut splitter = LineSplitter::default();
    let mut lines = Vec::new();
    for piece in bytes.chunks(size) {
        splitter.push(piece);
        while let Ok(Some(line)) = splitter.next_line() {
            lines.push(line);
        }
    }
    lines
}
