//! Packages: the `.deb` container, the list of files, the control fields.
#![no_main]

use kiln_image::debian::{fuzz_files, fuzz_members, parse_packages};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    fuzz_members(bytes);
    fuzz_files(bytes);
    if let Ok(text) = std::str::from_utf8(bytes) {
        let _ = parse_packages(text);
    }
});
