//! The network's failures in the product's words and codes.

use kiln_net::dns::ServeError;
use kiln_net::verify::VerifyError;
use kiln_net::{CloseError, HostError, NamespaceError, NetlinkError, NetworkError};

use crate::error::{Error, ErrorCode};

impl From<HostError> for Error {
    fn from(error: HostError) -> Self {
        let hint = match &error {
            HostError::PoolTaken { .. } | HostError::PoolTooSmall { .. } => {
                "free one of the address pools, or run without: --network none"
            }
            _ => "the kernel needs nf_tables and CAP_NET_ADMIN; or run without: --network none",
        };
        Self::new(
            ErrorCode::NetworkSetupFailed,
            "this host's network cannot be set up",
        )
        .with_source(error)
        .with_hint(hint)
    }
}

impl From<ServeError> for Error {
    fn from(error: ServeError) -> Self {
        Self::new(
            ErrorCode::NetworkSetupFailed,
            "the sandboxes' resolver cannot listen",
        )
        .with_source(error)
        .with_hint("another program has taken the address; or run without: --network none")
    }
}

impl From<NetworkError> for Error {
    fn from(error: NetworkError) -> Self {
        let code = match &error {
            NetworkError::PortTaken { .. } => ErrorCode::PortTaken,
            NetworkError::Slot { .. } => ErrorCode::AddressesExhausted,
            NetworkError::Tap(_) => ErrorCode::TapFailed,
            _ => ErrorCode::NetworkSetupFailed,
        };
        let failed = Self::new(code, "the sandbox's network failed").with_source(error);
        match code {
            ErrorCode::PortTaken => failed.with_hint("publish another port of the host"),
            _ => failed,
        }
    }
}

impl From<CloseError> for Error {
    fn from(error: CloseError) -> Self {
        let parts: Vec<String> = error.failures.iter().map(ToString::to_string).collect();
        Self::new(
            ErrorCode::NetworkSetupFailed,
            "the sandbox's network was not taken down whole",
        )
        .with_source(error)
        .with_details(parts.join("\n"))
        .with_hint("what is left is removed when the daemon starts again")
    }
}

impl From<NamespaceError> for Error {
    fn from(error: NamespaceError) -> Self {
        Self::from(NetworkError::from(error))
    }
}

impl From<NetlinkError> for Error {
    fn from(error: NetlinkError) -> Self {
        Self::from(NetworkError::from(error))
    }
}

impl From<VerifyError> for Error {
    fn from(error: VerifyError) -> Self {
        Self::new(
            ErrorCode::NetworkSetupFailed,
            "the network cannot be verified",
        )
        .with_source(error)
    }
}

/// Why this host can make no networks.
pub(super) fn unavailable(reason: &str) -> Error {
    Error::new(
        ErrorCode::NetworkUnavailable,
        format!("this host cannot make networks for sandboxes: {reason}"),
    )
    .with_hint("run the daemon as root, or run without: --network none")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The codes of both crates are one list: what `kiln-net` calls a failure is what users see.
    #[test]
    fn a9_network_failures_keep_their_codes() {
        let tap = NetworkError::Tap(std::io::ErrorKind::PermissionDenied.into());
        let slot = NetworkError::Slot {
            slot: 1,
            pool: kiln_net::subnet::Cidr::ALL,
        };
        for error in [tap, slot] {
            let code = error.code();
            assert_eq!(Error::from(error).code().as_str(), code);
        }
    }
}
