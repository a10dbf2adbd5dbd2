//! What a guest boots from: kernel, initramfs, image, scratch disk; made once, then found.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use kiln_image::bundle::{BaseImage, DebianParts, Ensured};
use kiln_image::credentials::Keyring;
use kiln_image::debian::DebPackage;
use kiln_image::default_image::{self, DefaultImageError};
use kiln_image::initramfs::{InitramfsCache, InitramfsError};
use kiln_image::kernel::{KernelBundle, KernelError, KernelSource, KernelStore};
use kiln_image::library::{ImageLibrary, PullRequest};
use kiln_image::oci::{ImageConfig, Reference};
use kiln_image::{
    Filesystem, Image, ImageError, ImageId, ImageSource, ImageStore, LayerSource, Limits, Progress,
    Runtimes, ScratchDisks, ScratchError,
};
use kiln_vmm::{Boot, EngineKind};

use crate::agent::AGENT;
use crate::base_images::{BaseImages, EnsureBaseImage, debian_parts};
use crate::config::{Directories, HostConfig};
use crate::error::{Error, ErrorCode};
use crate::image_choice::{ImageChoice, ImageSettings, Quota, platform};
use crate::sandbox::{SandboxSpec, is_sandbox_id};
use crate::store::SandboxRow;

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
    library: ImageLibrary,
    /// The library's.
    images: ImageStore,
    runtimes: Runtimes,
    base_images: BaseImages,
    quota: Quota,
    limits: Limits,
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
    /// How the image wants to be run, if it says.
    pub(crate) image_config: Option<ImageConfig>,
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
    pub(crate) fn open(config: &HostConfig, directories: &Directories) -> Result<Self, Error> {
        let settings = ImageSettings::read(&directories.image_settings())?;
        let library = ImageLibrary::open(directories.images(), settings.library())?;
        let images = library.store().clone();
        let stores = Stores {
            kernels: KernelStore::open(&directories.kernels())?,
            initramfs: InitramfsCache::open(&directories.cache().join("initramfs"), AGENT)?,
            scratch: ScratchDisks::new(images.templates()),
            images,
            library,
            runtimes: settings.runtimes(),
            quota: settings.quota(),
            limits: settings.library().limits,
            base_images: BaseImages::new(
                directories.base_images(),
                settings.base_images().overridden_by(config),
            ),
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
        row: &SandboxRow,
        progress: Arc<dyn Progress>,
    ) -> Result<Material, Error> {
        let (stores, row) = (Arc::clone(&self.stores), row.clone());
        blocking(move || stores.gather(&row, progress.as_ref())).await
    }

    /// Finds the image of a sandbox that needs nothing else, since its guest goes on from a snapshot.
    pub(crate) async fn gather_image(&self, row: &SandboxRow) -> Result<Material, Error> {
        let (stores, row) = (Arc::clone(&self.stores), row.clone());
        blocking(move || stores.gather_image(&row)).await
    }

    /// Does something with the library of images where blocking is allowed.
    pub(crate) async fn with_library<T, F>(&self, work: F) -> Result<T, Error>
    where
        T: Send + 'static,
        F: FnOnce(&ImageLibrary) -> Result<T, Error> + Send + 'static,
    {
        let stores = Arc::clone(&self.stores);
        blocking(move || work(&stores.library)).await
    }

    /// The kernels that are here.
    pub(crate) async fn kernels(&self) -> Result<Vec<KernelBundle>, Error> {
        let stores = Arc::clone(&self.stores);
        blocking(move || Ok(stores.kernels.list()?)).await
    }

    /// Does something with the base images where blocking is allowed.
    pub(crate) async fn with_base_images<T, F>(&self, work: F) -> Result<T, Error>
    where
        T: Send + 'static,
        F: FnOnce(&BaseImages) -> Result<T, Error> + Send + 'static,
    {
        let stores = Arc::clone(&self.stores);
        blocking(move || work(&stores.base_images)).await
    }

    /// Has a base image here. Goes on when the caller leaves.
    pub(crate) async fn ensure_base_image(
        &self,
        request: EnsureBaseImage,
        progress: Arc<dyn Progress>,
    ) -> Result<Ensured, Error> {
        let stores = Arc::clone(&self.stores);
        blocking(move || {
            let debian = || stores.debian_parts(progress.as_ref());
            stores
                .base_images
                .ensure(&request, debian, progress.as_ref())
        })
        .await
    }

    /// What the owner wants kept.
    pub(crate) fn quota(&self) -> Quota {
        self.stores.quota
    }

    /// Kiln's own image, once it was made.
    pub(crate) fn made_default_image(&self) -> Option<ImageId> {
        let image = self.stores.images.recall(DEFAULT_IMAGE_MEMO);
        image.map(|image| image.id)
    }

    /// The runtimes of this host.
    pub(crate) fn runtimes(&self) -> &Runtimes {
        &self.stores.runtimes
    }

    /// Lets go of what a sandbox held.
    pub(crate) async fn unpin(&self, id: &str) -> Result<(), Error> {
        let id = id.to_owned();
        self.with_library(move |library| Ok(library.unpin(&id)?))
            .await
    }

    /// Lets go of what sandboxes that live no more held. Other owners' pins are not touched.
    pub(crate) async fn retain_pins(
        &self,
        lives: impl Fn(&str) -> bool + Send + 'static,
    ) -> Result<(), Error> {
        self.with_library(move |library| {
            Ok(library.retain_pins(&|owner| !is_sandbox_id(owner) || lives(owner))?)
        })
        .await
    }

    /// Refuses what is not there, or no name of an image, before a row exists; returns the word
    /// under which the image is shown.
    pub(crate) fn check_sources(&self, spec: &SandboxSpec) -> Result<String, Error> {
        for path in [&spec.kernel, &spec.modules].into_iter().flatten() {
            exists(path, ErrorCode::KernelFailed, "the kernel")?;
        }
        if let ImageChoice::Path(path) = ImageChoice::of(spec, &self.stores.runtimes)? {
            exists(&path, ErrorCode::ImageFailed, "the image")?;
        }
        let named = spec.runtime.as_ref().or(spec.bundle.as_ref());
        let named = named.or(spec.image.as_ref());
        Ok(named.map_or(DEFAULT_IMAGE, String::as_str).to_owned())
    }

    /// Makes a sandbox's own writable disk, sparse.
    pub(crate) async fn make_scratch(&self, path: &Path, size_mib: u64) -> Result<(), Error> {
        let (stores, path) = (Arc::clone(&self.stores), path.to_path_buf());
        blocking(move || Ok(stores.scratch.create(&path, size_mib << 20)?)).await
    }
}

