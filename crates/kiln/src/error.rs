//! The one error of the product's surface: a stable code, what was tried, and what to do.
//!
//! The rooms below have their own typed errors; they are mapped here, once, at the edge.

use std::error::Error as StdError;
use std::fmt;

use crate::guest::{GuestError, Refusal};

/// Stable codes. Programs match on these; they do not change once released.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorCode {
    /// A request breaks a rule; all faults are named.
    InvalidSpec,
    /// A configuration value or environment variable cannot be used.
    InvalidConfig,
    /// No sandbox has this id or name.
    NotFound,
    /// An id prefix fits several sandboxes.
    Ambiguous,
    /// The name is taken.
    NameTaken,
    /// The idempotency key belongs to another request.
    IdempotencyKeyReused,
    /// A hook keeps it from being done.
    HookRefused,
    /// The call does not fit the sandbox's state.
    InvalidState,
    /// Another process owns the data directory.
    DataDirInUse,
    /// The data directory was written by a newer Kiln.
    DataDirTooNew,
    /// The image cannot be read or built.
    ImageFailed,
    /// There is no such image, here or in its registry.
    ImageNotFound,
    /// Someone needs the image.
    ImageInUse,
    /// The registry wants other credentials.
    RegistryDenied,
    /// The registry fails, lies, or cannot be reached.
    PullFailed,
    /// There is no such volume.
    VolumeNotFound,
    /// Someone has the volume.
    VolumeInUse,
    /// The volume cannot be made, checked or grown.
    VolumeFailed,
    /// No snapshot has this id or name.
    SnapshotNotFound,
    /// Sandboxes run from the snapshot's memory, or will.
    SnapshotInUse,
    /// A snapshot cannot hold what the sandbox has, or the engine cannot do that.
    SnapshotUnsupported,
    /// The snapshot was made on another engine, processor or version.
    SnapshotMismatch,
    /// The snapshot's files are not what was written.
    SnapshotDamaged,
    /// The snapshot could not be made or copied.
    SnapshotFailed,
    /// It cannot be found out which base image is meant.
    BaseImageResolveFailed,
    /// The manifest of a base image cannot be had.
    BaseImageManifestFailed,
    /// The manifest of a base image breaks a rule.
    InvalidBaseImageManifest,
    /// The base image cannot be fetched, verified or kept.
    BaseImagePrepareFailed,
    /// The number of base images to keep is none.
    InvalidBaseImageCacheLimit,
    /// The kernel cannot be found, read or fetched.
    KernelFailed,
    /// No engine can be used on this host.
    NoEngine,
    /// A VMM binary is missing.
    BinaryNotFound,
    /// A VMM's release cannot be downloaded, or is not what was published.
    DownloadFailed,
    /// Nobody says which release of a VMM is the newest.
    VersionFetchFailed,
    /// Control groups cannot be seen, so no machine can be limited.
    CgroupsHidden,
    /// The machine could not be started.
    StartFailed,
    /// The guest did not come up in time.
    AgentTimeout,
    /// The guest's agent does not answer.
    AgentUnreachable,
    /// The command does not exist in the guest.
    CommandNotFound,
    /// The command exists but cannot be executed.
    CommandNotExecutable,
    /// The guest refused an exec request: unknown user, bad directory.
    ExecFailed,
    /// No exec session has this number.
    SessionNotFound,
    /// Nothing in the guest takes connections at the port.
    GuestPortClosed,
    /// The guest's agent, kept by a snapshot, cannot do that yet.
    AgentTooOld,
    /// The guest's kernel cannot hold a command to limits.
    LimitsUnavailable,
    /// The guest has no such file or directory.
    FileNotFound,
    /// A file of the guest cannot be read, written or changed.
    FileFailed,
    /// Not enough free space.
    DiskFull,
    /// This host can make no networks for sandboxes.
    NetworkUnavailable,
    /// A network could not be made, changed or taken down.
    NetworkSetupFailed,
    /// A TAP could not be created.
    TapFailed,
    /// A port of the host that should be published is taken.
    PortTaken,
    /// No address is left for another sandbox.
    AddressesExhausted,
    /// A network policy breaks a rule; all faults are named.
    InvalidNetworkPolicy,
    /// No network has this name.
    NetworkNotFound,
    /// A sandbox has the network.
    NetworkInUse,
    /// A subnet is none, or is not free.
    InvalidSubnet,
    /// A name that no interface can have.
    InvalidInterfaceName,
    /// A tunnel is described wrongly.
    InvalidWireGuard,
    /// The bridge of a network could not be made, changed or taken down.
    BridgeFailed,
    /// A tunnel could not be brought into use.
    WireGuardFailed,
    /// Something on this host failed: files, processes, the store.
    Host,
}

