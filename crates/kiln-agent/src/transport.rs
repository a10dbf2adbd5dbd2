//! The agent's way to the host: vsock, a virtio-serial port, or, in tests, a Unix socket.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::buffer::spare_capacity;
use rustix::event::{PollFd, PollFlags, Timespec, epoll, poll};
use rustix::fs::{CWD, Mode, OFlags};

use crate::fd::Fd;
use crate::sys::vsock;

/// Name of the virtio-serial port.
const PORT_NAME: &str = "agent.0";
/// Port on the host that the agent dials.
const VSOCK_PORT: u32 = 5556;
/// Virtio device types, of the specification's section 5.
const VIRTIO_CONSOLE: &str = "0x0003";
/// The host's end of a serial port is looked at so often at least.
const HOST_POLL: Duration = Duration::from_millis(250);

/// How the host is reached.
#[derive(Clone, Debug)]
pub(crate) enum Transport {
    /// Whatever this machine has: the port if there is one, else vsock.
    Virtio,
    /// A Unix socket that the host listens on.
    ConnectUnix(PathBuf),
}

impl Transport {
    /// Opens a connection. Fails at once when the host is not there; try again.
    pub(crate) async fn dial(&self) -> io::Result<Fd> {
        match self {
            Self::Virtio => dial_virtio().await,
            Self::ConnectUnix(path) => dial_unix(path).await,
        }
    }
}

async fn dial_virtio() -> io::Result<Fd> {
    if let Some(port) = find_port() {
        return open_port(&port).await;
    }
    if has_serial_device() {
        // Its ports appear a moment after it; asked again, they are there.
        return Err(io::ErrorKind::NotConnected.into());
    }
    connected(Fd::new(vsock::connect(VSOCK_PORT)?)?).await
}

fn find_port() -> Option<PathBuf> {
    let ports = fs::read_dir("/sys/class/virtio-ports").ok()?;
    let port = ports.flatten().find(|port| {
        let name = fs::read_to_string(port.path().join("name"));
        name.is_ok_and(|name| name.trim() == PORT_NAME)
    })?;
    Some(Path::new("/dev").join(port.file_name()))
}

fn has_serial_device() -> bool {
    let devices = fs::read_dir("/sys/bus/virtio/devices")
        .into_iter()
        .flatten();
    devices.flatten().any(|device| {
        let kind = fs::read_to_string(device.path().join("device"));
        kind.is_ok_and(|kind| kind.trim() == VIRTIO_CONSOLE)
    })
}

/// Opens the port, which only one may do at a time, and waits for the host's end.
async fn open_port(path: &Path) -> io::Result<Fd> {
    let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
    let port = rustix::fs::openat(CWD, path, flags, Mode::empty())?;
    let edges = Edges::of(&port)?;
    while is_hung_up(&port)? {
        // What an edge may have escaped is seen a moment later.
        if let Ok(edge) = tokio::time::timeout(HOST_POLL, edges.next()).await {
            edge?;
        }
    }
    Fd::new(port)
}

/// The changes of a port. To the event loop a hang-up is the end of a descriptor, and ever
/// ready; here it is a state that passes, so an epoll of its own is put between.
struct Edges(Fd);

impl Edges {
    fn of(port: &OwnedFd) -> io::Result<Self> {
        let set = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let flags = epoll::EventFlags::OUT | epoll::EventFlags::ET;
        epoll::add(&set, port, epoll::EventData::new_u64(0), flags)?;
        Ok(Self(Fd::new(set)?))
    }

    async fn next(&self) -> io::Result<()> {
        self.0.readable().await?;
        let mut events = Vec::with_capacity(1);
        let now = Timespec::default();
        epoll::wait(&self.0, spare_capacity(&mut events), Some(&now))?;
        Ok(())
    }
}

fn is_hung_up(port: &OwnedFd) -> io::Result<bool> {
    let now = Timespec::default();
    let mut fds = [PollFd::new(port, PollFlags::IN)];
    poll(&mut fds, Some(&now))?;
    Ok(fds[0].revents().contains(PollFlags::HUP))
}

async fn dial_unix(path: &Path) -> io::Result<Fd> {
    let stream = tokio::net::UnixStream::connect(path).await?;
    Fd::new(stream.into_std()?.into())
}

async fn connected(fd: Fd) -> io::Result<Fd> {
    fd.writable().await?;
    rustix::net::sockopt::socket_error(&fd)??;
    Ok(fd)
}
