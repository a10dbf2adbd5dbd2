//! What a guest boots from: kernel, initramfs, image, scratch disk; made once, then found.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use kiln_image::debian::DebPackage;
use kiln_image::default_image::{self, DefaultImageError};
use kiln_image::initramfs::{InitramfsCache, InitramfsError};
use kiln_image::kernel::{KernelError, KernelSource, KernelStore};
use kiln_image::{
    Filesystem, Image, ImageError, ImageSource, ImageStore, LayerSource, Limits, Progress,
    ScratchDisks, ScratchError,
};
use kiln_vmm::{Boot, EngineKind};

use crate::agent::AGENT;
use crate::config::Directories;
use crate::error::{Error, ErrorCode};
use crate::sandbox::SandboxSpec;

/// The name under which the image that needs no registry is known.
pub(crate) const DEFAULT_IMAGE: &str = "debian";
/// Where the image store remembers it. Count on when the list of packages changes.
const DEFAULT_IMAGE_MEMO: &str = "default-image-1";

/// The stores behind every launch. Their calls block, so each launch takes a blocking thread.
pub(crate) struct Materials {
    stores: Arc<Stores>,
}

struct Stores {
    kernels: KernelStore,
    initramfs: InitramfsCache,
    images: ImageStore,
    scratch: ScratchDisks,
    /// Held while the default image is made: the others wait for it.
    making_default: Mutex<()>,
    apt: PathBuf,
}

/// What one guest boots from.
#[derive(Clone, Debug)]
pub(crate) struct Material {
    kernel: PathBuf,
    initramfs: PathBuf,
    pub(crate) rootfs: PathBuf,
    filesystem: Filesystem,
    pub(crate) image_id: String,
}

impl Material {
    /// How an engine boots it. The agent reads the `kiln.` arguments.
    pub(crate) fn boot(&self, engine: EngineKind, tmpfs: bool, more: &[String]) -> Boot {
        // Firecracker ends when the guest resets; QEMU's microvm machine has no such keyboard
        // controller and ends when it powers off.
        let power_off = match engine {
            EngineKind::Firecracker => "reboot",
            EngineKind::Qemu | EngineKind::Fake => "poweroff",
        };
        Boot {
            kernel: self.kernel.clone(),
            initramfs: Some(self.initramfs.clone()),
            args: [
                "kiln.root=/dev/vda".to_owned(),
                format!("kiln.rootfs={}", self.filesystem.name()),
                format!("kiln.scratch={}", if tmpfs { "tmpfs" } else { "/dev/vdb" }),
                format!("kiln.poweroff={power_off}"),
            ]
            .into_iter()
            .chain(more.iter().cloned())
            .collect(),
        }
    }
}

impl Materials {
    /// Opens the stores and sweeps what a crash left half-made in them.
    pub(crate) fn open(directories: &Directories) -> Result<Self, Error> {
        let images = ImageStore::open(directories.images())?;
        let stores = Stores {
            kernels: KernelStore::open(&directories.kernels())?,
            initramfs: InitramfsCache::open(&directories.cache().join("initramfs"))?,
            scratch: ScratchDisks::new(images.templates()),
            images,
            making_default: Mutex::new(()),
            apt: directories.cache().join("debian"),
        };
        Ok(Self {
            stores: Arc::new(stores),
        })
    }

    /// Finds or makes everything that is shared between sandboxes. Dropped early, it goes on in
    /// the background, and the next launch finds the result.
    pub(crate) async fn gather(
        &self,
        spec: &SandboxSpec,
        progress: Arc<dyn Progress>,
    ) -> Result<Material, Error> {
        let (stores, spec) = (Arc::clone(&self.stores), spec.clone());
        blocking(move || stores.gather(&spec, progress.as_ref())).await
    }

    /// Makes a sandbox's own writable disk, sparse.
    pub(crate) async fn make_scratch(&self, path: &Path, size_mib: u64) -> Result<(), Error> {
        let (stores, path) = (Arc::clone(&self.stores), path.to_path_buf());
        blocking(move || Ok(stores.scratch.create(&path, size_mib << 20)?)).await
    }
}

impl Stores {
    fn gather(&self, spec: &SandboxSpec, progress: &dyn Progress) -> Result<Material, Error> {
        let kernel = self.kernels.ensure(&kernel_source(spec), progress)?;
        let initramfs = self.initramfs.ensure(AGENT, &kernel)?;
        let image = match &spec.image {
            Some(path) => self.import(Path::new(path), progress)?,
            None => self.default_image(progress)?,
        };
        Ok(Material {
            kernel: kernel.vmlinux,
            initramfs,
            filesystem: image.filesystem,
            image_id: image.id.to_string(),
            rootfs: image.path,
        })
    }