impl ErrorCode {
    /// The code as it is printed and sent.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::InvalidSpec => "INVALID_SPEC",
            Self::InvalidConfig => "INVALID_CONFIG",
            Self::NotFound => "NOT_FOUND",
            Self::Ambiguous => "AMBIGUOUS",
            Self::NameTaken => "NAME_TAKEN",
            Self::IdempotencyKeyReused => "IDEMPOTENCY_KEY_REUSED",
            Self::HookRefused => "HOOK_REFUSED",
            Self::InvalidState => "INVALID_STATE",
            Self::DataDirInUse => "DATA_DIR_IN_USE",
            Self::DataDirTooNew => "DATA_DIR_TOO_NEW",
            Self::ImageFailed => "IMAGE_FAILED",
            Self::ImageNotFound => "IMAGE_NOT_FOUND",
            Self::ImageInUse => "IMAGE_IN_USE",
            Self::RegistryDenied => "REGISTRY_DENIED",
            Self::PullFailed => "PULL_FAILED",
            Self::VolumeNotFound => "VOLUME_NOT_FOUND",
            Self::VolumeInUse => "VOLUME_IN_USE",
            Self::VolumeFailed => "VOLUME_FAILED",
            Self::SnapshotNotFound => "SNAPSHOT_NOT_FOUND",
            Self::SnapshotInUse => "SNAPSHOT_IN_USE",
            Self::SnapshotUnsupported => "SNAPSHOT_UNSUPPORTED",
            Self::SnapshotMismatch => "SNAPSHOT_MISMATCH",
            Self::SnapshotDamaged => "SNAPSHOT_DAMAGED",
            Self::SnapshotFailed => "SNAPSHOT_FAILED",
            Self::BaseImageResolveFailed => "BASE_IMAGE_RESOLVE_FAILED",
            Self::BaseImageManifestFailed => "BASE_IMAGE_MANIFEST_FAILED",
            Self::InvalidBaseImageManifest => "INVALID_BASE_IMAGE_MANIFEST",
            Self::BaseImagePrepareFailed => "BASE_IMAGE_PREPARE_FAILED",
            Self::InvalidBaseImageCacheLimit => "INVALID_BASE_IMAGE_CACHE_LIMIT",
            Self::KernelFailed => "KERNEL_FAILED",
            Self::NoEngine => "NO_ENGINE",
            Self::BinaryNotFound => "BINARY_NOT_FOUND",
            Self::DownloadFailed => "DOWNLOAD_FAILED",
            Self::VersionFetchFailed => "VERSION_FETCH_FAILED",
            Self::CgroupsHidden => "CGROUPS_HIDDEN",
            Self::StartFailed => "START_FAILED",
            Self::AgentTimeout => "AGENT_TIMEOUT",
            Self::AgentUnreachable => "AGENT_UNREACHABLE",
            Self::CommandNotFound => "COMMAND_NOT_FOUND",
            Self::CommandNotExecutable => "COMMAND_NOT_EXECUTABLE",
            Self::ExecFailed => "EXEC_FAILED",
            Self::SessionNotFound => "SESSION_NOT_FOUND",
            Self::GuestPortClosed => "GUEST_PORT_CLOSED",
            Self::AgentTooOld => "AGENT_TOO_OLD",
            Self::LimitsUnavailable => "LIMITS_UNAVAILABLE",
            Self::FileNotFound => "FILE_NOT_FOUND",
            Self::FileFailed => "FILE_FAILED",
            Self::DiskFull => "DISK_FULL",
            Self::NetworkUnavailable => "NETWORK_UNAVAILABLE",
            Self::NetworkSetupFailed => "NETWORK_SETUP_FAILED",
            Self::TapFailed => "TAP_CREATE_FAILED",
            Self::PortTaken => "PORT_TAKEN",
            Self::AddressesExhausted => "IP_EXHAUSTED",
            Self::InvalidNetworkPolicy => "INVALID_FIREWALL_CONFIG",
            Self::NetworkNotFound => "NETWORK_NOT_FOUND",
            Self::NetworkInUse => "NETWORK_IN_USE",
            Self::InvalidSubnet => "INVALID_SUBNET",
            Self::InvalidInterfaceName => "INVALID_INTERFACE_NAME",
            Self::InvalidWireGuard => "INVALID_WIREGUARD_CONFIG",
            Self::BridgeFailed => "BRIDGE_SETUP_FAILED",
            Self::WireGuardFailed => "WIREGUARD_SETUP_FAILED",
            Self::Host => "HOST_ERROR",
        }
    }

    /// HTTP status under which the API answers it.
    #[must_use]
    pub fn http_status(self) -> u16 {
        match self {
            Self::InvalidSpec
            | Self::InvalidConfig
            | Self::InvalidNetworkPolicy
            | Self::InvalidBaseImageManifest
            | Self::InvalidBaseImageCacheLimit
            | Self::InvalidSubnet
            | Self::InvalidInterfaceName
            | Self::InvalidWireGuard
            | Self::Ambiguous => 400,
            Self::NotFound
            | Self::SessionNotFound
            | Self::FileNotFound
            | Self::ImageNotFound
            | Self::VolumeNotFound
            | Self::SnapshotNotFound
            | Self::NetworkNotFound => 404,
            Self::NameTaken
            | Self::IdempotencyKeyReused
            | Self::HookRefused
            | Self::InvalidState
            | Self::PortTaken
            | Self::NetworkInUse
            | Self::DataDirInUse
            | Self::DataDirTooNew
            | Self::ImageInUse
            | Self::VolumeInUse
            | Self::SnapshotInUse => 409,
            Self::ImageFailed
            | Self::BaseImageResolveFailed
            | Self::BaseImageManifestFailed
            | Self::VolumeFailed
            | Self::SnapshotUnsupported
            | Self::SnapshotMismatch
            | Self::SnapshotDamaged
            | Self::KernelFailed
            | Self::CommandNotFound
            | Self::CommandNotExecutable
            | Self::ExecFailed
            | Self::FileFailed => 422,
            Self::NoEngine
            | Self::BinaryNotFound
            | Self::AgentTooOld
            | Self::LimitsUnavailable
            | Self::CgroupsHidden
            | Self::NetworkUnavailable => 501,
            Self::StartFailed
            | Self::DownloadFailed
            | Self::VersionFetchFailed
            | Self::AgentUnreachable
            | Self::GuestPortClosed
            | Self::RegistryDenied
            | Self::BaseImagePrepareFailed
            | Self::PullFailed => 502,
            Self::AgentTimeout => 504,
            Self::DiskFull | Self::AddressesExhausted => 507,
            Self::Host
            | Self::SnapshotFailed
            | Self::NetworkSetupFailed
            | Self::BridgeFailed
            | Self::WireGuardFailed
            | Self::TapFailed => 500,
        }
    }
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What went wrong, for a person and for a program.
#[derive(Debug)]
pub struct Error {
    code: ErrorCode,
    message: String,
    hint: Option<String>,
    details: Option<String>,
    source: Option<Box<dyn StdError + Send + Sync>>,
    may_pass: bool,
}

