//! Whatever a netlink socket may hand over.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| kiln_net::hostile::netlink(bytes));
