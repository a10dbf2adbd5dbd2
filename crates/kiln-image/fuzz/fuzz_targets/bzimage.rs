//! Kernels of unknown origin: headers, payload bounds, decompression.
#![no_main]

use kiln_image::kernel::{Architecture, check_vmlinux, extract_vmlinux};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|image: &[u8]| {
    let _ = check_vmlinux(image, Architecture::host());
    if let Ok(vmlinux) = extract_vmlinux(image) {
        let _ = check_vmlinux(&vmlinux, Architecture::host());
    }
});
