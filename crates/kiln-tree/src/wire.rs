//! Items as bytes: a tag, a little-endian `u32` length, that many bytes.

use crate::entry::{Entry, Kind, MAX_PATH};

/// Most bytes of a file in one item.
pub const MAX_DATA: usize = 32 * 1024;
/// Largest payload: an entry with two of the longest paths fits as well.
const MAX_PAYLOAD: usize = MAX_DATA;
/// Longest reason of a failure that is passed on.
const MAX_REASON: usize = 1024;

const HEADER: usize = 5;
const TAG_ENTRY: u8 = 1;
const TAG_DATA: u8 = 2;
const TAG_HOLE: u8 = 3;
const TAG_END: u8 = 4;
const TAG_FAILED: u8 = 5;

/// One item of a tree's stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Item {
    /// The next entry. A directory's contents follow it before anything else does.
    Entry(Entry),
    /// The next bytes of the file that is the last entry.
    Data(Vec<u8>),
    /// So many zeroes of that file, which need no room on a disk.
    Hole(u64),
    /// The tree is complete; nothing follows.
    End,
    /// It cannot be completed; nothing follows.
    Failed(String),
}

/// Bytes that are no tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the stream is not that of a tree")]
pub struct NoTree;

/// Appends an item. Data beyond [`MAX_DATA`] is the caller's to split; the rest is cut off.
pub fn encode(item: &Item, out: &mut Vec<u8>) {
    match item {
        Item::Entry(entry) => put(TAG_ENTRY, &entry_bytes(entry), out),
        Item::Data(data) => put(TAG_DATA, &data[..data.len().min(MAX_DATA)], out),
        Item::Hole(size) => put(TAG_HOLE, &size.to_le_bytes(), out),
        Item::End => put(TAG_END, &[], out),
        Item::Failed(reason) => {
            let bytes = reason.as_bytes();
            put(TAG_FAILED, &bytes[..bytes.len().min(MAX_REASON)], out);
        }
    }
}

fn put(tag: u8, payload: &[u8], out: &mut Vec<u8>) {
    out.push(tag);
    // All payloads are bounded far below.
    out.extend_from_slice(&(payload.len() as u32).to_le_bytes());
    out.extend_from_slice(payload);
}

fn entry_bytes(entry: &Entry) -> Vec<u8> {
    let mut out = Vec::with_capacity(48 + entry.path.len() + entry.link.len());
    out.push(match entry.kind {
        Kind::File => 0,
        Kind::Directory => 1,
        Kind::Symlink => 2,
        Kind::Other => 3,
    });
    out.extend_from_slice(&entry.mode.to_le_bytes());
    out.extend_from_slice(&entry.uid.to_le_bytes());
    out.extend_from_slice(&entry.gid.to_le_bytes());
    out.extend_from_slice(&entry.size.to_le_bytes());
    out.extend_from_slice(&entry.mtime_ns.to_le_bytes());
    for text in [&entry.path, &entry.link] {
        let text = &text[..text.len().min(MAX_PATH)];
        out.extend_from_slice(&(text.len() as u16).to_le_bytes());
        out.extend_from_slice(text);
    }
    out
}

/// Takes bytes as they come and gives back items.
#[derive(Debug, Default)]
pub struct Decoder {
    buffer: Vec<u8>,
    start: usize,
}

impl Decoder {
    /// Adds bytes of the stream. Take all items out before more is added, and no more is held than
    /// these bytes and one item.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.drain(..self.start);
        self.start = 0;
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole item, if it is there. After an error the stream is lost.
    ///
    /// # Errors
    /// [`NoTree`], as soon as that is known.
    pub fn next_item(&mut self) -> Result<Option<Item>, NoTree> {
        let rest = &self.buffer[self.start..];
        let Some((header, body)) = rest.split_first_chunk::<HEADER>() else {
            return Ok(None);
        };
        let [tag, length @ ..] = *header;
        let length = u32::from_le_bytes(length) as usize;
        if length > MAX_PAYLOAD {
            return Err(NoTree);
        }
        let Some(payload) = body.get(..length) else {
            return Ok(None);
        };
        let item = parse(tag, payload)?;
        self.start += HEADER + length;
        Ok(Some(item))
    }

    /// Whether nothing of an unfinished item is held.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.start == self.buffer.len()
    }
}

