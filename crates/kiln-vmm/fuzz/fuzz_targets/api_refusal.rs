//! Whatever Firecracker says about a refused call: bounded words, never a panic.
#![no_main]

use kiln_vmm::firecracker::api::refusal;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|body: &[u8]| {
    assert!(refusal(body).chars().count() <= 4096);
});
