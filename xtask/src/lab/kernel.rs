//! The lab's own kernel: Debian's cloud kernel with all its modules, fetched by the system's apt.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::step::{self, StepError};

/// Debian's meta package; it depends on the package of the present version.
const META_PACKAGE: &str = "linux-image-cloud-amd64";

/// Why there is no kernel.
#[derive(Debug, thiserror::Error)]
pub(crate) enum KernelError {
    #[error("the package {META_PACKAGE} is not known here")]
    Unknown(#[source] StepError),
    #[error("the package {META_PACKAGE} does not name its kernel")]
    NoVersion,
    #[error("the kernel package cannot be fetched or taken apart")]
    Unpack(#[from] StepError),
    #[error("cannot work in {path}")]
    Directory {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("no {what} in the package {package}")]
    Incomplete { what: &'static str, package: String },
}

/// A kernel image and the tree of its modules.
#[derive(Debug)]
pub(super) struct LabKernel {
    pub(super) image: PathBuf,
    /// As `uname -r` says it.
    pub(super) release: String,
    /// Holds `lib/modules/<release>` with its `modules.dep`.
    pub(super) root: PathBuf,
}

impl LabKernel {
    /// The kernel of the present version, from the cache or from apt.
    pub(super) fn prepare(cache: &Path) -> Result<Self, KernelError> {
        let package = present_package()?;
        let root = cache.join(&package);
        if !root.is_dir() {
            fetch(cache, &package, &root)?;
        }
        Self::in_tree(root, &package)
    }

    fn in_tree(root: PathBuf, package: &str) -> Result<Self, KernelError> {
        let Some(release) = package.strip_prefix("linux-image-").map(str::to_owned) else {
            return Err(KernelError::NoVersion);
        };
        let image = root.join("boot").join(format!("vmlinuz-{release}"));
        if !image.is_file() {
            return Err(KernelError::Incomplete {
                what: "kernel",
                package: package.to_owned(),
            });
        }
        let kernel = Self {
            image,
            release,
            root,
        };
        if !kernel.modules().join("modules.dep").is_file() {
            return Err(KernelError::Incomplete {
                what: "modules.dep",
                package: package.to_owned(),
            });
        }
        Ok(kernel)
    }

    /// `lib/modules/<release>` on this host.
    pub(super) fn modules(&self) -> PathBuf {
        self.root.join("lib/modules").join(&self.release)
    }
}

fn present_package() -> Result<String, KernelError> {
    let mut show = Command::new("apt-cache");
    let description = step::capture(show.args(["show", "--no-all-versions", META_PACKAGE]))
        .map_err(KernelError::Unknown)?;
    dependency(&String::from_utf8_lossy(&description)).ok_or(KernelError::NoVersion)
}

/// The versioned kernel package in the `Depends:` line of the meta package.
fn dependency(description: &str) -> Option<String> {
    let depends = description
        .lines()
        .find_map(|line| line.strip_prefix("Depends: "))?;
    depends
        .split([',', ' '])
        .find(|word| word.starts_with("linux-image-") && !word.contains('/'))
        .map(str::to_owned)
}

/// Downloads and unpacks beside the final place, which appears whole or not at all.
fn fetch(cache: &Path, package: &str, root: &Path) -> Result<(), KernelError> {
    let directory = |source| KernelError::Directory {
        path: cache.to_owned(),
        source,
    };
    std::fs::create_dir_all(cache).map_err(directory)?;
    let work = tempfile::tempdir_in(cache).map_err(directory)?;
    let mut download = Command::new("apt-get");
    step::run(
        download
            .args(["--quiet", "download", package])
            .current_dir(work.path()),
    )?;
    let deb = only_deb(work.path(), package)?;
    let tree = work.path().join("tree");
    step::run(
        Command::new("dpkg-deb")
            .arg("--extract")
            .arg(deb)
            .arg(&tree),
    )?;
    let release = package.trim_start_matches("linux-image-");
    step::capture(
        Command::new("busybox")
            .args(["depmod", "-b"])
            .arg(&tree)
            .arg(release),
    )?;
    std::fs::rename(&tree, root).map_err(directory)
}

fn only_deb(dir: &Path, package: &str) -> Result<PathBuf, KernelError> {
    let entries = dir.read_dir().map_err(|source| KernelError::Directory {
        path: dir.to_owned(),
        source,
    })?;
    entries
        .flatten()
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
        .ok_or_else(|| KernelError::Incomplete {
            what: "archive",
            package: package.to_owned(),
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_meta_package_names_the_kernel() {
        let description = "Package: linux-image-cloud-amd64\n\
            Depends: linux-image-6.1.0-56-cloud-amd64 (= 6.1.192-2)\nDescription: Linux\n";
        assert_eq!(
            dependency(description).as_deref(),
            Some("linux-image-6.1.0-56-cloud-amd64")
        );
        assert_eq!(dependency("Package: x\n"), None);
        assert_eq!(dependency("Depends: ../../linux-image-evil/x\n"), None);
    }
}
