//! Names, manifests, configs, headers and archives of images.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| kiln_image::fuzzing::oci(bytes));
