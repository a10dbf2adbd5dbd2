//! Messages and attributes as bytes. Pure.

/// Ask for an acknowledgement.
pub(crate) const ACK: u16 = 0x004;
/// Replace what exists.
pub(crate) const REPLACE: u16 = 0x100;
/// Refuse if it exists.
pub(crate) const EXCL: u16 = 0x200;
/// Create if it does not exist.
pub(crate) const CREATE: u16 = 0x400;
/// Add at the end.
pub(crate) const APPEND: u16 = 0x800;
/// List all objects.
pub(crate) const DUMP: u16 = 0x300;

const REQUEST: u16 = 0x001;
const NESTED: u16 = 0x8000;
const TYPE_MASK: u16 = 0x3fff;
const HEADER_LEN: usize = 16;

/// What the sender must know about one message when its answer comes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sent {
    /// What the message does, for the error's text.
    pub(crate) step: &'static str,
    /// An answer will come even when all is well.
    pub(crate) answered: bool,
    /// Errors that the caller does not mind (already gone, already there).
    pub(crate) tolerated: [Option<rustix::io::Errno>; 2],
}

/// Several messages, sent with one system call.
#[derive(Debug, Default)]
pub(crate) struct Batch {
    bytes: Vec<u8>,
    starts: Vec<usize>,
    sent: Vec<Sent>,
    too_long: Option<&'static str>,
}

impl Batch {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// Append a message: its fixed header, then the attributes that `fill` writes.
    pub(crate) fn message(
        &mut self,
        step: &'static str,
        kind: u16,
        flags: u16,
        header: &[u8],
        fill: impl FnOnce(&mut Attributes<'_>),
    ) {
        let start = self.bytes.len();
        self.starts.push(start);
        self.bytes.extend_from_slice(&[0; 4]);
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes
            .extend_from_slice(&(flags | REQUEST).to_ne_bytes());
        self.bytes.extend_from_slice(&[0; 8]);
        self.bytes.extend_from_slice(header);
        let mut too_long = false;
        fill(&mut Attributes {
            bytes: &mut self.bytes,
            too_long: &mut too_long,
        });
        if too_long {
            self.too_long = Some(step);
        }
        let length = u32::try_from(self.bytes.len() - start).unwrap_or(u32::MAX);
        self.bytes[start..start + 4].copy_from_slice(&length.to_ne_bytes());
        pad(&mut self.bytes);
        let answered = flags & ACK != 0 || flags & DUMP == DUMP;
        self.sent.push(Sent {
            step,
            answered,
            tolerated: [None; 2],
        });
    }

    /// Do not mind `errno` as the answer to the last message.
    pub(crate) fn tolerate(&mut self, errno: rustix::io::Errno) {
        let last = self.sent.last_mut();
        let free = last.and_then(|last| last.tolerated.iter_mut().find(|slot| slot.is_none()));
        if let Some(slot) = free {
            *slot = Some(errno);
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.starts.is_empty()
    }

    pub(crate) fn len(&self) -> usize {
        self.starts.len()
    }

    /// The step whose attributes did not fit, if any.
    pub(crate) fn too_long(&self) -> Option<&'static str> {
        self.too_long
    }

    pub(crate) fn sent(&self) -> &[Sent] {
        &self.sent
    }

    /// Number the messages from `first` and give the bytes to send.
    pub(crate) fn numbered(&mut self, first: u32) -> &[u8] {
        let mut sequence = first;
        for &start in &self.starts {
            self.bytes[start + 8..start + 12].copy_from_slice(&sequence.to_ne_bytes());
            sequence = sequence.wrapping_add(1);
        }
        &self.bytes
    }
}

/// Writes attributes at the end of a message.
#[derive(Debug)]
pub(crate) struct Attributes<'a> {
    bytes: &'a mut Vec<u8>,
    too_long: &'a mut bool,
}

