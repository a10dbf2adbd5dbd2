//! Something on the host that a sandbox must not find.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener};

use super::VerifyError;

/// A port that accepts connections by itself: the kernel completes them, nobody talks.
#[derive(Debug)]
pub(super) struct Beacon {
    pub(super) address: SocketAddrV4,
    _listener: TcpListener,
}

pub(super) fn on_all(addresses: &[Ipv4Addr]) -> Result<Vec<Beacon>, VerifyError> {
    let open = |address: &Ipv4Addr| {
        let address = *address;
        on(address).map_err(|source| VerifyError::Beacon { address, source })
    };
    addresses.iter().map(open).collect()
}

fn on(address: Ipv4Addr) -> io::Result<Beacon> {
    let listener = TcpListener::bind((address, 0))?;
    match listener.local_addr()? {
        SocketAddr::V4(address) => Ok(Beacon {
            address,
            _listener: listener,
        }),
        SocketAddr::V6(_) => Err(io::ErrorKind::AddrNotAvailable.into()),
    }
}
