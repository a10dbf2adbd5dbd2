//! A stand-in for a guest: a namespace whose only card is wired to the sandbox's TAP by two threads
//! that copy frames, as a VMM does.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::thread;

use kiln_net::{GuestFacts, NetNamespace, Network};
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::fs::{Mode, OFlags};
use rustix::ioctl::{Opcode, Updater, ioctl};

use super::sh;

#[repr(C)]
struct InterfaceRequest {
    name: [u8; 16],
    flags: u16,
    padding: [u8; 22],
}

const SET_INTERFACE: Opcode = 0x4004_54ca;
const TAP: u16 = 0x0002;
const NO_PACKET_INFO: u16 = 0x1000;
const VNET_HEADER: u16 = 0x4000;

pub struct Guest {
    pub inside: NetNamespace,
    pub facts: GuestFacts,
    stop: Arc<OwnedFd>,
    threads: Vec<thread::JoinHandle<()>>,
}

impl Guest {
    pub fn start(network: &Network) -> Self {
        Self::on(network.namespace(), network.guest())
    }

    /// A guest on a TAP that is in `namespace`.
    pub fn on(namespace: &NetNamespace, facts: GuestFacts) -> Self {
        let outside = namespace.run(|| attach(facts.tap.as_str())).unwrap();
        let (inside, card) = NetNamespace::create(|| {
            let card = attach("eth0");
            sh(&format!(
                "ip link set lo up; ip link set eth0 address {} mtu {}; ip link set eth0 up
                 ip address add {}/{} dev eth0; ip route add default via {}",
                facts.mac, facts.mtu, facts.address, facts.prefix, facts.gateway
            ));
            card
        })
        .unwrap();
        let stop = Arc::new(eventfd(0, EventfdFlags::CLOEXEC).unwrap());
        let threads = vec![
            relay(
                outside.try_clone().unwrap(),
                card.try_clone().unwrap(),
                Arc::clone(&stop),
            ),
            relay(card, outside, Arc::clone(&stop)),
        ];
        Self {
            inside,
            facts,
            stop,
            threads,
        }
    }

    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        self.inside.run(work).unwrap()
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        rustix::io::write(&self.stop, &1u64.to_ne_bytes()).unwrap();
        for thread in self.threads.drain(..) {
            thread.join().unwrap();
        }
    }
}

/// Attach to a TAP (creating it if it is not there) in the calling thread's namespace.
fn attach(name: &str) -> File {
    let device = rustix::fs::open(
        "/dev/net/tun",
        OFlags::RDWR | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .unwrap();
    let mut request = InterfaceRequest {
        name: [0; 16],
        flags: TAP | NO_PACKET_INFO | VNET_HEADER,
        padding: [0; 22],
    };
    request.name[..name.len()].copy_from_slice(name.as_bytes());
    // SAFETY: TUNSETIFF reads and writes the 40 bytes of the request.
    unsafe { ioctl(&device, Updater::<SET_INTERFACE, _>::new(&mut request)) }.unwrap();
    File::from(device)
}

fn relay(mut from: File, mut to: File, stop: Arc<OwnedFd>) -> thread::JoinHandle<()> {
    thread::spawn(move || {
        let mut frame = vec![0; 1 << 17];
        loop {
            let mut fds = [
                PollFd::new(&from, PollFlags::IN),
                PollFd::from_borrowed_fd(stop.as_fd(), PollFlags::IN),
            ];
            if poll(&mut fds, None).is_err() {
                continue;
            }
            if !fds[1].revents().is_empty() {
                return;
            }
            match from.read(&mut frame) {
                // A frame that does not fit (a link that is not up yet) is lost, as on a wire.
                Ok(length) => drop(to.write(&frame[..length])),
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(_) => return,
            }
        }
    })
}
