//! Kernel bundles: a guest kernel, the modules a guest needs and the order they load in.
//!
//! A bundle comes from a source ([`KernelSource`]), is taken apart here, and is kept in a
//! [`KernelStore`] under the digest of its content. This room knows nothing of engines or of what
//! the guest runs.

mod bundle;
mod bzimage;
mod elf;
pub(crate) mod firecracker_ci;
mod from_debian;
mod from_local;
mod modinfo;
mod modules;
mod store;

use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

pub use bundle::{KernelBundle, KernelModule};
pub use bzimage::{BzImageError, extract_vmlinux, is_bzimage};
pub use elf::{Architecture, ElfError, check_vmlinux};
pub use firecracker_ci::PinnedKernel;
pub use modinfo::{ModuleError, ModuleInfo, decompress as decompress_module, module_info};
pub use modules::ModulesError;
pub use store::KernelStore;

use crate::debian::{AptError, DebError, FilesError};
use crate::decompress::Compression;
use crate::download::DownloadError;
use modules::GuestModule;
use store::Input;

/// A kernel, its configuration or a module list; a plain vmlinux with debug information passes.
const MAX_KERNEL: u64 = 1 << 30;

/// Where a guest kernel comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KernelSource {
    /// The distribution's signed cloud kernel, fetched by the system's own apt.
    Debian,
    /// A `vmlinux` or `bzImage` of the user's.
    Local {
        /// The kernel.
        kernel: PathBuf,
        /// A directory with its modules; without one the kernel must have everything built in.
        modules: Option<PathBuf>,
    },
    /// A kernel of Firecracker's own tests, from a pinned table.
    FirecrackerCi {
        /// `6.1.155`.
        version: String,
    },
}

