//! Opening a TAP for a VMM that may not do so itself.
#![allow(unsafe_code, reason = "TUNSETIFF has no safe wrapper")]

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::ioctl::{Setter, ioctl};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::error::SpawnError;
use crate::nic::Nic;

/// Longest name of an interface, with its final NUL.
pub(crate) const NAME_BYTES: usize = 16;

const TUNSETIFF: rustix::ioctl::Opcode = rustix::ioctl::opcode::write::<i32>(b'T', 202);
const IFF_TAP: u16 = 0x0002;
const IFF_NO_PI: u16 = 0x1000;
const IFF_VNET_HDR: u16 = 0x4000;

/// `struct ifreq`, as far as this request reads it.
#[repr(C)]
struct Request {
    name: [u8; NAME_BYTES],
    flags: u16,
    rest: [u8; 22],
}

/// Opens the TAPs of `nics` in `netns`, or in this process's network namespace. Blocks.
pub(crate) fn open_all(netns: Option<OwnedFd>, nics: &[Nic]) -> Result<Vec<OwnedFd>, SpawnError> {
    let names: Vec<String> = nics.iter().map(|nic| nic.tap.clone()).collect();
    let Some(netns) = netns else {
        return names.iter().map(|name| open_one(name)).collect();
    };
    // A thread that has moved is never the same again: it ends here.
    let moved = std::thread::Builder::new()
        .name("kiln-tap".to_owned())
        .spawn(move || {
            move_into_link_name_space(netns.as_fd(), Some(LinkNameSpaceType::Network))?;
            Ok(names.iter().map(|name| open_one(name)).collect())
        })
        .and_then(|thread| {
            let panicked = |_| Err(std::io::Error::other("the thread panicked"));
            thread.join().unwrap_or_else(panicked)
        });
    moved.unwrap_or_else(|source| {
        let tap = nics.first().map(|nic| nic.tap.clone()).unwrap_or_default();
        Err(SpawnError::Tap { tap, source })
    })
}

fn open_one(name: &str) -> Result<OwnedFd, SpawnError> {
    open(name).map_err(|source| SpawnError::Tap {
        tap: name.to_owned(),
        source,
    })
}

/// Opens the existing TAP `name` of the calling thread's network namespace.
fn open(name: &str) -> std::io::Result<OwnedFd> {
    // Without this a TAP that does not exist would be made.
    rustix::net::netdevice::name_to_index(socket()?, name)?;
    let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let tap = openat(CWD, c"/dev/net/tun", flags, Mode::empty())?;
    let mut request = Request {
        name: [0; NAME_BYTES],
        flags: IFF_TAP | IFF_NO_PI | IFF_VNET_HDR,
        rest: [0; 22],
    };
    let bytes = name.as_bytes();
    if bytes.len() >= NAME_BYTES {
        return Err(std::io::ErrorKind::InvalidInput.into());
    }
    request.name[..bytes.len()].copy_from_slice(bytes);
    // SAFETY: TUNSETIFF reads one `ifreq`, whose size and layout `Request` has, and writes the
    // name back into it; it lives through the call.
    unsafe { ioctl(&tap, Setter::<TUNSETIFF, Request>::new(request)) }?;
    Ok(tap)
}

fn socket() -> std::io::Result<OwnedFd> {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
    Ok(socket_with(
        AddressFamily::INET,
        SocketType::DGRAM,
        SocketFlags::CLOEXEC,
        None,
    )?)
}
