//! A stable code for every failure (A9): what callers match on, while texts may change. Pure.

use crate::host::HostError;
use crate::network::{BridgeError, NetworkError};
use crate::policy::PolicyError;
use crate::subnet::SubnetError;
use crate::wireguard::{ConfigError, WireGuardError};

const NETWORK_SETUP_FAILED: &str = "NETWORK_SETUP_FAILED";
const BRIDGE_SETUP_FAILED: &str = "BRIDGE_SETUP_FAILED";
const INVALID_SUBNET: &str = "INVALID_SUBNET";
const INVALID_INTERFACE_NAME: &str = "INVALID_INTERFACE_NAME";
const INVALID_FIREWALL_CONFIG: &str = "INVALID_FIREWALL_CONFIG";
const INVALID_WIREGUARD_CONFIG: &str = "INVALID_WIREGUARD_CONFIG";

impl SubnetError {
    /// The stable code.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Malformed { .. } | Self::Prefix { .. } => INVALID_SUBNET,
            Self::Exhausted { .. } => "IP_EXHAUSTED",
            Self::InterfaceName { .. } => INVALID_INTERFACE_NAME,
        }
    }
}

impl PolicyError {
    /// The stable code.
    pub fn code(&self) -> &'static str {
        INVALID_FIREWALL_CONFIG
    }
}

impl ConfigError {
    /// The stable code.
    pub fn code(&self) -> &'static str {
        INVALID_WIREGUARD_CONFIG
    }
}

impl WireGuardError {
    /// The stable code.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Table { .. } | Self::InterfaceName { .. } => INVALID_WIREGUARD_CONFIG,
            Self::Netlink { .. }
            | Self::NotInKernel
            | Self::InterfaceTaken { .. }
            | Self::NoInterface { .. }
            | Self::TableTaken { .. }
            | Self::Endpoint { .. } => "WIREGUARD_SETUP_FAILED",
        }
    }
}

impl NetworkError {
    /// The stable code.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Name(error) => error.code(),
            Self::Tap(_) => "TAP_CREATE_FAILED",
            Self::PortTaken { .. } => "PORT_TAKEN",
            Self::Slot { .. } => "IP_EXHAUSTED",
            Self::Namespace(_) | Self::Netlink(_) | Self::Gone { .. } | Self::Random(_) => {
                NETWORK_SETUP_FAILED
            }
        }
    }
}

impl BridgeError {
    /// The stable code.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Network(error) if error.code() == NETWORK_SETUP_FAILED => BRIDGE_SETUP_FAILED,
            Self::Network(error) => error.code(),
            Self::Exhausted(error) => error.code(),
            Self::SubnetTaken { .. } => INVALID_SUBNET,
            Self::PerMember { .. } => INVALID_FIREWALL_CONFIG,
            Self::NotInKernel | Self::AddressTaken { .. } => BRIDGE_SETUP_FAILED,
        }
    }
}

impl HostError {
    /// The stable code.
    pub fn code(&self) -> &'static str {
        match self {
            Self::PoolTaken { .. } | Self::PoolTooSmall { .. } => INVALID_SUBNET,
            Self::Netlink(_) | Self::TableTaken { .. } => NETWORK_SETUP_FAILED,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::net::Ipv4Addr;

    use super::*;
    use crate::policy::PolicySpec;
    use crate::subnet::{Cidr, InterfaceName, Subnet};
    use crate::wireguard::Config;

    #[test]
    fn a9_the_codes_that_callers_know() {
        let subnet = |text: &str| text.parse::<Subnet>().unwrap_err().code();
        assert_eq!(subnet("172.30.0.0/31"), "INVALID_SUBNET");
        assert_eq!(subnet("172.30.0/24"), "INVALID_SUBNET");
        let small: Subnet = "172.30.0.0/30".parse().unwrap();
        let taken = BTreeSet::from([Ipv4Addr::new(172, 30, 0, 2)]);
        assert_eq!(small.next_free(&taken).unwrap_err().code(), "IP_EXHAUSTED");
        let name = InterfaceName::new("sixteen-letters!").unwrap_err();
        assert_eq!(name.code(), "INVALID_INTERFACE_NAME");
        assert_eq!(NetworkError::from(name).code(), "INVALID_INTERFACE_NAME");
        let policy = PolicySpec {
            allowed_cidrs: vec!["x".to_owned()],
            ..PolicySpec::default()
        };
        assert_eq!(
            policy.check().unwrap_err().code(),
            "INVALID_FIREWALL_CONFIG"
        );
        let config = "[Interface]".parse::<Config>().unwrap_err();
        assert_eq!(config.code(), "INVALID_WIREGUARD_CONFIG");
        assert_eq!(WireGuardError::NotInKernel.code(), "WIREGUARD_SETUP_FAILED");
        assert_eq!(BridgeError::NotInKernel.code(), "BRIDGE_SETUP_FAILED");
        let tap = NetworkError::Tap(std::io::ErrorKind::PermissionDenied.into());
        assert_eq!(BridgeError::Network(tap).code(), "TAP_CREATE_FAILED");
        let pool = HostError::PoolTooSmall { pool: Cidr::ALL };
        assert_eq!(pool.code(), "INVALID_SUBNET");
    }
}
