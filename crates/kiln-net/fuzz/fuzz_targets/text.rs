//! Texts that users paste: WireGuard configurations, subnets, ports, domains, rates.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| kiln_net::hostile::text(text));