fn parse(tag: u8, payload: &[u8]) -> Result<Item, NoTree> {
    Ok(match tag {
        TAG_ENTRY => Item::Entry(parse_entry(payload).ok_or(NoTree)?),
        TAG_DATA => Item::Data(payload.to_vec()),
        TAG_HOLE => Item::Hole(u64::from_le_bytes(payload.try_into().map_err(|_| NoTree)?)),
        TAG_END if payload.is_empty() => Item::End,
        TAG_FAILED if payload.len() <= MAX_REASON => {
            Item::Failed(String::from_utf8_lossy(payload).into_owned())
        }
        _ => return Err(NoTree),
    })
}

fn parse_entry(payload: &[u8]) -> Option<Entry> {
    let mut rest = payload;
    let kind = match take::<1>(&mut rest)? {
        [0] => Kind::File,
        [1] => Kind::Directory,
        [2] => Kind::Symlink,
        [3] => Kind::Other,
        _ => return None,
    };
    let entry = Entry {
        kind,
        mode: u32::from_le_bytes(take(&mut rest)?),
        uid: u32::from_le_bytes(take(&mut rest)?),
        gid: u32::from_le_bytes(take(&mut rest)?),
        size: u64::from_le_bytes(take(&mut rest)?),
        mtime_ns: i64::from_le_bytes(take(&mut rest)?),
        path: text(&mut rest)?,
        link: text(&mut rest)?,
    };
    rest.is_empty().then_some(entry)
}

fn take<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (head, tail) = rest.split_first_chunk::<N>()?;
    *rest = tail;
    Some(*head)
}

fn text(rest: &mut &[u8]) -> Option<Vec<u8>> {
    let length = usize::from(u16::from_le_bytes(take(rest)?));
    let (head, tail) = rest.split_at_checked(length)?;
    *rest = tail;
    (length <= MAX_PATH).then(|| head.to_vec())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn entries() -> impl Strategy<Value = Entry> {
        let text = || prop::collection::vec(any::<u8>(), 0..40);
        let numbers = (
            any::<u32>(),
            any::<u32>(),
            any::<u32>(),
            any::<u64>(),
            any::<i64>(),
        );
        (0..4u8, numbers, text(), text()).prop_map(|(kind, numbers, path, link)| Entry {
            kind: [Kind::File, Kind::Directory, Kind::Symlink, Kind::Other][usize::from(kind)],
            mode: numbers.0,
            uid: numbers.1,
            gid: numbers.2,
            size: numbers.3,
            mtime_ns: numbers.4,
            path,
            link,
        })
    }

    fn items() -> impl Strategy<Value = Item> {
        prop_oneof![
            entries().prop_map(Item::Entry),
            prop::collection::vec(any::<u8>(), 0..100).prop_map(Item::Data),
            any::<u64>().prop_map(Item::Hole),
            Just(Item::End),
            "[a-z ]{0,40}".prop_map(Item::Failed),
        ]
    }

    proptest! {
        #[test]
        fn items_survive_any_split(items in prop::collection::vec(items(), 0..8), step in 1usize..30) {
            let mut wire = Vec::new();
            items.iter().for_each(|item| encode(item, &mut wire));
            let mut decoder = Decoder::default();
            let mut seen = Vec::new();
            for piece in wire.chunks(step) {
                decoder.push(piece);
                while let Some(item) = decoder.next_item().unwrap() {
                    seen.push(item);
                }
            }
            prop_assert_eq!(seen, items);
            prop_assert!(decoder.is_empty());
        }

        #[test]
        fn garbage_never_panics(bytes: Vec<u8>, step in 1usize..50) {
            let mut decoder = Decoder::default();
            for piece in bytes.chunks(step) {
                decoder.push(piece);
                while let Ok(Some(_)) = decoder.next_item() {}
            }
        }
    }

    #[test]
    fn a_length_is_refused_before_its_bytes_come() {
        let mut decoder = Decoder::default();
        decoder.push(&[TAG_DATA, 0xff, 0xff, 0xff, 0xff]);
        assert_eq!(decoder.next_item(), Err(NoTree));
    }

    #[test]
    fn the_longest_entry_fits() {
        let entry = Entry {
            path: vec![b'p'; MAX_PATH],
            link: vec![b'l'; MAX_PATH],
            ..Entry::default()
        };
        let mut wire = Vec::new();
        encode(&Item::Entry(entry.clone()), &mut wire);
        let mut decoder = Decoder::default();
        decoder.push(&wire);
        assert_eq!(decoder.next_item(), Ok(Some(Item::Entry(entry))));
    }
}
