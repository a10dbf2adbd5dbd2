//! Damaged block images, written out as archives.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| kiln_image::fuzzing::export(bytes));