/// Attributes without a message; empty if they do not fit any.
pub(crate) fn collected(fill: impl FnOnce(&mut Attributes<'_>)) -> Vec<u8> {
    let (mut bytes, mut too_long) = (Vec::new(), false);
    fill(&mut Attributes {
        bytes: &mut bytes,
        too_long: &mut too_long,
    });
    if too_long { Vec::new() } else { bytes }
}

impl Attributes<'_> {
    pub(crate) fn bytes(&mut self, kind: u16, value: &[u8]) -> &mut Self {
        self.wrap(kind, |inner| inner.extend_from_slice(value))
    }

    /// Text with the terminating zero that the kernel expects.
    pub(crate) fn text(&mut self, kind: u16, value: &str) -> &mut Self {
        self.wrap(kind, |inner| {
            inner.extend_from_slice(value.as_bytes());
            inner.push(0);
        })
    }

    pub(crate) fn u8(&mut self, kind: u16, value: u8) -> &mut Self {
        self.bytes(kind, &[value])
    }

    pub(crate) fn u16(&mut self, kind: u16, value: u16) -> &mut Self {
        self.bytes(kind, &value.to_ne_bytes())
    }

    pub(crate) fn u32(&mut self, kind: u16, value: u32) -> &mut Self {
        self.bytes(kind, &value.to_ne_bytes())
    }

    pub(crate) fn be32(&mut self, kind: u16, value: u32) -> &mut Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    pub(crate) fn be64(&mut self, kind: u16, value: u64) -> &mut Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    pub(crate) fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Attributes<'_>)) -> &mut Self {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 4]);
        fill(&mut Attributes {
            bytes: self.bytes,
            too_long: self.too_long,
        });
        self.seal(start, kind | NESTED);
        self
    }

    /// Bytes that belong to a nested structure's fixed header.
    pub(crate) fn header(&mut self, value: &[u8]) -> &mut Self {
        self.bytes.extend_from_slice(value);
        self
    }

    fn wrap(&mut self, kind: u16, write: impl FnOnce(&mut Vec<u8>)) -> &mut Self {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 4]);
        write(self.bytes);
        self.seal(start, kind);
        self
    }

    fn seal(&mut self, start: usize, kind: u16) {
        let length = u16::try_from(self.bytes.len() - start).unwrap_or_else(|_| {
            *self.too_long = true;
            0
        });
        self.bytes[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        self.bytes[start + 2..start + 4].copy_from_slice(&kind.to_ne_bytes());
        pad(self.bytes);
    }
}

fn pad(bytes: &mut Vec<u8>) {
    while !bytes.len().is_multiple_of(4) {
        bytes.push(0);
    }
}

/// Read attributes until the bytes end or stop making sense.
pub(crate) fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let head = bytes.get(..4)?;
        let length = usize::from(u16::from_ne_bytes([head[0], head[1]]));
        let kind = u16::from_ne_bytes([head[2], head[3]]) & TYPE_MASK;
        let value = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

/// The text of an attribute, without its terminating zero.
pub(crate) fn text(value: &[u8]) -> String {
    let end = value
        .iter()
        .position(|byte| *byte == 0)
        .unwrap_or(value.len());
    String::from_utf8_lossy(&value[..end]).into_owned()
}

/// Split what one `recv` returned into (kind, sequence, payload).
pub(crate) fn messages(mut bytes: &[u8]) -> impl Iterator<Item = (u16, u32, &[u8])> {
    std::iter::from_fn(move || {
        let head = bytes.get(..HEADER_LEN)?;
        let length = u32::from_ne_bytes([head[0], head[1], head[2], head[3]]) as usize;
        let kind = u16::from_ne_bytes([head[4], head[5]]);
        let sequence = u32::from_ne_bytes([head[8], head[9], head[10], head[11]]);
        let payload = bytes.get(HEADER_LEN..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, sequence, payload))
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_message_is_laid_out_as_the_kernel_reads_it() {
        let mut batch = Batch::new();
        batch.message("test", 16, ACK, &[7; 4], |a| {
            a.text(3, "ab").nest(18, |inner| {
                inner.u8(1, 9);
            });
        });
        let bytes = batch.numbered(5).to_vec();
        assert_eq!(
            u32::from_ne_bytes(bytes[..4].try_into().unwrap()) as usize,
            bytes.len()
        );
        let (kind, sequence, payload) = messages(&bytes).next().unwrap();
        assert_eq!((kind, sequence, &payload[..4]), (16, 5, &[7u8; 4][..]));
        let read: Vec<_> = attributes(&payload[4..]).collect();
        assert_eq!(read[0], (3, &b"ab\0"[..]));
        assert_eq!(read[1].0, 18);
        assert_eq!(attributes(read[1].1).next(), Some((1, &[9u8][..])));
    }

    #[test]
    fn an_attribute_beyond_64_kib_is_reported_and_not_truncated_silently() {
        let mut batch = Batch::new();
        batch.message("big", 16, ACK, &[], |a| {
            a.bytes(1, &vec![0; 70_000]);
        });
        assert_eq!(batch.too_long(), Some("big"));
    }

    proptest! {
        #[test]
        fn reading_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            for (_, _, payload) in messages(&bytes) {
                attributes(payload).for_each(|(_, value)| { text(value); });
            }
            attributes(&bytes).for_each(drop);
        }
    }
}
