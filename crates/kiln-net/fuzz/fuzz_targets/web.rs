//! A TLS hello or an HTTP head of a guest's making.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| kiln_net::hostile::web(bytes));
