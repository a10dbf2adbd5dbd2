//! Feeding the kernel's random pool.
#![allow(unsafe_code, reason = "the ioctls of random(4) have no safe wrapper")]

use std::fs::OpenOptions;
use std::io;

use rustix::ioctl::{NoArg, Opcode, Setter, ioctl, opcode};

/// Bytes credited at most; more than the pool needs.
pub(crate) const SEED: usize = 64;

/// `struct rand_pool_info` with its bytes.
#[repr(C)]
struct PoolInfo {
    entropy_bits: i32,
    len: i32,
    bytes: [u8; SEED],
}

/// `_IOW('R', 0x03, int[2])`.
const RNDADDENTROPY: Opcode = opcode::write::<[i32; 2]>(b'R', 3);
/// `_IO('R', 0x07)`: use the pool now.
const RNDRESEEDCRNG: Opcode = opcode::none(b'R', 7);

/// Mixes `seed` into the pool, credits it, and makes the generator use it at once, so that two
/// guests from one snapshot do not draw the same numbers.
pub(crate) fn reseed(seed: &[u8]) -> io::Result<()> {
    let len = seed.len().min(SEED);
    let mut bytes = [0; SEED];
    bytes[..len].copy_from_slice(&seed[..len]);
    let info = PoolInfo {
        entropy_bits: len as i32 * 8,
        len: len as i32,
        bytes,
    };
    let random = OpenOptions::new().write(true).open("/dev/urandom")?;
    // SAFETY: the kernel reads two numbers and then `len` bytes, all inside `PoolInfo`.
    unsafe { ioctl(&random, Setter::<RNDADDENTROPY, PoolInfo>::new(info))? };
    // SAFETY: takes no argument.
    unsafe { ioctl(&random, NoArg::<RNDRESEEDCRNG>::new())? };
    Ok(())
}
