//! Kernel modules of unknown origin: decompression and `.modinfo`.
#![no_main]

use kiln_image::kernel::{decompress_module, module_info};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|file: &[u8]| {
    let _ = module_info(file);
    if let Ok(module) = decompress_module(file.to_vec()) {
        let _ = module_info(&module);
    }
});
