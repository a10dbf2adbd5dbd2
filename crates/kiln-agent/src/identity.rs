//! Who and when the guest is, as the host says on every new connection.
//!
//! A guest that was restored from a snapshot has an old clock, and shares its random numbers
//! with every other guest of that snapshot, until this is done.

use std::io;

use kiln_agent_proto::message::Hello;
use rustix::time::{ClockId, Timespec};

use crate::console;
use crate::sys::entropy;

const NS_PER_S: u64 = 1_000_000_000;
/// The kernel's limit for a host name.
const MAX_HOSTNAME: usize = 64;

/// Takes over what the host says. What fails is reported; the guest is usable without.
pub(crate) fn apply(hello: &Hello) {
    report("the random pool", reseed(&hello.entropy));
    report("the clock", set_clock(hello.clock_unix_ns));
    report("the host name", set_hostname(&hello.hostname));
}

fn report(what: &str, result: io::Result<()>) {
    if let Err(error) = result {
        console::warn(format_args!("cannot set {what}: {error}"));
    }
}

fn reseed(seed: &[u8]) -> io::Result<()> {
    if seed.is_empty() {
        return Ok(());
    }
    entropy::reseed(seed)
}

fn set_clock(unix_ns: u64) -> io::Result<()> {
    if unix_ns == 0 {
        return Ok(());
    }
    let time = Timespec {
        tv_sec: (unix_ns / NS_PER_S) as i64,
        tv_nsec: (unix_ns % NS_PER_S) as _,
    };
    Ok(rustix::time::clock_settime(ClockId::Realtime, time)?)
}

fn set_hostname(name: &str) -> io::Result<()> {
    if name.is_empty() {
        return Ok(());
    }
    let bytes = name.as_bytes();
    Ok(rustix::system::sethostname(
        &bytes[..bytes.len().min(MAX_HOSTNAME)],
    )?)
}
