//! The pinned table of Firecracker's CI kernels.
//!
//! Nobody publishes checksums for these files and the bucket has no stable "latest", so versions
//! are named here with digests of our own; configuration can add to the table or replace entries
//! (a mirror, a newer kernel). These kernels have no modules: everything is built in.

use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::elf::Architecture;
use super::{KernelError, Material, bootable, io_error};
use crate::download::{Download, fetch_blocking};
use crate::progress::Progress;

/// Where Firecracker's CI keeps its artifacts.
pub(crate) const BUCKET: &str = "https://s3.amazonaws.com/spec.ccfc.min";
/// Where the size is not known; the digest decides in any case.
const MAX_SIZE: u64 = 256 << 20;

/// One kernel whose bytes are known in advance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PinnedKernel {
    /// `6.1.155`.
    pub version: String,
    /// `x86_64` or `aarch64`.
    pub architecture: String,
    /// Where it is.
    pub url: String,
    /// Its length in bytes, where known.
    #[serde(default)]
    pub size: Option<u64>,
    /// Its SHA-256 in hex.
    pub sha256: String,
}

/// Version, architecture, path in the bucket, size where published, SHA-256. The digests were not
/// computed here but taken from public projects that pin the same file; each names its source.
const TABLE: &[(&str, Architecture, &str, Option<u64>, &str)] = &[
    (
        "6.1.155",
        Architecture::X86_64,
        "firecracker-ci/v1.15/x86_64/vmlinux-6.1.155",
        // Size and digest: nya-a-cat/ferrobox, its supply-chain record (CI hashes it on each run).
        // At least eight further public projects pin the same digest.
        Some(44_279_576),
        "e20e46d0c36c55c0d1014eb20576171b3f3d922260d9f792017aeff53af3d4f2",
    ),
    (
        "6.1.155",
        Architecture::Aarch64,
        "firecracker-ci/v1.15/aarch64/vmlinux-6.1.155",
        // seven332/bangbang, scripts/fetch-firecracker-kernel.sh.
        None,
        "e3544b10603acbf3db492cb52e000d22ba202cb4b63b9add027565683e11c591",
    ),
    (
        "6.1.102",
        Architecture::X86_64,
        "firecracker-ci/v1.11/x86_64/vmlinux-6.1.102",
        // qubesome/cli, the Firecracker runner's constants; three further projects agree.
        None,
        "cf42303c29e8c4a02798f357ba056c5567baf074aaed4eec78c997fb9df08cf9",
    ),
];

/// The pinned kernel of that version for this machine; `overrides` come first.
pub(super) fn find(version: &str, overrides: &[PinnedKernel]) -> Result<PinnedKernel, KernelError> {
    let architecture = Architecture::host();
    let here: Vec<PinnedKernel> = overrides
        .iter()
        .cloned()
        .chain(TABLE.iter().map(pinned))
        .filter(|pin| pin.architecture == architecture.name())
        .collect();
    let found = here.iter().find(|pin| pin.version == version);
    found.cloned().ok_or_else(|| KernelError::UnknownVersion {
        version: version.to_owned(),
        architecture: architecture.name(),
        known: here
            .iter()
            .map(|pin| pin.version.as_str())
            .collect::<Vec<_>>()
            .join(", "),
    })
}

/// The digest that is pinned for a file of the bucket, by its key there.
pub(crate) fn pinned_digest(key: &str) -> Option<&'static str> {
    let pin = TABLE.iter().find(|(_, _, path, _, _)| *path == key);
    pin.map(|(_, _, _, _, sha256)| *sha256)
}

fn pinned(
    (version, architecture, path, size, sha256): &(&str, Architecture, &str, Option<u64>, &str),
) -> PinnedKernel {
    PinnedKernel {
        version: (*version).to_owned(),
        architecture: architecture.name().to_owned(),
        url: format!("{BUCKET}/{path}"),
        size: *size,
        sha256: (*sha256).to_owned(),
    }
}

/// Downloads and checks a pinned kernel.
pub(super) fn gather(
    pin: &PinnedKernel,
    scratch: &Path,
    progress: &dyn Progress,
) -> Result<Material, KernelError> {
    let file = scratch.join(format!("vmlinux-{}", pin.sha256));
    let download = Download {
        max_size: MAX_SIZE,
        size: pin.size,
        ..Download::new(&pin.url, &pin.sha256)
    };
    fetch_blocking(&download, &file, progress).map_err(KernelError::Download)?;
    let image = fs::read(&file).map_err(io_error("read", &file))?;
    fs::remove_file(&file).map_err(io_error("remove", &file))?;
    let (vmlinux, release) = bootable(image, &pin.url)?;
    Ok(Material {
        release: release.unwrap_or_else(|| pin.version.clone()),
        vmlinux,
        config: None,
        modules: Vec::new(),
        origin: pin.url.clone(),
        inputs: Vec::new(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_well_formed() {
        for pin in TABLE.iter().map(pinned) {
            assert_eq!(hex::decode(&pin.sha256).unwrap().len(), 32);
            assert!(pin.url.starts_with("https://"));
            assert!(pin.url.contains(&pin.architecture) && pin.url.ends_with(&pin.version));
        }
    }

    #[test]
    fn overrides_come_first_and_unknown_versions_name_the_known() {
        let mirror = PinnedKernel {
            version: "6.1.155".to_owned(),
            architecture: Architecture::host().name().to_owned(),
            url: "http://mirror.example/vmlinux".to_owned(),
            size: None,
            sha256: "0".repeat(64),
        };
        assert_eq!(
            find("6.1.155", std::slice::from_ref(&mirror)).unwrap(),
            mirror
        );
        assert!(find("6.1.155", &[]).unwrap().url.contains("v1.15"));
        let error = find("9.9", &[]).unwrap_err().to_string();
        assert!(error.contains("6.1.155"), "{error}");
    }
}
