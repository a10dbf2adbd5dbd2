//! What a VMM tells its page server: regions that fit the file, or an error; never a panic.
#![no_main]

use kiln_vmm::uffd::parse_regions;
use libfuzzer_sys::fuzz_target;

const MEMORY_BYTES: u64 = 64 << 20;

fuzz_target!(|message: &[u8]| {
    for region in parse_regions(message, MEMORY_BYTES).into_iter().flatten() {
        assert!(region.offset + region.size <= MEMORY_BYTES);
        assert!(region.holds(region.base_host_virt_addr));
    }
});
