//! Network interfaces: the loopback, and the one network card.
#![allow(
    unsafe_code,
    reason = "interfaces and routes are set by ioctls without a safe wrapper"
)]

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;

use rustix::ioctl::{Opcode, Setter, ioctl};
use rustix::net::{AddressFamily, SocketFlags, SocketType};

const NAME_BYTES: usize = 16;

/// `struct ifreq`: a name, and a union of which 24 bytes are here.
#[repr(C)]
struct Request {
    name: [u8; NAME_BYTES],
    value: [u8; 24],
}

/// `struct rtentry`, as much of it as is read; zero means "not said".
#[repr(C)]
struct Route {
    pad1: usize,
    destination: [u8; 16],
    gateway: [u8; 16],
    netmask: [u8; 16],
    flags: u16,
    pad2: i16,
    pad3: usize,
    pad4: usize,
    metric: i16,
    device: *const u8,
    mtu: usize,
    window: usize,
    rtt: u16,
}

const SIOCADDRT: Opcode = 0x890b;
const SIOCSIFFLAGS: Opcode = 0x8914;
const SIOCSIFADDR: Opcode = 0x8916;
const SIOCSIFNETMASK: Opcode = 0x891c;
const SIOCSIFMTU: Opcode = 0x8922;
const IFF_UP: i16 = 1;
const RTF_UP: u16 = 1;
const RTF_GATEWAY: u16 = 2;
const AF_INET: u16 = 2;

/// A network card with one address and a way out.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Card<'a> {
    pub(crate) name: &'a str,
    pub(crate) address: Ipv4Addr,
    pub(crate) netmask: Ipv4Addr,
    pub(crate) gateway: Ipv4Addr,
    pub(crate) mtu: u32,
}

/// Brings `lo` up; the kernel gives it 127.0.0.1 and ::1.
pub(crate) fn loopback_up() -> io::Result<()> {
    up(&socket()?, "lo")
}

/// Gives the card its address and brings it up, with the default route through its gateway.
pub(crate) fn bring_up(card: &Card<'_>) -> io::Result<()> {
    let socket = socket()?;
    let mtu = card.mtu.to_ne_bytes();
    set::<SIOCSIFMTU>(&socket, card.name, &mtu)?;
    set::<SIOCSIFADDR>(&socket, card.name, &socket_address(card.address))?;
    set::<SIOCSIFNETMASK>(&socket, card.name, &socket_address(card.netmask))?;
    up(&socket, card.name)?;
    let route = Route {
        pad1: 0,
        destination: socket_address(Ipv4Addr::UNSPECIFIED),
        gateway: socket_address(card.gateway),
        netmask: socket_address(Ipv4Addr::UNSPECIFIED),
        flags: RTF_UP | RTF_GATEWAY,
        pad2: 0,
        pad3: 0,
        pad4: 0,
        metric: 0,
        device: std::ptr::null(),
        mtu: 0,
        window: 0,
        rtt: 0,
    };
    // SAFETY: the kernel reads one `rtentry`, whose layout this has; its only pointer is null.
    unsafe { ioctl(&socket, Setter::<SIOCADDRT, Route>::new(route)) }?;
    Ok(())
}

fn up(socket: &OwnedFd, name: &str) -> io::Result<()> {
    set::<SIOCSIFFLAGS>(socket, name, &IFF_UP.to_ne_bytes())
}

fn set<const OPCODE: Opcode>(socket: &OwnedFd, name: &str, value: &[u8]) -> io::Result<()> {
    let mut request = Request {
        name: [0; NAME_BYTES],
        value: [0; 24],
    };
    // One byte stays zero: it ends the name.
    if name.len() >= NAME_BYTES || value.len() > request.value.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    request.name[..name.len()].copy_from_slice(name.as_bytes());
    request.value[..value.len()].copy_from_slice(value);
    // SAFETY: the kernel reads one `ifreq`, 40 bytes, which this is.
    unsafe { ioctl(socket, Setter::<OPCODE, Request>::new(request)) }?;
    Ok(())
}

/// `struct sockaddr_in`.
fn socket_address(address: Ipv4Addr) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..2].copy_from_slice(&AF_INET.to_ne_bytes());
    bytes[4..8].copy_from_slice(&address.octets());
    bytes
}

fn socket() -> io::Result<OwnedFd> {
    Ok(rustix::net::socket_with(
        AddressFamily::INET,
        SocketType::DGRAM,
        SocketFlags::CLOEXEC,
        None,
    )?)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The kernel's own structures (x86-64 and arm64, both LP64).
    #[test]
    fn the_layouts_are_the_kernels() {
        assert_eq!(size_of::<Request>(), size_of::<libc::ifreq>());
        assert_eq!(size_of::<Route>(), size_of::<libc::rtentry>());
        assert_eq!(
            std::mem::offset_of!(Route, flags),
            std::mem::offset_of!(libc::rtentry, rt_flags)
        );
        assert_eq!(
            std::mem::offset_of!(Route, device),
            std::mem::offset_of!(libc::rtentry, rt_dev)
        );
    }
}