impl Stores {
    fn gather(&self, row: &SandboxRow, progress: &dyn Progress) -> Result<Material, Error> {
        let base = self.base_image(&row.spec, progress)?;
        let kernel = self.kernel(&row.spec, base.as_ref(), progress)?;
        let initramfs = self.initramfs.ensure(&kernel)?;
        let (image, image_config) = self.image(row, base.as_ref(), progress)?;
        Ok(Material {
            kernel: kernel.vmlinux,
            initramfs,
            filesystem: image.filesystem,
            image_id: image.id.to_string(),
            image_config,
            rootfs: image.path,
        })
    }

    fn gather_image(&self, row: &SandboxRow) -> Result<Material, Error> {
        let id = row.image_id.as_ref().and_then(|id| id.parse().ok());
        let image = id.map(|id| self.images.get(&id)).transpose()?.flatten();
        let Some(image) = image else {
            let message = "the image of the snapshot that the sandbox begins from is gone";
            return Err(Error::new(ErrorCode::ImageNotFound, message));
        };
        Ok(Material {
            kernel: PathBuf::new(),
            initramfs: PathBuf::new(),
            filesystem: image.filesystem,
            image_id: image.id.to_string(),
            image_config: row.image_config.clone(),
            rootfs: image.path,
        })
    }

