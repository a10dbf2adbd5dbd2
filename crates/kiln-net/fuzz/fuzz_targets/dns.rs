//! A guest's question and an upstream's answer, both hostile.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| kiln_net::hostile::dns(bytes));