impl Error {
    /// An error of this code; `message` says what was tried.
    #[must_use]
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            hint: None,
            details: None,
            source: None,
            may_pass: false,
        }
    }

    /// Adds what to do about it.
    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Adds long material: the tail of a console, the last output of a VMM.
    #[must_use]
    pub fn with_details(mut self, details: impl Into<String>) -> Self {
        let details = details.into();
        self.details = (!details.trim().is_empty()).then_some(details);
        self
    }

    /// Adds the cause; [`Error::message`] then tells the whole chain.
    #[must_use]
    pub fn with_source(mut self, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// Says that the same may succeed when it is tried again.
    pub(crate) fn that_may_pass(mut self) -> Self {
        self.may_pass = true;
        self
    }

    /// Whether the same may succeed when it is tried again.
    pub(crate) fn may_pass(&self) -> bool {
        self.may_pass
    }

    /// The stable code.
    #[must_use]
    pub fn code(&self) -> ErrorCode {
        self.code
    }

    /// What was tried and why it failed, causes included, in one line.
    #[must_use]
    pub fn message(&self) -> String {
        let mut text = self.message.clone();
        let mut cause = StdError::source(self);
        while let Some(error) = cause {
            let part = error.to_string();
            if !text.ends_with(&part) {
                text.push_str(": ");
                text.push_str(&part);
            }
            cause = error.source();
        }
        text
    }

    /// What to do about it.
    #[must_use]
    pub fn hint(&self) -> Option<&str> {
        self.hint.as_deref()
    }

    /// Long material: the tail of a console, the last output of a VMM.
    #[must_use]
    pub fn details(&self) -> Option<&str> {
        self.details.as_deref()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source
            .as_deref()
            .map(|source| source as &(dyn StdError + 'static))
    }
}

impl From<kiln_vmm::JailError> for Error {
    fn from(error: kiln_vmm::JailError) -> Self {
        Self::new(ErrorCode::Host, "cannot remove what is left of a machine").with_source(error)
    }
}

impl From<GuestError> for Error {
    fn from(error: GuestError) -> Self {
        let code = match &error {
            GuestError::Refused { kind, .. } => match kind {
                Refusal::NotFound => ErrorCode::CommandNotFound,
                Refusal::NotExecutable => ErrorCode::CommandNotExecutable,
                Refusal::NoSuchSession => ErrorCode::SessionNotFound,
                Refusal::NoSuchFile => ErrorCode::FileNotFound,
                Refusal::FileRefused => ErrorCode::FileFailed,
                Refusal::PoweringOff => ErrorCode::InvalidState,
                Refusal::PortClosed => ErrorCode::GuestPortClosed,
                Refusal::TooOld => ErrorCode::AgentTooOld,
                Refusal::NoLimits => ErrorCode::LimitsUnavailable,
                _ => ErrorCode::ExecFailed,
            },
            GuestError::TooLong(_) | GuestError::Ended => ErrorCode::ExecFailed,
            _ => ErrorCode::AgentUnreachable,
        };
        Self::new(code, error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_message_tells_the_chain_once() {
        let cause = std::io::Error::other("disk on fire");
        let error = Error::new(ErrorCode::Host, "cannot write the row").with_source(cause);
        assert_eq!(error.message(), "cannot write the row: disk on fire");
        assert_eq!(error.to_string(), "cannot write the row");
    }

    #[test]
    fn a9_every_code_is_documented() {
        let page = include_str!("../../../docs/errors.md");
        // Only where codes are given their names is one behind an arrow.
        let codes = include_str!("error.rs").split("=> \"").skip(1);
        let codes: Vec<_> = codes.filter_map(|rest| rest.split('"').next()).collect();
        let codes = codes
            .iter()
            .filter(|it| it.bytes().all(|b| b.is_ascii_uppercase() || b == b'_'));
        let mut number = 0;
        for code in codes {
            assert!(
                page.contains(&format!("`{code}`")),
                "{code} is not in docs/errors.md"
            );
            number += 1;
        }
        assert!(number > 30);
    }

    #[test]
    fn blank_details_are_none() {
        assert!(
            Error::new(ErrorCode::Host, "x")
                .with_details(" \n")
                .details()
                .is_none()
        );
    }
}
