//! Persistent TAP devices, made by ioctl: netlink cannot create them.
#![allow(unsafe_code, reason = "the TUN ioctls")]

use std::io;
use std::os::fd::OwnedFd;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::ioctl::{IntegerSetter, Opcode, Setter, ioctl};

use crate::subnet::InterfaceName;

const SET_PERSIST: Opcode = 0x4004_54cb;
const SET_OWNER: Opcode = 0x4004_54cc;
const SET_GROUP: Opcode = 0x4004_54ce;
const SET_INTERFACE: Opcode = 0x4004_54ca;
const SET_INDEX: Opcode = 0x4004_54da;

const TAP: u16 = 0x0002;
const NO_PACKET_INFO: u16 = 0x1000;
const VNET_HEADER: u16 = 0x4000;
const EXCLUSIVE: u16 = 0x8000;

/// Who may open the TAP without privileges: the user that the VMM runs as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TapOwner {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
}

/// `struct ifreq` as `TUNSETIFF` reads it.
#[repr(C)]
struct InterfaceRequest {
    name: [u8; 16],
    flags: u16,
    padding: [u8; 22],
}

/// Create a TAP in the calling thread's network namespace, with the interface number `index` if one
/// is given. It stays when the descriptor is closed.
pub(crate) fn create(
    name: &InterfaceName,
    owner: TapOwner,
    index: Option<u32>,
) -> Result<(), io::Error> {
    let device = rustix::fs::open(
        "/dev/net/tun",
        OFlags::RDWR | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    if let Some(index) = index {
        set_index(&device, index)?;
    }
    set_interface(&device, name)?;
    // Only our own new device can fail from here on; it vanishes with the descriptor.
    set_number::<SET_OWNER>(&device, owner.uid)?;
    set_number::<SET_GROUP>(&device, owner.gid)?;
    set_number::<SET_PERSIST>(&device, 1)?;
    Ok(())
}

fn set_index(device: &OwnedFd, index: u32) -> Result<(), Errno> {
    // SAFETY: TUNSETIFINDEX reads one unsigned int through the pointer.
    unsafe { ioctl(device, Setter::<SET_INDEX, u32>::new(index)) }
}

fn set_interface(device: &OwnedFd, name: &InterfaceName) -> Result<(), Errno> {
    let mut request = InterfaceRequest {
        name: [0; 16],
        flags: TAP | NO_PACKET_INFO | VNET_HEADER | EXCLUSIVE,
        padding: [0; 22],
    };
    // An interface name has at most 15 bytes, so the last stays zero.
    for (to, from) in request.name.iter_mut().zip(name.as_str().bytes()) {
        *to = from;
    }
    // SAFETY: TUNSETIFF reads and writes `sizeof(struct ifreq)` = 40 bytes, which the request has,
    // and the request outlives the call.
    unsafe {
        ioctl(
            device,
            rustix::ioctl::Updater::<SET_INTERFACE, _>::new(&mut request),
        )
    }
}

fn set_number<const OPCODE: Opcode>(device: &OwnedFd, value: u32) -> Result<(), Errno> {
    // SAFETY: these ioctls take their argument by value and touch no memory of ours.
    unsafe { ioctl(device, IntegerSetter::<OPCODE>::new_usize(value as usize)) }
}
