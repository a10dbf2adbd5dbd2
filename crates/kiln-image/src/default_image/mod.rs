//! The image that needs no registry: a small Debian system out of packages.
//!
//! The packages are not installed: their data is laid over each other as layers, and one generated
//! layer stands for what the maintainer scripts would have done. Nothing is unpacked on the host.
//! This room knows nothing of block images; whoever flattens the layers must follow the links to
//! directories that the first layer lays (`bin` to `usr/bin`), also where a later layer has a plain
//! directory of that name, as dpkg does.

mod base;
mod ustar;

use std::io::Read;
use std::path::{Path, PathBuf};

use thiserror::Error;

use crate::debian::{AptError, AptSource, DebError, DebPackage, FilesError, Package};
use crate::progress::Progress;
use crate::publish::digest;

/// A shell, the everyday tools, and enough network to look around.
const PACKAGES: &[&str] = &[
    "base-files",
    "base-passwd",
    "bash",
    "bzip2",
    "ca-certificates",
    "coreutils",
    "curl",
    "dash",
    "debianutils",
    "diffutils",
    "findutils",
    "grep",
    "gzip",
    "hostname",
    "iproute2",
    "iputils-ping",
    "less",
    "libc-bin",
    "mawk",
    "mount",
    "ncurses-base",
    "ncurses-bin",
    "netbase",
    "procps",
    "sed",
    "tar",
    "util-linux",
    "xz-utils",
];

/// Needed by maintainer scripts only, which are never run here.
const EXCLUDED: &[&str] = &[
    "adduser",
    "debconf",
    "debconf-2.0",
    "cdebconf",
    "dpkg",
    "init-system-helpers",
    "install-info",
    "lsb-base",
    "perl",
    "perl-base",
    "sysvinit-utils",
];

/// Why there is no default image.
#[derive(Debug, Error)]
pub enum DefaultImageError {
    /// The packages cannot be had.
    #[error("cannot get the packages of the default image")]
    Apt(#[source] AptError),
    /// A package cannot be opened.
    #[error("cannot open a package of the default image")]
    Package(#[source] DebError),
    /// The files of a package cannot be read.
    #[error("cannot read a package of the default image")]
    PackageFiles(#[source] FilesError),
    /// A package lacks a file that the generated layer is made from.
    #[error("package {package} has no {file}")]
    MissingFile {
        /// The package.
        package: String,
        /// The file.
        file: String,
    },
}

impl From<FilesError> for DefaultImageError {
    fn from(source: FilesError) -> Self {
        Self::PackageFiles(source)
    }
}

/// The layers of the default image.
#[derive(Debug)]
pub struct DefaultImage {
    /// A generated tar that goes below the packages: links, accounts, certificates.
    pub base: Vec<u8>,
    /// The packages, verified, in the order in which they are laid.
    pub debs: Vec<PathBuf>,
    /// SHA-256 over everything the image is made of: equal identities, equal images.
    pub identity: String,
    /// Name and version of each package.
    pub packages: Vec<(String, String)>,
    /// What the packages claim to unpack to.
    pub unpacked_kib: u64,
}

/// One layer of the default image.
#[derive(Clone, Copy, Debug)]
pub enum Layer<'a> {
    /// The generated one.
    Base(&'a [u8]),
    /// A package.
    Deb(&'a Path),
}

impl DefaultImage {
    /// The layers, lowest first.
    pub fn layers(&self) -> impl Iterator<Item = Layer<'_>> {
        std::iter::once(Layer::Base(&self.base)).chain(self.debs.iter().map(|deb| Layer::Deb(deb)))
    }
}

impl<'a> Layer<'a> {
    /// The layer's tar stream, uncompressed.
    ///
    /// # Errors
    /// A package cannot be opened.
    pub fn tar(self) -> Result<Box<dyn Read + Send + 'a>, DebError> {
        match self {
            Self::Base(bytes) => Ok(Box::new(bytes)),
            Self::Deb(path) => Ok(DebPackage::open(path)?.data_tar()?),
        }
    }
}

/// Gets the packages through the host's apt and generates the layer beneath them. `apt_root` holds
/// apt's state and the packages; it may be the same as a kernel store's.
///
/// # Errors
/// See [`DefaultImageError`].
pub fn prepare(
    apt_root: &Path,
    progress: &dyn Progress,
) -> Result<DefaultImage, DefaultImageError> {
    let fetch = |apt: &AptSource| {
        let packages = apt.closure(PACKAGES, EXCLUDED)?;
        let debs = apt.download(&packages, progress)?;
        Ok((packages, debs))
    };
    let fetched = AptSource::with_archive(apt_root, progress, fetch);
    let (packages, debs) = fetched.map_err(DefaultImageError::Apt)?;
    let base = base::layer(&packages, &debs)?;
    Ok(DefaultImage {
        identity: identity(&packages, &base),
        unpacked_kib: packages.iter().map(|package| package.installed_kib).sum(),
        packages: packages
            .into_iter()
            .map(|package| (package.name, package.version))
            .collect(),
        base,
        debs,
    })
}

fn identity(packages: &[Package], base: &[u8]) -> String {
    let line =
        |package: &Package| format!("{} {} {}\n", package.name, package.version, package.sha256);
    let mut text: String = packages.iter().map(line).collect();
    text.push_str(&digest(base));
    digest(text.as_bytes())
}
