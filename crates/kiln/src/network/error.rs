//! The network's failures in the product's words and codes.

use kiln_net::dns::ServeError;
use kiln_net::verify::VerifyError;
use kiln_net::wireguard::WireGuardError;
use kiln_net::{BridgeError, CloseError, HostError, NamespaceError, NetlinkError, NetworkError};

use super::user;
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

impl From<BridgeError> for Error {
    fn from(error: BridgeError) -> Self {
        let (code, hint) = match &error {
            BridgeError::SubnetTaken { .. } => (ErrorCode::InvalidSubnet, "choose another subnet"),
            BridgeError::Exhausted(_) => (
                ErrorCode::AddressesExhausted,
                "remove sandboxes from the network, or make one with a larger subnet",
            ),
            BridgeError::AddressTaken { .. } => {
                (ErrorCode::BridgeFailed, "choose another address, or none")
            }
            BridgeError::PerMember { .. } => (
                ErrorCode::InvalidNetworkPolicy,
                "give it to each sandbox instead",
            ),
            BridgeError::NotInKernel => (
                ErrorCode::BridgeFailed,
                "load the module nft_bridge, or use networks of sandboxes' own",
            ),
            BridgeError::Network(NetworkError::PortTaken { .. }) => {
                (ErrorCode::PortTaken, "publish another port of the host")
            }
            BridgeError::Network(NetworkError::Slot { .. }) => (
                ErrorCode::AddressesExhausted,
                "remove networks or sandboxes that are not needed any more",
            ),
            BridgeError::Network(NetworkError::Tap(_)) => {
                (ErrorCode::TapFailed, "the kernel needs /dev/net/tun")
            }
            _ => (
                ErrorCode::BridgeFailed,
                "the kernel needs bridges and nf_tables",
            ),
        };
        Self::new(code, "the network that sandboxes share failed")
            .with_source(error)
            .with_hint(hint)
    }
}

impl From<WireGuardError> for Error {
    fn from(error: WireGuardError) -> Self {
        let (code, hint) = match &error {
            WireGuardError::Table { .. } => (
                ErrorCode::InvalidWireGuard,
                "choose another routing table, or none",
            ),
            WireGuardError::InterfaceName { .. } => (
                ErrorCode::InvalidWireGuard,
                "choose another name for the tunnel",
            ),
            WireGuardError::NotInKernel => (
                ErrorCode::WireGuardFailed,
                "load the module wireguard, or use a tunnel that exists",
            ),
            _ => (
                ErrorCode::WireGuardFailed,
                "the tunnel, its routing table and its peers must be there to be used",
            ),
        };
        Self::new(code, "the tunnel cannot be used")
            .with_source(error)
            .with_hint(hint)
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
    let hint = if user::find().is_some() {
        "run the daemon as root; or, with QEMU and without a policy: --network user"
    } else {
        "run the daemon as root, or run without: --network none"
    };
    Error::new(
        ErrorCode::NetworkUnavailable,
        format!("this host cannot make networks for sandboxes: {reason}"),
    )
    .with_hint(hint)
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

    #[test]
    fn a9_bridges_and_tunnels_keep_their_codes() {
        let tap = || NetworkError::Tap(std::io::ErrorKind::PermissionDenied.into());
        let subnet = kiln_net::subnet::Cidr::ALL;
        let bridges = [
            BridgeError::Network(tap()),
            BridgeError::NotInKernel,
            BridgeError::SubnetTaken {
                subnet,
                taken: subnet,
            },
            BridgeError::Exhausted(kiln_net::subnet::SubnetError::Exhausted { subnet }),
            BridgeError::PerMember { field: "publish" },
            BridgeError::AddressTaken {
                address: std::net::Ipv4Addr::LOCALHOST,
                subnet,
            },
        ];
        for error in bridges {
            let code = error.code();
            assert_eq!(Error::from(error).code().as_str(), code);
        }
        let interface = kiln_net::subnet::InterfaceName::new("wg0").expect("name");
        let tunnels = [
            WireGuardError::NotInKernel,
            WireGuardError::Table { table: 0 },
            WireGuardError::TableTaken { table: 7 },
            WireGuardError::InterfaceTaken {
                interface: interface.clone(),
            },
            WireGuardError::NoInterface { interface },
        ];
        for error in tunnels {
            let code = error.code();
            assert_eq!(Error::from(error).code().as_str(), code);
        }
    }
}
