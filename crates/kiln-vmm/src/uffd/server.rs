//! The server: takes the userfaultfd from Firecracker and fills page after page.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{IoSliceMut, Read};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, read};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

use super::pages::{Fill, Pages};
use super::protocol::MAX_MESSAGE_BYTES;
use super::sys::{Filled, Memory, copy, zero};
use super::{Inherited, UffdError, kill, parse_regions};

/// `sizeof(struct uffd_msg)`
const EVENT_BYTES: usize = 32;
const PAGEFAULT: u8 = 0x12;
const REMOVE: u8 = 0x15;
/// Events that are read at once.
const BATCH: usize = 64;

/// Serves until the VMM is gone. Whatever goes wrong, the VMM must not wait for ever.
pub(super) fn run(inherited: &mut Inherited) -> Result<(), UffdError> {
    let vmm = inherited.take("vmm")?;
    let outcome = serve(inherited, &vmm);
    kill(&vmm);
    outcome
}

fn serve(inherited: &mut Inherited, vmm: &OwnedFd) -> Result<(), UffdError> {
    let life = inherited.take("life")?;
    let listener = UnixListener::from(inherited.take("listener")?);
    let memory = File::from(inherited.take("memory")?);
    let memory = Memory::map(&memory).map_err(|error| UffdError::System("map memory", error))?;
    if !wait_for(&[&listener_fd(&listener)?], vmm, &life)? {
        return Ok(());
    }
    let (stream, _) = listener
        .accept()
        .map_err(|error| UffdError::System("accept", error))?;
    drop(listener);
    let (message, uffd) = receive(&stream)?;
    let regions = parse_regions(&message, memory.bytes())?;
    let mut server = Server {
        uffd,
        memory,
        pages: Pages::new(regions),
        faults: VecDeque::new(),
    };
    // The stream is held: its end would be the sign of this server's death for others.
    while wait_for(&[&server.uffd], vmm, &life)? {
        if !server.turn()? {
            break;
        }
    }
    drop(stream);
    Ok(())
}

fn listener_fd(listener: &UnixListener) -> Result<OwnedFd, UffdError> {
    listener
        .try_clone()
        .map(OwnedFd::from)
        .map_err(|error| UffdError::System("clone a descriptor", error))
}

/// Waits until there is something to read; `false` when the VMM or the supervisor is gone.
fn wait_for(readable: &[&OwnedFd], vmm: &OwnedFd, life: &OwnedFd) -> Result<bool, UffdError> {
    let mut fds: Vec<PollFd<'_>> = [vmm, life]
        .into_iter()
        .chain(readable.iter().copied())
        .map(|fd| PollFd::new(fd, PollFlags::IN))
        .collect();
    loop {
        match poll(&mut fds, None) {
            Err(Errno::INTR) => {}
            Err(errno) => return Err(UffdError::System("wait", errno.into())),
            Ok(_) => break,
        }
    }
    Ok(fds[0].revents().is_empty() && fds[1].revents().is_empty())
}

/// Firecracker's one message, with the userfaultfd.
fn receive(stream: &UnixStream) -> Result<(Vec<u8>, OwnedFd), UffdError> {
    let mut message = vec![0; MAX_MESSAGE_BYTES];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let failed = |errno: Errno| UffdError::System("receive the message", errno.into());
    let received = recvmsg(
        stream,
        &mut [IoSliceMut::new(&mut message)],
        &mut control,
        RecvFlags::CMSG_CLOEXEC,
    )
    .map_err(failed)?;
    let mut fds: Vec<OwnedFd> = Vec::new();
    for received in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = received {
            fds.extend(rights);
        }
    }
    message.truncate(received.bytes);
    let mut fds = fds.into_iter();
    match (fds.next(), fds.next()) {
        (Some(uffd), None) => Ok((rest(stream, message)?, uffd)),
        _ => Err(failed(Errno::BADMSG)),
    }
}

/// The message comes at once or in pieces: it is whole when it is JSON.
fn rest(mut stream: &UnixStream, mut message: Vec<u8>) -> Result<Vec<u8>, UffdError> {
    let failed = |error| UffdError::System("receive the message", error);
    while serde_json::from_slice::<serde::de::IgnoredAny>(&message).is_err() {
        let mut more = [0; 4096];
        match stream.read(&mut more).map_err(failed)? {
            0 => break,
            count if message.len() + count <= MAX_MESSAGE_BYTES => {
                message.extend_from_slice(&more[..count]);
            }
            _ => break,
        }
    }
    Ok(message)
}

struct Server {
    uffd: OwnedFd,
    memory: Memory,
    pages: Pages,
    /// Addresses that are waited for.
    faults: VecDeque<u64>,
}

impl Server {
    /// Reads what happened, then serves it. `false` when the process is gone.
    fn turn(&mut self) -> Result<bool, UffdError> {
        self.read_events()?;
        let mut around = Vec::new();
        while let Some(address) = self.faults.pop_front() {
            let Some(fill) = self.pages.fill(address) else {
                continue;
            };
            match self.apply(fill)? {
                Filled::Done => around.push(address),
                Filled::Gone => return Ok(false),
                Filled::Again => {
                    // Memory is being given back: that has to be read before anything is filled.
                    self.faults.push_back(address);
                    self.wait_briefly()?;
                    self.read_events()?;
                }
            }
        }
        // Nobody waits now: what lies around will be asked for next.
        for address in around {
            for fill in self.pages.around(address) {
                match self.apply(fill)? {
                    Filled::Done => {}
                    Filled::Gone => return Ok(false),
                    // Not asked for: it stays where it is, unless it was given back meanwhile.
                    Filled::Again => self.read_events()?,
                }
            }
        }
        Ok(true)
    }

    fn apply(&self, fill: Fill) -> Result<Filled, UffdError> {
        let filled = match fill {
            Fill::Copy {
                address,
                offset,
                bytes,
            } => copy(&self.uffd, &self.memory, (address, offset, bytes)),
            Fill::Zero { address, bytes } => zero(&self.uffd, address, bytes),
        };
        filled.map_err(|error| UffdError::System("fill a page", error))
    }

    /// An event is on its way while a page cannot be filled.
    fn wait_briefly(&self) -> Result<(), UffdError> {
        let mut fds = [PollFd::new(&self.uffd, PollFlags::IN)];
        let briefly = Timespec {
            tv_sec: 0,
            tv_nsec: 1_000_000,
        };
        match poll(&mut fds, Some(&briefly)) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(errno) => Err(UffdError::System("wait", errno.into())),
        }
    }

    fn read_events(&mut self) -> Result<(), UffdError> {
        let mut buffer = [0; EVENT_BYTES * BATCH];
        loop {
            match read(&self.uffd, &mut buffer[..]) {
                Ok(0) => return Ok(()),
                Ok(count) => {
                    for event in buffer[..count].chunks_exact(EVENT_BYTES) {
                        self.take_event(event);
                    }
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(()),
                Err(errno) => return Err(UffdError::System("read events", errno.into())),
            }
        }
    }

    fn take_event(&mut self, event: &[u8]) {
        let word = |at: usize| {
            event
                .get(at..at + 8)
                .and_then(|bytes| bytes.try_into().ok())
                .map_or(0, u64::from_ne_bytes)
        };
        match event.first() {
            // Flags come first, then the address.
            Some(&PAGEFAULT) => self.faults.push_back(word(16)),
            Some(&REMOVE) => self.pages.remove(word(8), word(16)),
            // Forks, remaps and unmaps are not asked for.
            Some(_) | None => {}
        }
    }
}
