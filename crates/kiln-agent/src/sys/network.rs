//! The loopback interface.
#![allow(
    unsafe_code,
    reason = "interface flags are set by an ioctl without a safe wrapper"
)]

use std::io;

use rustix::ioctl::{Opcode, Setter, ioctl};
use rustix::net::{AddressFamily, SocketFlags, SocketType};

/// `struct ifreq` with the flags of its union.
#[repr(C)]
struct InterfaceFlags {
    name: [u8; 16],
    flags: i16,
    rest: [u8; 22],
}

const SIOCSIFFLAGS: Opcode = 0x8914;
const IFF_UP: i16 = 1;

/// Brings `lo` up; the kernel gives it 127.0.0.1 and ::1.
pub(crate) fn loopback_up() -> io::Result<()> {
    let socket = rustix::net::socket_with(
        AddressFamily::INET,
        SocketType::DGRAM,
        SocketFlags::CLOEXEC,
        None,
    )?;
    let mut request = InterfaceFlags {
        name: [0; 16],
        flags: IFF_UP,
        rest: [0; 22],
    };
    request.name[..2].copy_from_slice(b"lo");
    // SAFETY: the kernel reads one `ifreq`, 40 bytes, which this is.
    unsafe {
        ioctl(
            &socket,
            Setter::<SIOCSIFFLAGS, InterfaceFlags>::new(request),
        )?
    };
    Ok(())
}
