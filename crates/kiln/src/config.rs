//! Where a host keeps its things and which programs it uses.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::error::{Error, ErrorCode};
use crate::firecracker::FirecrackerRelease;

/// How to open a [`Host`](crate::Host).
///
/// ```no_run
/// # async fn open() -> Result<(), kiln::Error> {
/// let config = kiln::HostConfig::new("/var/lib/kiln", "/run/kiln");
/// let host = kiln::Host::open(config).await?;
/// # host.close().await; Ok(()) }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostConfig {
    /// Images, kernels, disks and the store.
    pub data_dir: PathBuf,
    /// Sockets and FIFOs of running machines; a tmpfs where there is one.
    pub runtime_dir: PathBuf,
    /// Firecracker's binary; `$KILN_FIRECRACKER` or `PATH` when unset.
    pub firecracker: Option<PathBuf>,
    /// Which release of Firecracker is fetched where KVM runs guests and there is no binary.
    pub firecracker_release: FirecrackerRelease,
    /// Where releases come from instead of Firecracker's own page: `URL/latest`,
    /// `URL/download/TAG/…`.
    pub firecracker_releases: Option<String>,
    /// System call filters (JSON) for Firecracker instead of its own. They are compiled by
    /// `$KILN_SECCOMPILER`, else by the `seccompiler-bin` beside the binary; nothing starts when
    /// that fails.
    pub seccomp_filters: Option<PathBuf>,
    /// QEMU's binary; `$KILN_QEMU` or `PATH` when unset.
    pub qemu: Option<PathBuf>,
    /// Where base images are kept; `base-images` in the data directory when unset.
    pub base_images_dir: Option<PathBuf>,
    /// How many base images are kept, one at least; what `images.json` says, else 2, when unset.
    pub max_base_images: Option<usize>,
    /// What the base image `hosted` means: the URL of its manifest, or an absolute path; what
    /// `images.json` says when unset.
    pub base_image_manifest: Option<String>,
    /// Directory of executables that take part in sandboxes' lives; see [`Hook`](crate::Hook).
    /// None when unset.
    pub hooks_dir: Option<PathBuf>,
    /// How long such an executable may take; then it is killed with its process group, and has
    /// failed. [`HOOK_TIMEOUT`] when unset.
    pub hook_timeout: Option<Duration>,
    /// Machines that boot at the same time; the rest wait their turn. The number of processors
    /// when unset: more only makes each slower.
    pub parallel_boots: Option<NonZeroUsize>,
    /// How long a guest may take from power-on to its agent's session; per acceleration when
    /// unset ([`KVM_BOOT_DEADLINE`], [`TCG_BOOT_DEADLINE`]).
    pub boot_deadline: Option<Duration>,
}

/// The sandbox waits for its hooks.
pub const HOOK_TIMEOUT: Duration = Duration::from_secs(10);
/// With hardware virtualisation a guest is up in well under a second; this leaves room for a
/// badly overloaded host.
pub const KVM_BOOT_DEADLINE: Duration = Duration::from_secs(30);
/// Emulated guests were seen to need 8 s with every core busy; twenty at once many times that.
pub const TCG_BOOT_DEADLINE: Duration = Duration::from_secs(180);

impl HostConfig {
    /// A host in these two directories, everything else as found.
    #[must_use]
    pub fn new(data_dir: impl Into<PathBuf>, runtime_dir: impl Into<PathBuf>) -> Self {
        Self {
            data_dir: data_dir.into(),
            runtime_dir: runtime_dir.into(),
            firecracker: None,
            firecracker_release: FirecrackerRelease::default(),
            firecracker_releases: None,
            seccomp_filters: None,
            qemu: None,
            base_images_dir: None,
            max_base_images: None,
            base_image_manifest: None,
            hooks_dir: None,
            hook_timeout: None,
            parallel_boots: None,
            boot_deadline: None,
        }
    }

    /// Refuses what could not work before anything is touched.
    ///
    /// # Errors
    /// [`ErrorCode::InvalidConfig`]; [`ErrorCode::InvalidBaseImageCacheLimit`].
    pub fn check(&self) -> Result<(), Error> {
        let dirs = [&self.data_dir, &self.runtime_dir];
        for dir in dirs.into_iter().chain(&self.base_images_dir) {
            if !dir.is_absolute() {
                return Err(invalid(format!(
                    "{} is not an absolute path",
                    dir.display()
                )));
            }
        }
        let longest = Directories::new(self)
            .machine("123456789012")
            .join("v.sock_65535");
        let length = longest.as_os_str().len();
        if length > MAX_SOCKET_PATH {
            return Err(invalid(format!(
                "the runtime directory {} is too long: its sockets would have paths of {length} \
                 bytes, and Linux takes {MAX_SOCKET_PATH}",
                self.runtime_dir.display()
            )));
        }
        self.check_base_images()
    }