    fn import(&self, path: &Path, progress: &dyn Progress) -> Result<Image, Error> {
        let source = ImageSource::detect(path)?;
        Ok(self.images.import(source, &Limits::default(), progress)?)
    }

    /// The image that needs no registry, made of Debian packages on first use.
    fn default_image(&self, progress: &dyn Progress) -> Result<Image, Error> {
        if let Some(image) = self.images.recall(DEFAULT_IMAGE_MEMO) {
            return Ok(image);
        }
        let _turn = self
            .making_default
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(image) = self.images.recall(DEFAULT_IMAGE_MEMO) {
            return Ok(image);
        }
        let packages = default_image::prepare(&self.apt, progress)?;
        let source = ImageSource::Packages(layers(packages)?);
        let image = self.images.import(source, &Limits::default(), progress)?;
        self.images.remember(DEFAULT_IMAGE_MEMO, &image.id)?;
        Ok(image)
    }
}

fn kernel_source(spec: &SandboxSpec) -> KernelSource {
    match &spec.kernel {
        Some(kernel) => KernelSource::Local {
            kernel: kernel.clone(),
            modules: spec.modules.clone(),
        },
        None => KernelSource::Debian,
    }
}

fn layers(image: default_image::DefaultImage) -> Result<Vec<LayerSource>, Error> {
    let mut layers = vec![LayerSource::Stream(Box::new(std::io::Cursor::new(
        image.base,
    )))];
    for deb in &image.debs {
        let tar = DebPackage::open(deb)
            .and_then(DebPackage::data_tar)
            .map_err(|source| {
                Error::new(
                    ErrorCode::ImageFailed,
                    format!("cannot open {}", deb.display()),
                )
                .with_source(source)
            })?;
        layers.push(LayerSource::Stream(tar));
    }
    Ok(layers)
}

/// Refuses what is not there before a row exists; returns the word under which the image is shown.
pub(crate) fn check_sources(spec: &SandboxSpec) -> Result<String, Error> {
    for path in [&spec.kernel, &spec.modules].into_iter().flatten() {
        exists(path, ErrorCode::KernelFailed, "the kernel")?;
    }
    let Some(image) = &spec.image else {
        return Ok(DEFAULT_IMAGE.to_owned());
    };
    exists(Path::new(image), ErrorCode::ImageFailed, "the image")?;
    Ok(image.clone())
}

fn exists(path: &Path, code: ErrorCode, what: &str) -> Result<(), Error> {
    std::fs::metadata(path).map(drop).map_err(|source| {
        Error::new(code, format!("cannot read {what} {}", path.display()))
            .with_source(source)
            .with_hint("give the path of a file or directory on this host")
    })
}

async fn blocking<T, F>(work: F) -> Result<T, Error>
where
    T: Send + 'static,
    F: FnOnce() -> Result<T, Error> + Send + 'static,
{
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|panic| {
            Err(Error::new(ErrorCode::Host, "a task of the host died").with_source(panic))
        })
}

impl From<KernelError> for Error {
    fn from(error: KernelError) -> Self {
        Self::new(ErrorCode::KernelFailed, "there is no kernel to boot").with_source(error)
    }
}

impl From<InitramfsError> for Error {
    fn from(error: InitramfsError) -> Self {
        Self::new(ErrorCode::KernelFailed, "the initramfs cannot be built").with_source(error)
    }
}

impl From<ImageError> for Error {
    fn from(error: ImageError) -> Self {
        if error.is_disk_full() {
            return Self::new(ErrorCode::DiskFull, "the disk is full")
                .with_source(error)
                .with_hint("free some space; nothing of the image was kept");
        }
        Self::new(ErrorCode::ImageFailed, "the image cannot be used").with_source(error)
    }
}

impl From<DefaultImageError> for Error {
    fn from(error: DefaultImageError) -> Self {
        Self::new(ErrorCode::ImageFailed, "the default image cannot be made")
            .with_source(error)
            .with_hint("it is made of Debian packages by the host's apt; or give an image of yours")
    }
}

impl From<ScratchError> for Error {
    fn from(error: ScratchError) -> Self {
        Self::new(ErrorCode::Host, "the scratch disk cannot be made").with_source(error)
    }
}
