//! The system calls of a page server that have no safe wrapper.
#![allow(
    unsafe_code,
    reason = "userfaultfd fills another process's memory from a mapping"
)]

use std::fs::File;
use std::io::Error;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr::NonNull;

use rustix::io::{Errno, fcntl_getfd};
use rustix::ioctl::{Opcode, Updater, ioctl, opcode};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

/// Takes over a descriptor that this process was started with.
pub(super) fn adopt(number: RawFd) -> std::io::Result<OwnedFd> {
    // SAFETY: only looked at; a number that is not open is told by the call.
    let borrowed = unsafe { BorrowedFd::borrow_raw(number) };
    fcntl_getfd(borrowed)?;
    // SAFETY: it is open, was inherited for this process to own, and each name is taken once.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// A memory file, mapped for reading. The file of a snapshot never changes.
#[derive(Debug)]
pub(super) struct Memory {
    start: NonNull<std::ffi::c_void>,
    bytes: usize,
}

impl Memory {
    pub(super) fn map(file: &File) -> std::io::Result<Self> {
        let bytes = usize::try_from(file.metadata()?.len()).map_err(Error::other)?;
        // SAFETY: a new mapping, at a place of the kernel's choice; it is only handed to the
        // kernel as a source, never turned into a Rust reference.
        let start = unsafe {
            mmap(
                std::ptr::null_mut(),
                bytes,
                ProtFlags::READ,
                MapFlags::PRIVATE,
                file,
                0,
            )
        }?;
        let start = NonNull::new(start).ok_or_else(|| Error::other("mapped at zero"))?;
        Ok(Self { start, bytes })
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes as u64
    }

    /// Address of a range that is wholly inside.
    fn source(&self, offset: u64, bytes: u64) -> std::io::Result<u64> {
        match offset.checked_add(bytes) {
            Some(end) if end <= self.bytes as u64 => Ok(self.start.as_ptr() as u64 + offset),
            Some(_) | None => Err(std::io::ErrorKind::InvalidInput.into()),
        }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: mapped by `map` with this size; nothing refers to it.
        let _ = unsafe { munmap(self.start.as_ptr(), self.bytes) };
    }
}

/// `struct uffdio_copy`
#[repr(C)]
struct Copy {
    to: u64,
    from: u64,
    bytes: u64,
    mode: u64,
    copied: i64,
}

/// `struct uffdio_zeropage`
#[repr(C)]
struct Zero {
    start: u64,
    bytes: u64,
    mode: u64,
    zeroed: i64,
}

const UFFDIO_COPY: Opcode = opcode::read_write::<Copy>(0xAA, 0x03);
const UFFDIO_ZEROPAGE: Opcode = opcode::read_write::<Zero>(0xAA, 0x04);

/// What became of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Filled {
    /// It is there now, or was already.
    Done,
    /// An event has to be read first.
    Again,
    /// The process is gone, or the range is not registered any more.
    Gone,
}

pub(super) fn copy(
    uffd: &OwnedFd,
    memory: &Memory,
    (address, offset, bytes): (u64, u64, u64),
) -> std::io::Result<Filled> {
    let mut request = Copy {
        to: address,
        from: memory.source(offset, bytes)?,
        bytes,
        mode: 0,
        copied: 0,
    };
    // SAFETY: `UFFDIO_COPY` reads and writes one `struct uffdio_copy`, whose layout `Copy` has;
    // the source is inside a mapping that outlives the call, the target is the other process's.
    let outcome = unsafe {
        ioctl(
            uffd.as_fd(),
            Updater::<UFFDIO_COPY, Copy>::new(&mut request),
        )
    };
    filled(outcome)
}

pub(super) fn zero(uffd: &OwnedFd, address: u64, bytes: u64) -> std::io::Result<Filled> {
    let mut request = Zero {
        start: address,
        bytes,
        mode: 0,
        zeroed: 0,
    };
    // SAFETY: `UFFDIO_ZEROPAGE` reads and writes one `struct uffdio_zeropage`, whose layout
    // `Zero` has; the target is the other process's.
    let outcome = unsafe {
        ioctl(
            uffd.as_fd(),
            Updater::<UFFDIO_ZEROPAGE, Zero>::new(&mut request),
        )
    };
    filled(outcome)
}

fn filled(outcome: Result<(), Errno>) -> std::io::Result<Filled> {
    match outcome {
        // There already: whoever waited for it was woken by the one who filled it.
        Ok(()) | Err(Errno::EXIST) => Ok(Filled::Done),
        Err(Errno::AGAIN) => Ok(Filled::Again),
        Err(Errno::SRCH | Errno::NOENT) => Ok(Filled::Gone),
        Err(errno) => Err(errno.into()),
    }
}
