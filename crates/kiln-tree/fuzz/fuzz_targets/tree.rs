//! Bytes of a hostile guest: nothing outside of the chosen place changes.
#![no_main]

use kiln_tree::wire::Decoder;
use kiln_tree::{Item, TreeWriter, WriteOptions};
use libfuzzer_sys::fuzz_target;

/// No input needs more room than this on the disk.
const MAX_SIZE: u64 = 1 << 20;

fuzz_target!(|bytes: &[u8]| {
    let Ok(dir) = tempfile::tempdir() else { return };
    let mut writer = TreeWriter::new(&dir.path().join("to"), WriteOptions::default());
    let mut decoder = Decoder::default();
    decoder.push(bytes);
    while let Ok(Some(item)) = decoder.next_item() {
        if matches!(&item, Item::Entry(entry) if entry.size > MAX_SIZE) || writer.put(&item).is_err() {
            break;
        }
    }
    let names = std::fs::read_dir(dir.path()).into_iter().flatten().flatten();
    assert!(names.filter(|it| it.file_name() != "to").count() == 0);
});
