//! What a version of Firecracker knows, and what is known to be broken in it.
//!
//! Versions 1.7 to 1.16. Firecracker refuses fields that it does not know, so every request says
//! which [`Feature`]s it uses and is held against the version before it is sent.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// `major.minor.patch`, as `--version` prints it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Version {
    /// Changes with what breaks.
    pub major: u16,
    /// Changes with what is new.
    pub minor: u16,
    /// Changes with what is mended.
    pub patch: u16,
}

/// Text that is no version.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no version such as 1.16.1")]
pub struct VersionError(pub String);

impl Version {
    /// The oldest that this client speaks to.
    pub const OLDEST: Self = Self::new(1, 7, 0);
    /// The newest minor version that this client was held against.
    pub const NEWEST: Self = Self::new(1, 16, u16::MAX);

    /// `major.minor.patch`
    #[must_use]
    pub const fn new(major: u16, minor: u16, patch: u16) -> Self {
        Self {
            major,
            minor,
            patch,
        }
    }

    /// Whether requests of this client are understood by that version.
    #[must_use]
    pub fn is_supported(self) -> bool {
        (Self::OLDEST..=Self::NEWEST).contains(&self)
    }
}

impl fmt::Display for Version {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

impl FromStr for Version {
    type Err = VersionError;

    /// With or without a leading `v`; what follows a `-` is a build's own.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refused = || VersionError(text.chars().take(40).collect());
        let plain = text.strip_prefix('v').unwrap_or(text);
        let plain = plain.split('-').next().unwrap_or(plain);
        let mut parts = plain.split('.');
        let mut next = || {
            let digits = parts.next()?;
            let all = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
            all.then(|| digits.parse().ok())?
        };
        let version = (next(), next(), next());
        match (version, parts.next()) {
            ((Some(major), Some(minor), Some(patch)), None) => Ok(Self::new(major, minor, patch)),
            _ => Err(refused()),
        }
    }
}

impl TryFrom<String> for Version {
    type Error = VersionError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<Version> for String {
    fn from(version: Version) -> Self {
        version.to_string()
    }
}

/// Something that came with a version later than the oldest one supported.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Feature {
    /// A change of the machine configuration that names only what changes.
    PartialMachineConfig,
    /// Lists of the custom CPU template: KVM capabilities and vCPU features.
    CpuTemplateLists,
    /// Other TAPs than a snapshot was made with.
    NetworkOverrides,
    /// Dirty page tracking of a loaded snapshot.
    TrackDirtyPagesOnLoad,
    /// Devices on a PCI bus.
    Pci,
    /// Metadata in the form of another cloud's service.
    ImdsCompat,
    /// A file for the serial port.
    Serial,
    /// Persistent memory devices.
    Pmem,
    /// Memory that is added while the guest runs.
    MemoryHotplug,
    /// Free page hinting and reporting of the balloon.
    BalloonHinting,
    /// A snapshot that steps the guest's clock to the host's.
    ClockRealtime,
    /// Devices that come and go while the guest runs.
    DeviceHotplug,
    /// Rate limiters of persistent memory devices.
    PmemRateLimiter,
    /// The size of packets of a network interface.
    Mtu,
    /// Another socket than a snapshot's vsock had.
    VsockOverride,
    /// A limit of the serial port.
    SerialRateLimiter,
}

impl Feature {
    /// Every one.
    pub const ALL: [Self; 16] = [
        Self::PartialMachineConfig,
        Self::CpuTemplateLists,
        Self::NetworkOverrides,
        Self::TrackDirtyPagesOnLoad,
        Self::Pci,
        Self::ImdsCompat,
        Self::Serial,
        Self::Pmem,
        Self::MemoryHotplug,
        Self::BalloonHinting,
        Self::ClockRealtime,
        Self::DeviceHotplug,
        Self::PmemRateLimiter,
        Self::Mtu,
        Self::VsockOverride,
        Self::SerialRateLimiter,
    ];

    /// Whether `version` has it.
    #[must_use]
    pub fn is_in(self, version: Version) -> bool {
        let since = |minor| version >= Version::new(1, minor, 0);
        match self {
            Self::PartialMachineConfig | Self::CpuTemplateLists => since(11),
            Self::NetworkOverrides => since(12),
            Self::TrackDirtyPagesOnLoad | Self::Pci | Self::ImdsCompat => since(13),
            Self::Serial | Self::Pmem | Self::MemoryHotplug | Self::BalloonHinting => since(14),
            // Mended backwards into 1.14, and forgotten in the first 1.15.
            Self::ClockRealtime => {
                version >= Version::new(1, 14, 4) && version != Version::new(1, 15, 0)
            }
            Self::DeviceHotplug
            | Self::PmemRateLimiter
            | Self::Mtu
            | Self::VsockOverride
            | Self::SerialRateLimiter => since(16),
        }
    }
}

/// Something that is broken in some versions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KnownBad {
    /// What breaks, in a sentence for people.
    pub what: &'static str,
    /// What it does to a machine that meets it.
    pub effect: Effect,
    /// What Kiln does about it.
    pub remedy: Remedy,
    from: Version,
    to: Version,
}

/// How bad something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// The guest cannot be reached any more.
    Hangs,
    /// Data is wrong.
    Corrupts,
    /// Something is weaker or odder than it should be.
    Degrades,
}

/// What is done about something that is broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Remedy {
    /// What would meet it is refused.
    Refused,
    /// It is gone around.
    Avoided,
    /// Nothing: whoever minds takes another version.
    Told,
}