/// Why there is no kernel bundle.
#[derive(Debug, Error)]
pub enum KernelError {
    /// The kernel's package cannot be had.
    #[error("cannot get the kernel package")]
    Apt(#[source] AptError),
    /// The package cannot be opened.
    #[error("cannot open the kernel package")]
    Package(#[source] DebError),
    /// The files in the package cannot be read.
    #[error("cannot read the kernel package")]
    PackageFiles(#[source] FilesError),
    /// The package holds no kernel.
    #[error("kernel package {package} has no {missing}")]
    IncompletePackage {
        /// The package.
        package: String,
        /// What was looked for.
        missing: &'static str,
    },
    /// The file is not a kernel.
    #[error("{origin} is not a kernel that can be booted")]
    NotAKernel {
        /// Where it came from.
        origin: String,
        /// What it is instead.
        #[source]
        source: ElfError,
    },
    /// The kernel cannot be taken out of its compressed form.
    #[error("cannot take the kernel out of {origin}")]
    Extract {
        /// Where it came from.
        origin: String,
        /// The cause.
        #[source]
        source: BzImageError,
    },
    /// The file is compressed and damaged.
    #[error("cannot decompress {origin}")]
    Decompress {
        /// Where it came from.
        origin: String,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// The modules do not make a bootable set.
    #[error("cannot put the guest's kernel modules together")]
    Modules(#[source] ModulesError),
    /// A module was built for another kernel.
    #[error("kernel module {module} was built for kernel {built_for}, not for {release}")]
    WrongModules {
        /// The module's file.
        module: String,
        /// The kernel in its version magic.
        built_for: String,
        /// The kernel it would be loaded into.
        release: String,
    },
    /// No digest is pinned for this version.
    #[error(
        "there is no pinned Firecracker CI kernel {version} for {architecture}; known: {known}"
    )]
    UnknownVersion {
        /// What was asked for.
        version: String,
        /// This machine's architecture.
        architecture: &'static str,
        /// The versions that are pinned.
        known: String,
    },
    /// The kernel cannot be downloaded.
    #[error("cannot download the kernel")]
    Download(#[source] DownloadError),
    /// A file operation failed.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was attempted.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// A file is larger than any kernel.
    #[error("{} is too large to be a kernel", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
    },
    /// What was just written does not read back; the disk or another program changes it.
    #[error("kernel bundle {} changed while it was being written", path.display())]
    Unstable {
        /// The bundle's directory.
        path: PathBuf,
    },
}

impl From<FilesError> for KernelError {
    fn from(source: FilesError) -> Self {
        Self::PackageFiles(source)
    }
}

impl From<ModulesError> for KernelError {
    fn from(source: ModulesError) -> Self {
        Self::Modules(source)
    }
}

/// Everything a bundle is made of, in memory.
struct Material {
    release: String,
    vmlinux: Vec<u8>,
    config: Option<Vec<u8>>,
    modules: Vec<GuestModule>,
    /// For people: `linux-image-6.1.0-56-cloud-amd64 6.1.192-2`.
    origin: String,
    /// Files whose change makes the bundle stale.
    inputs: Vec<Input>,
}

impl Material {
    fn check_modules(&self) -> Result<(), KernelError> {
        let wrong = |module: &&GuestModule| {
            !module.release.is_empty() && !self.release.is_empty() && module.release != self.release
        };
        match self.modules.iter().find(wrong) {
            None => Ok(()),
            Some(module) => Err(KernelError::WrongModules {
                module: module.file.clone(),
                built_for: module.release.clone(),
                release: self.release.clone(),
            }),
        }
    }
}

/// Turns a kernel in any accepted form into one that a VMM loads, and finds its release.
fn bootable(image: Vec<u8>, origin: &str) -> Result<(Vec<u8>, Option<String>), KernelError> {
    let origin = || origin.to_owned();
    let architecture = Architecture::host();
    if is_bzimage(&image) {
        let vmlinux = extract_vmlinux(&image).map_err(|source| KernelError::Extract {
            origin: origin(),
            source,
        })?;
        check_vmlinux(&vmlinux, architecture).map_err(|source| KernelError::NotAKernel {
            origin: origin(),
            source,
        })?;
        return Ok((vmlinux, bzimage::release(&image)));
    }
    let image = match Compression::detect(&image) {
        Compression::None => image,
        kind => {
            kind.decode_first(&image, MAX_KERNEL)
                .map_err(|source| KernelError::Decompress {
                    origin: origin(),
                    source,
                })?
        }
    };
    let is_arm_image = image.get(0x38..0x3c) == Some(b"ARM\x64");
    if !(architecture == Architecture::Aarch64 && is_arm_image) {
        check_vmlinux(&image, architecture).map_err(|source| KernelError::NotAKernel {
            origin: origin(),
            source,
        })?;
    }
    let release = banner_release(&image);
    Ok((image, release))
}

/// The release in the `Linux version …` banner of an uncompressed kernel.
fn banner_release(image: &[u8]) -> Option<String> {
    const BANNER: &[u8] = b"Linux version ";
    let mut rest = image;
    while let Some(start) = rest.iter().position(|byte| *byte == b'L') {
        let candidate = &rest[start..];
        if let Some(text) = candidate.strip_prefix(BANNER)
            && text.first().is_some_and(u8::is_ascii_digit)
        {
            return release_word(text);
        }
        rest = &candidate[1..];
    }
    None
}

/// The first word of a version string.
fn release_word(text: &[u8]) -> Option<String> {
    let end = text
        .iter()
        .take(128)
        .position(|byte| matches!(byte, 0 | b' ' | b'\n'))?;
    let word = std::str::from_utf8(&text[..end]).ok()?;
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | '+' | '~');
    (!word.is_empty() && word.chars().all(plain)).then(|| word.to_owned())
}

fn io_error<'a>(
    action: &'static str,
    path: &'a Path,
) -> impl FnOnce(io::Error) -> KernelError + 'a {
    move |source| KernelError::Io {
        action,
        path: path.to_owned(),
        source,
    }
}
