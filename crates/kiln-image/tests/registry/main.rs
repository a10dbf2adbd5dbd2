//! Pulling from a real registry on loopback, and from one that fails in every way a proxy can make
//! it fail.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "tests"
)]

#[path = "../support/mod.rs"]
mod support;

macro_rules! needs_tools {
    ($test:literal) => {
        if !crate::support::registry::have_tools() {
            return crate::support::skip($test, "no docker-registry or no skopeo");
        }
    };
}

mod access;
mod bench;
mod faults;
mod hostile;
mod pulls;
mod surroundings;