const KNOWN_BAD: &[KnownBad] = &[
    bad(
        "a guest's vsock is dead after a snapshot was loaded",
        (Effect::Hangs, Remedy::Refused),
        (1, 16, 0),
        (1, 16, 0),
    ),
    bad(
        "a guest's vsock receives nothing any more after a plain pause and resume",
        (Effect::Hangs, Remedy::Avoided),
        (1, 16, 0),
        (1, 16, 1),
    ),
    bad(
        "diff snapshots of more than 3 GiB of memory are corrupt",
        (Effect::Corrupts, Remedy::Refused),
        (1, 13, 0),
        (1, 14, 1),
    ),
    bad(
        "the monotonic clock of a guest jumps when a snapshot is loaded on hosts since Linux 5.16",
        (Effect::Degrades, Remedy::Told),
        (1, 7, 0),
        (1, 14, 3),
    ),
    bad(
        "the serial port can be stuck after a snapshot was loaded",
        (Effect::Degrades, Remedy::Told),
        (1, 7, 0),
        (1, 15, u16::MAX),
    ),
    bad(
        "a guest can make the entropy device allocate the host's memory",
        (Effect::Degrades, Remedy::Told),
        (1, 7, 0),
        (1, 15, 0),
    ),
    bad(
        "changes of hot-plugged memory can be skipped",
        (Effect::Degrades, Remedy::Told),
        (1, 14, 0),
        (1, 15, 0),
    ),
    bad(
        "custom CPU templates lose pass-through bits on hosts since Linux 6.13",
        (Effect::Degrades, Remedy::Told),
        (1, 16, 0),
        (1, 16, 1),
    ),
];

const fn bad(
    what: &'static str,
    (effect, remedy): (Effect, Remedy),
    from: (u16, u16, u16),
    to: (u16, u16, u16),
) -> KnownBad {
    KnownBad {
        what,
        effect,
        remedy,
        from: Version::new(from.0, from.1, from.2),
        to: Version::new(to.0, to.1, to.2),
    }
}

/// What is known to be broken in `version`; for `doctor`.
pub fn known_bad(version: Version) -> impl Iterator<Item = &'static KnownBad> + Clone {
    KNOWN_BAD
        .iter()
        .filter(move |bad| (bad.from..=bad.to).contains(&version))
}

/// Whether a machine restored by `version` could not be reached: refused before it is tried.
#[must_use]
pub fn restore_hangs(version: Version) -> bool {
    version == Version::new(1, 16, 0)
}

/// Whether the guest's connections hang after a plain pause and resume, the agent's too.
#[must_use]
pub fn resume_wedges(version: Version) -> bool {
    (Version::new(1, 16, 0)..=Version::new(1, 16, 1)).contains(&version)
}

/// Whether diff snapshots of a machine of this size cannot be trusted.
#[must_use]
pub fn diff_corrupts(version: Version, mem_mib: u32) -> bool {
    (Version::new(1, 13, 0)..=Version::new(1, 14, 1)).contains(&version) && mem_mib > 3 * 1024
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn features_come_with_their_versions() {
        let table = [
            ("1.7.0", 0),
            ("1.10.1", 0),
            ("1.11.0", 2),
            ("1.12.1", 3),
            ("1.13.0", 6),
            ("1.14.0", 10),
            ("1.14.4", 11),
            ("1.15.0", 10),
            ("1.15.1", 11),
            ("1.16.0", 16),
            ("1.16.2", 16),
        ];
        for (version, count) in table {
            let version: Version = version.parse().unwrap();
            let has = Feature::ALL.iter().filter(|one| one.is_in(version)).count();
            assert_eq!(has, count, "{version}");
        }
    }

    #[test]
    fn what_is_broken_is_known() {
        let of = |text: &str| known_bad(text.parse().unwrap()).count();
        assert_eq!(of("1.16.0"), 3);
        assert_eq!(of("1.16.1"), 2);
        assert_eq!(of("1.16.2"), 0);
        // Nothing that hangs or corrupts is left to chance, and what is refused or avoided is.
        for version in [Version::new(1, 16, 0), Version::new(1, 14, 0)] {
            let bad = known_bad(version).filter(|bad| bad.effect != Effect::Degrades);
            assert!(bad.clone().count() > 0);
            assert!(bad.into_iter().all(|bad| bad.remedy != Remedy::Told));
        }
        assert!(resume_wedges(Version::new(1, 16, 1)) && !resume_wedges(Version::new(1, 16, 2)));
        assert!(!resume_wedges(Version::new(1, 15, 1)));
        assert!(restore_hangs("1.16.0".parse().unwrap()));
        assert!(!restore_hangs("1.16.1".parse().unwrap()));
        assert!(diff_corrupts(Version::new(1, 14, 1), 4096));
        assert!(!diff_corrupts(Version::new(1, 14, 1), 1024));
        assert!(!diff_corrupts(Version::new(1, 14, 2), 4096));
    }

    #[test]
    fn only_what_was_held_against_it_is_supported() {
        let supported = |text: &str| text.parse::<Version>().unwrap().is_supported();
        assert!(supported("v1.7.0") && supported("1.16.9") && supported("1.16.1-dirty"));
        assert!(!supported("1.6.0") && !supported("1.17.0") && !supported("2.0.0"));
    }

    proptest! {
        #[test]
        fn versions_read_back_and_noise_is_survived(
            parts in any::<(u16, u16, u16)>(), noise in "v?[0-9.+ -]{0,12}")
        {
            let version = Version::new(parts.0, parts.1, parts.2);
            prop_assert_eq!(version.to_string().parse::<Version>().unwrap(), version);
            let _ = noise.parse::<Version>();
        }
    }
}