    /// The base image of a spec that names one.
    fn base_image(
        &self,
        spec: &SandboxSpec,
        progress: &dyn Progress,
    ) -> Result<Option<BaseImage>, Error> {
        let Some(name) = &spec.bundle else {
            return Ok(None);
        };
        let debian = || self.debian_parts(progress);
        self.base_images.find(name, debian, progress).map(Some)
    }

    /// What the preset `debian` is made of.
    fn debian_parts(&self, progress: &dyn Progress) -> Result<DebianParts, Error> {
        let kernel = self.kernels.ensure(&KernelSource::Debian, progress)?;
        debian_parts(&kernel, &self.default_image(progress)?)
    }

    fn kernel(
        &self,
        spec: &SandboxSpec,
        base: Option<&BaseImage>,
        progress: &dyn Progress,
    ) -> Result<KernelBundle, Error> {
        let Some(base) = base else {
            return Ok(self.kernels.ensure(&kernel_source(spec), progress)?);
        };
        // The modules of a kernel that needs some are with the bundle that it came from.
        let whole = base.kernel_bundle.as_ref().map(|id| self.kernels.get(id));
        if let Some(kernel) = whole.flatten() {
            return Ok(kernel);
        }
        let source = KernelSource::Local {
            kernel: base.kernel.path.clone(),
            modules: None,
        };
        Ok(self.kernels.ensure(&source, progress)?)
    }

    /// The image that the sandbox began with: its scratch disk holds changes to that very one. At
    /// its first start, what its spec means now.
    fn image(
        &self,
        row: &SandboxRow,
        base: Option<&BaseImage>,
        progress: &dyn Progress,
    ) -> Result<(Image, Option<ImageConfig>), Error> {
        let began_with = row.image_id.as_ref().and_then(|id| id.parse().ok());
        if let Some(id) = &began_with
            && let Some(image) = self.images.get(id)?
        {
            return Ok((image, row.image_config.clone()));
        }
        let choice = match base {
            Some(base) => ImageChoice::Path(base.rootfs.path.clone()),
            None => ImageChoice::of(&row.spec, &self.runtimes)?,
        };
        let (image, config) = match choice {
            ImageChoice::Default => (self.default_image(progress)?, None),
            ImageChoice::Path(path) => (self.import(&path, progress)?, None),
            ImageChoice::Reference(name) => self.pull(row, name, progress)?,
        };
        match began_with {
            Some(id) if id != image.id && !row.spec.tmpfs => Err(no_longer_the_same(&id)),
            _ => Ok((image, config)),
        }
    }

    /// An image of a registry, pinned for the sandbox before anyone could remove it.
    fn pull(
        &self,
        row: &SandboxRow,
        name: Reference,
        progress: &dyn Progress,
    ) -> Result<(Image, Option<ImageConfig>), Error> {
        let request = PullRequest {
            policy: row.spec.pull,
            platform: platform(row.spec.platform.as_deref())?,
            keyring: Keyring::of_user(),
            pin: Some(row.id.clone()),
            ..PullRequest::new(name)
        };
        let pulled = self.library.pull(&request, progress)?;
        Ok((pulled.rootfs, Some(pulled.config)))
    }

    fn import(&self, path: &Path, progress: &dyn Progress) -> Result<Image, Error> {
        let source = ImageSource::detect(path)?;
        Ok(self.images.import(source, &self.limits, progress)?)
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

fn no_longer_the_same(id: &ImageId) -> Error {
    let message =
        format!("image {id}, which the sandbox began with, is gone, and its name means another");
    Error::new(ErrorCode::ImageFailed, message)
        .with_hint("what the sandbox wrote fits no other image: remove it and run it anew")
}

fn exists(path: &Path, code: ErrorCode, what: &str) -> Result<(), Error> {
    std::fs::metadata(path).map(drop).map_err(|source| {
        Error::new(code, format!("cannot read {what} {}", path.display()))
            .with_source(source)
            .with_hint("give the path of a file or directory on this host")
    })
}

pub(crate) async fn blocking<T, F>(work: F) -> Result<T, Error>
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
