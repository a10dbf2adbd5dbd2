//! Hostile layers: read, merged, written.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| kiln_image::fuzzing::layers(bytes));
