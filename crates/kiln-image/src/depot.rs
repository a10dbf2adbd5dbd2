//! Files that a user of the libraries names: kernels and root filesystems, fetched, made or copied,
//! and where programs and sockets of machines belong (parity A2.3 to A2.5). It knows no images and
//! no sandboxes: what it holds is what it was given.
//!
//! ```text
//! <data>/bin/<release>/{firecracker,jailer}   see [`FirecrackerStore`]
//! <data>/kernels/<name>
//! <data>/rootfs/<name>
//! <runtime>/<machine>.sock
//! ```

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use crate::bundle::is_plain_name;
use crate::clone::clone_file;
use crate::download::{Download, DownloadError, fetch_blocking};
use crate::firecracker::{FirecrackerStore, ReleaseTag};
use crate::partial;
use crate::progress::Progress;
use crate::publish::sync_directory;
use crate::volume::{E2fsError, make_filesystem};

/// What a machine's socket is called whose id has no usable character.
const NAMELESS: &str = "vm";
/// mke2fs gives smaller ones no journal.
const LEAST_MIB: u64 = 8;
const MOST_MIB: u64 = 16 << 20;

/// Why a file cannot be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DepotError {
    /// The name could lead elsewhere.
    #[error("{0:?} is no name for a file here: letters, digits, `.`, `_` and `-` make one")]
    Name(String),
    /// It cannot be fetched.
    #[error("cannot download {name}")]
    Download {
        /// The file.
        name: String,
        /// Why.
        #[source]
        source: DownloadError,
    },
    /// No filesystem of this size can be made.
    #[error("a root filesystem of {size_mib} MiB cannot be made; {LEAST_MIB} to {MOST_MIB} can")]
    Size {
        /// Size asked for.
        size_mib: u64,
    },
    /// The filesystem cannot be made.
    #[error("cannot make the root filesystem {name}")]
    Format {
        /// The file.
        name: String,
        /// Why.
        #[source]
        source: E2fsError,
    },
    /// The file cannot be made; one of this name may be there.
    #[error("cannot create {}", path.display())]
    Create {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The copy cannot be made.
    #[error("cannot copy {} to {}", from.display(), to.display())]
    Clone {
        /// The original.
        from: PathBuf,
        /// The copy.
        to: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl DepotError {
    /// The code that callers of the SDK know (parity A9).
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Name(_) => "INVALID_CONFIG",
            Self::Download { .. } => "DOWNLOAD_FAILED",
            Self::Size { .. } | Self::Format { .. } | Self::Create { .. } => "ROOTFS_CREATE_FAILED",
            Self::Clone { .. } => "ROOTFS_CLONE_FAILED",
        }
    }
}

/// The files of one host. Its calls block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Depot {
    data: PathBuf,
    runtime: PathBuf,
}

impl Depot {
    /// Keeps files in `data`, and sockets in `runtime`; directories are made when they are needed.
    #[must_use]
    pub fn new(data: impl Into<PathBuf>, runtime: impl Into<PathBuf>) -> Depot {
        Depot {
            data: data.into(),
            runtime: runtime.into(),
        }
    }

    /// Where Firecracker's releases are.
    #[must_use]
    pub fn bin_dir(&self) -> PathBuf {
        self.data.join("bin")
    }

    /// Where kernels are.
    #[must_use]
    pub fn kernels_dir(&self) -> PathBuf {
        self.data.join("kernels")
    }

    /// Where root filesystems are.
    #[must_use]
    pub fn rootfs_dir(&self) -> PathBuf {
        self.data.join("rootfs")
    }

    /// Where machines have their sockets.
    #[must_use]
    pub fn sockets_dir(&self) -> PathBuf {
        self.runtime.clone()
    }

    /// Firecracker's releases.
    #[must_use]
    pub fn releases(&self) -> FirecrackerStore {
        FirecrackerStore::new(self.bin_dir())
    }

    /// Where the VMM of a release is once it is installed.
    #[must_use]
    pub fn firecracker(&self, tag: &ReleaseTag) -> PathBuf {
        self.releases().firecracker(tag)
    }

    /// Where the jailer of a release is once it is installed.
    #[must_use]
    pub fn jailer(&self, tag: &ReleaseTag) -> PathBuf {
        self.releases().jailer(tag)
    }

    /// The API socket of a machine. Characters that no file name here has are left out of its id.
    #[must_use]
    pub fn socket(&self, id: &str) -> PathBuf {
        let plain = |c: &char| c.is_ascii_alphanumeric() || "._-".contains(*c);
        let name: String = id.chars().filter(plain).take(200).collect();
        let name = if is_plain_name(&name) {
            name
        } else {
            NAMELESS.to_owned()
        };
        self.runtime.join(format!("{name}.sock"))
    }

