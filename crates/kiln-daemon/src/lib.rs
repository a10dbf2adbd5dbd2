//! Kiln's daemon: [`kiln::Host`] behind the REST contract of [`kiln_api`], on a Unix socket.
//!
//! The only room that knows HTTP servers. It owns the socket, the connections on it and who may
//! use them; what a request means is the library's business. Machines are never the daemon's:
//! they run on when it ends, and the next one adopts them.

mod daemon;
pub mod descriptors;
mod http;
mod lifetime;
mod lock;
pub mod log;
pub mod memory;
mod remote;
mod socket;
mod v1;

pub use daemon::{Daemon, DaemonConfig, OpenError, ServeError};
pub use kiln::{Check, FirecrackerRelease, HostConfig, Level, SERVE_PAGES, doctor, serve_pages};
pub use lock::{DaemonLock, LockError, wait_for_end};
pub use remote::{RemoteConfig, RemoteError};
pub use socket::SocketError;

/// Version of Kiln that this is.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