    fn check_base_images(&self) -> Result<(), Error> {
        if self.max_base_images == Some(0) {
            let message = "no base image could be kept: the limit is 0";
            return Err(Error::new(ErrorCode::InvalidBaseImageCacheLimit, message)
                .with_hint("keep 1 or more"));
        }
        match &self.base_image_manifest {
            Some(place) if !place.contains("://") && !Path::new(place).is_absolute() => {
                Err(invalid(format!(
                    "the manifest {place:?} is neither a URL nor an absolute path"
                )))
            }
            _ => Ok(()),
        }
    }
}

/// `sun_path` less its closing NUL (unix(7)).
const MAX_SOCKET_PATH: usize = 107;

fn invalid(message: String) -> Error {
    Error::new(ErrorCode::InvalidConfig, message).with_hint("correct it and open again")
}

/// The store, in the data directory.
pub(crate) const DATABASE: &str = "kiln.db";

/// Every path of a host, in one place.
#[derive(Clone, Debug)]
pub(crate) struct Directories {
    data: PathBuf,
    runtime: PathBuf,
    base_images: PathBuf,
}

impl Directories {
    pub(crate) fn new(config: &HostConfig) -> Self {
        Self {
            data: config.data_dir.clone(),
            runtime: config.runtime_dir.clone(),
            base_images: config
                .base_images_dir
                .clone()
                .unwrap_or_else(|| config.data_dir.join("base-images")),
        }
    }

    /// Where jails are made; see [`kiln_vmm::jail::JailSpec::base_dir`].
    pub(crate) fn jails(&self) -> PathBuf {
        self.data.join("jails")
    }
    pub(crate) fn lock(&self) -> PathBuf {
        self.data.join("lock")
    }
    pub(crate) fn database(&self) -> PathBuf {
        self.data.join(DATABASE)
    }
    pub(crate) fn images(&self) -> PathBuf {
        self.data.join("images")
    }
    /// What the owner says about registries and runtimes; need not be there.
    pub(crate) fn image_settings(&self) -> PathBuf {
        self.data.join("images.json")
    }
    pub(crate) fn base_images(&self) -> PathBuf {
        self.base_images.clone()
    }
    pub(crate) fn volumes(&self) -> PathBuf {
        self.data.join("volumes")
    }
    /// Firecracker's releases, a directory each.
    pub(crate) fn firecracker(&self) -> PathBuf {
        self.data.join("firecracker")
    }
    pub(crate) fn kernels(&self) -> PathBuf {
        self.data.join("kernels")
    }
    pub(crate) fn cache(&self) -> PathBuf {
        self.data.join("cache")
    }
    /// Disks and console of every sandbox, a directory each.
    pub(crate) fn sandboxes(&self) -> PathBuf {
        self.data.join("sandboxes")
    }
    pub(crate) fn sandbox(&self, id: &str) -> PathBuf {
        self.sandboxes().join(id)
    }
    pub(crate) fn scratch(&self, id: &str) -> PathBuf {
        self.sandbox(id).join("scratch.ext4")
    }
    pub(crate) fn console(&self, id: &str) -> PathBuf {
        self.sandbox(id).join("console.log")
    }
    /// Memory, state and disks of every snapshot, a directory each.
    pub(crate) fn snapshots(&self) -> PathBuf {
        self.data.join("snapshots")
    }
    pub(crate) fn snapshot(&self, id: &str) -> PathBuf {
        self.snapshots().join(id)
    }
    pub(crate) fn snapshot_disk(&self, id: &str) -> PathBuf {
        self.snapshot(id).join("scratch.ext4")
    }
    /// Sockets and FIFOs of every machine, a directory each; short, because socket paths are.
    pub(crate) fn machines(&self) -> PathBuf {
        self.runtime.join("vm")
    }
    pub(crate) fn machine(&self, id: &str) -> PathBuf {
        self.machines().join(id)
    }

    /// Makes what is missing, readable by nobody else.
    pub(crate) fn create(&self) -> Result<(), Error> {
        for dir in [
            self.data.clone(),
            self.runtime.clone(),
            self.cache(),
            self.sandboxes(),
            self.snapshots(),
            self.machines(),
            self.jails(),
        ] {
            create_private(&dir).map_err(|source| {
                Error::new(ErrorCode::Host, format!("cannot create {}", dir.display()))
                    .with_source(source)
                    .with_hint("choose a data directory that you may write to: --data-dir")
            })?;
        }
        Ok(())
    }
}

/// Creates a directory, and its parents, with mode 0700; an existing one is left as it is.
pub(crate) fn create_private(dir: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn relative_and_overlong_directories_are_refused() {
        let relative = HostConfig::new("data", "/run/kiln")
            .check()
            .expect_err("relative");
        assert_eq!(relative.code(), ErrorCode::InvalidConfig);
        let long = HostConfig::new("/data", format!("/{}", "x".repeat(90)));
        assert!(long.check().expect_err("long").to_string().contains("107"));
        HostConfig::new("/var/lib/kiln", "/run/user/1000/kiln")
            .check()
            .expect("usual");
    }
}