    /// Fetches a kernel under a name, over one that is there.
    ///
    /// # Errors
    /// [`DepotError`]; what was there stays.
    pub fn fetch_kernel(
        &self,
        name: &str,
        download: &Download<'_>,
        progress: &dyn Progress,
    ) -> Result<PathBuf, DepotError> {
        fetch(&self.kernels_dir(), name, download, progress)
    }

    /// Fetches a root filesystem under a name, over one that is there.
    ///
    /// # Errors
    /// [`DepotError`]; what was there stays.
    pub fn fetch_rootfs(
        &self,
        name: &str,
        download: &Download<'_>,
        progress: &dyn Progress,
    ) -> Result<PathBuf, DepotError> {
        fetch(&self.rootfs_dir(), name, download, progress)
    }

    /// Makes a blank ext4 root filesystem, sparse. The name must be free.
    ///
    /// # Errors
    /// [`DepotError`]; nothing of it is left.
    pub fn create_rootfs(&self, name: &str, size_mib: u64) -> Result<PathBuf, DepotError> {
        if !(LEAST_MIB..MOST_MIB).contains(&size_mib) {
            return Err(DepotError::Size { size_mib });
        }
        let draft = Draft::new(&self.rootfs_dir(), name)?;
        let sized = draft.file().set_len(size_mib << 20);
        sized.map_err(|source| draft.create_failed(source))?;
        make_filesystem(draft.new.path(), draft.directory()).map_err(|source| {
            DepotError::Format {
                name: name.to_owned(),
                source,
            }
        })?;
        draft.publish()
    }

    /// Copies a root filesystem: shares its blocks where the host's filesystem can, else copies its
    /// data, never its holes. The new name must be free.
    ///
    /// # Errors
    /// [`DepotError::Clone`] or [`DepotError::Name`]; nothing of the copy is left.
    pub fn clone_rootfs(&self, from: &Path, name: &str) -> Result<PathBuf, DepotError> {
        let draft = Draft::new(&self.rootfs_dir(), name)?;
        let copied = File::open(from).and_then(|from| clone_file(&from, draft.file()));
        copied.map_err(|source| DepotError::Clone {
            from: from.into(),
            to: draft.path.clone(),
            source,
        })?;
        draft.publish()
    }
}

fn fetch(
    directory: &Path,
    name: &str,
    download: &Download<'_>,
    progress: &dyn Progress,
) -> Result<PathBuf, DepotError> {
    let path = path_of(directory, name)?;
    fetch_blocking(download, &path, progress).map_err(|source| DepotError::Download {
        name: name.to_owned(),
        source,
    })?;
    Ok(path)
}

/// A name in its directory, which is made, and swept of what killed callers left.
fn path_of(directory: &Path, name: &str) -> Result<PathBuf, DepotError> {
    if !is_plain_name(name) || name.starts_with('.') {
        return Err(DepotError::Name(name.to_owned()));
    }
    fs::create_dir_all(directory).map_err(|source| DepotError::Create {
        path: directory.into(),
        source,
    })?;
    partial::sweep(directory);
    Ok(directory.join(name))
}

/// A file on its way to its name; gone unless it gets there.
struct Draft {
    new: tempfile::NamedTempFile,
    path: PathBuf,
}

impl Draft {
    fn new(directory: &Path, name: &str) -> Result<Draft, DepotError> {
        let path = path_of(directory, name)?;
        match partial::file_in(directory) {
            Ok(new) => Ok(Draft { new, path }),
            Err(source) => Err(DepotError::Create { path, source }),
        }
    }

    fn file(&self) -> &File {
        self.new.as_file()
    }

    fn directory(&self) -> &Path {
        self.path.parent().unwrap_or(Path::new("."))
    }

    fn create_failed(&self, source: io::Error) -> DepotError {
        DepotError::Create {
            path: self.path.clone(),
            source,
        }
    }

    /// Whole and on the disk, or not there; never over another file.
    fn publish(self) -> Result<PathBuf, DepotError> {
        let synced = self.file().sync_all();
        synced.map_err(|source| self.create_failed(source))?;
        let Draft { new, path } = self;
        let failed = |source| DepotError::Create {
            path: path.clone(),
            source,
        };
        new.persist_noclobber(&path)
            .map_err(|error| failed(error.error))?;
        sync_directory(path.parent().unwrap_or(Path::new("."))).map_err(failed)?;
        Ok(path)
    }
}
