//! Connecting to the host over AF_VSOCK.
#![allow(
    unsafe_code,
    reason = "rustix has no vsock address: its trait for one is unsafe"
)]

use std::io;
use std::os::fd::OwnedFd;

use rustix::net::addr::{SocketAddrArg, SocketAddrLen, SocketAddrOpaque};
use rustix::net::{AddressFamily, SocketFlags, SocketType};

/// The host's end of every guest's vsock.
const HOST_CID: u32 = 2;

/// `struct sockaddr_vm` of the kernel's `linux/vm_sockets.h`.
#[repr(C)]
struct Address {
    family: u16,
    reserved: u16,
    port: u32,
    cid: u32,
    flags: u8,
    zero: [u8; 3],
}

// SAFETY: the pointer is to a whole `sockaddr_vm` that lives through the call.
unsafe impl SocketAddrArg for Address {
    unsafe fn with_sockaddr<R>(
        &self,
        f: impl FnOnce(*const SocketAddrOpaque, SocketAddrLen) -> R,
    ) -> R {
        let len = size_of::<Self>() as SocketAddrLen;
        f(std::ptr::from_ref(self).cast(), len)
    }
}

/// Starts to connect to `port` of the host. The socket is non-blocking: it is writable when the
/// connection is there or has failed.
pub(crate) fn connect(port: u32) -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::VSOCK, SocketType::STREAM, flags, None)?;
    let address = Address {
        family: AddressFamily::VSOCK.as_raw(),
        reserved: 0,
        port,
        cid: HOST_CID,
        flags: 0,
        zero: [0; 3],
    };
    match rustix::net::connect(&socket, &address) {
        Ok(()) | Err(rustix::io::Errno::INPROGRESS) => Ok(socket),
        Err(error) => Err(error.into()),
    }
}
