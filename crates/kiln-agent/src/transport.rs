//! The agent's way to the host: vsock, a virtio-serial port, or, in tests, a Unix socket.

use std::fs;
use std::io;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{CWD, Mode, OFlags};

use crate::fd::Fd;
use crate::sys::vsock;

/// Name of the virtio-serial port.
const PORT_NAME: &str = "agent.0";
/// Port on the host that the agent dials.
const VSOCK_PORT: u32 = 5556;
/// Virtio device types, of the specification's section 5.
const VIRTIO_CONSOLE: &str = "0x0003";
/// The host's end of a serial port is looked at so often when no edge tells.
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
    let port = Fd::new(rustix::fs::openat(CWD, path, flags, Mode::empty())?)?;
    while is_hung_up(&port)? {
        tokio::select! {
            edge = port.next_edge() => edge?,
            () = tokio::time::sleep(HOST_POLL) => {}
        }
    }
    Ok(port)
}

fn is_hung_up(port: &Fd) -> io::Result<bool> {
    let now = Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    let mut fds = [PollFd::from_borrowed_fd(port.as_fd(), PollFlags::IN)];
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
