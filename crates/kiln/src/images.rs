//! The images of a host, for their owner: the library's calls where blocking is allowed, asked about
//! the sandboxes that need an image. It knows nothing of machines.

use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use kiln_image::credentials::Keyring;
use kiln_image::library::{
    ImageInfo, ImageLibrary, ImageQuery, ImportRequest, LibraryError, PruneRequest, Pruned,
    PullPolicy, PullRequest, Removed,
};
use kiln_image::registry::RegistryError;
use kiln_image::{ImageId, Progress};

use crate::error::{Error, ErrorCode};
use crate::host::{Host, Shared};
use crate::image_choice::{Quota, platform, reference};
use crate::sandbox::SandboxState;

/// What to fetch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PullImage {
    /// The image's name, or a runtime's.
    pub image: String,
    /// When to ask the registry.
    pub policy: PullPolicy,
    /// Which of its builds: `linux/arm64`; this host's own when unset.
    pub platform: Option<String>,
}

/// What to take into the library.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImportImage {
    /// What `docker save` wrote, an OCI archive or layout, or a root filesystem.
    pub path: PathBuf,
    /// The image's name; the archive's own when unset.
    pub name: Option<String>,
}

/// What to throw away; images that a sandbox needs stay in any case.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PruneImages {
    /// Also images that have names.
    pub all: bool,
    /// Also the layers of images that stay.
    pub layers: bool,
    /// Only what nobody has asked for so long.
    pub unused_for: Option<Duration>,
    /// The least recently used ones, named or not, until the library fits.
    pub max_bytes: Option<u64>,
}

impl Host {
    /// The images that are here; with `all` also those without a name.
    ///
    /// # Errors
    /// [`ErrorCode::ImageFailed`] when the library cannot be read.
    pub async fn images(&self, all: bool) -> Result<Vec<ImageInfo>, Error> {
        self.library(move |library| library.list(&ImageQuery { all }))
            .await
    }

    /// One image, by name, runtime, id or the beginning of an id.
    ///
    /// # Errors
    /// [`ErrorCode::ImageNotFound`], [`ErrorCode::Ambiguous`].
    pub async fn image(&self, key: &str) -> Result<ImageInfo, Error> {
        let key = self.image_key(key);
        self.library(move |library| library.inspect(&key)).await
    }

    /// Fetches an image. Credentials are those of the user that this process runs as: a daemon
    /// serves that user and root only. Goes on when the caller leaves.
    ///
    /// # Errors
    /// [`ErrorCode::ImageNotFound`], [`ErrorCode::RegistryDenied`], [`ErrorCode::PullFailed`],
    /// [`ErrorCode::ImageFailed`], [`ErrorCode::DiskFull`].
    pub async fn pull_image(
        &self,
        pull: PullImage,
        progress: Arc<dyn Progress>,
    ) -> Result<ImageInfo, Error> {
        let name = reference(&pull.image, self.shared.materials.runtimes())?;
        let request = PullRequest {
            policy: pull.policy,
            keyring: Keyring::of_user(),
            platform: platform(pull.platform.as_deref())?,
            ..PullRequest::new(name)
        };
        let pulled = self
            .library(move |library| library.pull(&request, progress.as_ref()))
            .await?;
        self.shared.keep_to_quota(vec![pulled.rootfs.id]);
        Ok(pulled)
    }

    /// Takes the images of a file into the library.
    ///
    /// # Errors
    /// [`ErrorCode::InvalidSpec`], [`ErrorCode::ImageFailed`], [`ErrorCode::DiskFull`].
    pub async fn import_image(
        &self,
        import: ImportImage,
        progress: Arc<dyn Progress>,
    ) -> Result<Vec<ImageInfo>, Error> {
        let name = import.name.map(|name| name.parse()).transpose();
        let request = ImportRequest {
            name: name.map_err(LibraryError::Reference)?,
            ..ImportRequest::new(import.path)
        };
        let imported = self
            .library(move |library| library.import(&request, progress.as_ref()))
            .await?;
        let ids = imported.iter().map(|image| image.rootfs.id).collect();
        self.shared.keep_to_quota(ids);
        Ok(imported)
    }

    /// Gives an image one more name.
    ///
    /// # Errors
    /// [`ErrorCode::ImageNotFound`], [`ErrorCode::InvalidSpec`].
    pub async fn tag_image(&self, key: &str, name: &str) -> Result<ImageInfo, Error> {
        let key = self.image_key(key);
        let name = name.parse().map_err(LibraryError::Reference)?;
        self.library(move |library| library.tag(&key, &name)).await
    }

    /// Takes a name away, and with its last one the image.
    ///
    /// # Errors
    /// [`ErrorCode::ImageNotFound`]; [`ErrorCode::ImageInUse`] when a sandbox needs it, or it has
    /// several names and `force` is not set.
    pub async fn remove_image(&self, key: &str, force: bool) -> Result<Removed, Error> {
        let key = self.image_key(key);
        self.drop_stale_pins().await?;
        let shared = Arc::clone(&self.shared);
        self.library(move |library| library.remove(&key, force, &|id| shared.uses_image(id)))
            .await
    }

    /// Throws away what nobody needs.
    ///
    /// # Errors
    /// [`ErrorCode::ImageFailed`]; what went before is gone.
    pub async fn prune_images(&self, request: PruneImages) -> Result<Pruned, Error> {
        let request = PruneRequest {
            all: request.all,
            layers: request.layers,
            unused_for: request.unused_for,
            max_bytes: request.max_bytes,
        };
        self.drop_stale_pins().await?;
        let shared = Arc::clone(&self.shared);
        let in_use = move |id: &ImageId| shared.uses_image(id) || shared.is_starting();
        self.library(move |library| library.prune(&request, &in_use))
            .await
    }

    /// Writes an image's root filesystem as a tar archive.
    ///
    /// # Errors
    /// [`ErrorCode::ImageNotFound`], [`ErrorCode::ImageFailed`] also when `out` fails.
    pub async fn export_image(
        &self,
        key: &str,
        mut out: impl Write + Send + 'static,
        progress: Arc<dyn Progress>,
    ) -> Result<(), Error> {
        let key = self.image_key(key);
        self.library(move |library| library.export(&key, &mut out, progress.as_ref()))
            .await
    }

    /// Writes an image as an OCI archive, which `docker load` takes too.
    ///
    /// # Errors
    /// As [`Host::export_image`].
    pub async fn save_image(
        &self,
        key: &str,
        mut out: impl Write + Send + 'static,
        progress: Arc<dyn Progress>,
    ) -> Result<(), Error> {
        let key = self.image_key(key);
        self.library(move |library| library.save(&key, &mut out, progress.as_ref()))
            .await
    }

    async fn library<T, F>(&self, work: F) -> Result<T, Error>
    where
        T: Send + 'static,
        F: FnOnce(&ImageLibrary) -> Result<T, LibraryError> + Send + 'static,
    {
        let materials = &self.shared.materials;
        materials
            .with_library(move |library| Ok(work(library)?))
            .await
    }

    /// A runtime's name stands for its image.
    fn image_key(&self, key: &str) -> String {
        let runtime = self.shared.materials.runtimes().image(key);
        runtime.map_or_else(|_| key.to_owned(), ToString::to_string)
    }

    async fn drop_stale_pins(&self) -> Result<(), Error> {
        self.shared.drop_stale_pins().await
    }
}

/// One day of [`Quota::unused_for_days`].
const DAY: Duration = Duration::from_secs(24 * 3600);

impl Quota {
    /// What goes by age, and what by size; images without a name are not special to either.
    fn requests(self) -> Vec<PruneRequest> {
        let by_age = self.unused_for_days.map(|days| PruneRequest {
            all: true,
            unused_for: Some(DAY * days),
            ..PruneRequest::default()
        });
        let by_size = self.max_bytes.map(|most| PruneRequest {
            max_bytes: Some(most),
            unused_for: Some(Duration::MAX),
            ..PruneRequest::default()
        });
        by_age.into_iter().chain(by_size).collect()
    }
}

impl Shared {
    /// Throws away, in the background, what the owner does not want kept, but never `fresh`.
    pub(crate) fn keep_to_quota(self: &Arc<Self>, fresh: Vec<ImageId>) {
        let requests = self.materials.quota().requests();
        if requests.is_empty() {
            return;
        }
        let shared = Arc::clone(self);
        tokio::spawn(async move {
            for request in requests {
                if let Err(error) = shared.prune_for_quota(request, fresh.clone()).await {
                    tracing::warn!(error = error.message(), "images exceed their quota");
                }
            }
        });
    }

    async fn prune_for_quota(
        self: &Arc<Self>,
        request: PruneRequest,
        mut kept: Vec<ImageId>,
    ) -> Result<(), Error> {
        self.drop_stale_pins().await?;
        let shared = Arc::clone(self);
        let prune = move |library: &ImageLibrary| {
            kept.extend(shared.materials.made_default_image());
            let in_use =
                |id: &ImageId| kept.contains(id) || shared.uses_image(id) || shared.is_starting();
            Ok(library.prune(&request, &in_use)?)
        };
        let pruned = self.materials.with_library(prune).await?;
        if pruned.freed_bytes > 0 {
            let (names, bytes) = (pruned.names.join(" "), pruned.freed_bytes);
            tracing::info!(names, bytes, "images went for the quota");
        }
        Ok(())
    }

    /// A pull that outlived its sandbox has pinned the image for nobody.
    async fn drop_stale_pins(self: &Arc<Self>) -> Result<(), Error> {
        let shared = Arc::clone(self);
        let lives = move |id: &str| shared.views().iter().any(|view| view.row.id == id);
        self.materials.retain_pins(lives).await
    }

    /// Whether a snapshot, or a sandbox, running or not, has this block image beneath its own disk.
    fn uses_image(&self, id: &ImageId) -> bool {
        let id = id.to_string();
        let uses = |row: &crate::store::SandboxRow| row.image_id.as_ref() == Some(&id);
        self.snapshots.uses_image(&id) || self.views().iter().any(|view| uses(&view.row))
    }

    /// Whether a sandbox is on its way up, perhaps with an image that no row tells of yet.
    fn is_starting(&self) -> bool {
        let starting = |state| state == SandboxState::Starting;
        self.views().iter().any(|view| starting(view.row.state))
    }
}

impl From<LibraryError> for Error {
    fn from(error: LibraryError) -> Self {
        if error.is_disk_full() {
            return Self::new(ErrorCode::DiskFull, "the disk is full")
                .with_source(error)
                .with_hint("`kiln image prune` frees what nobody needs");
        }
        let (code, hint) = explain(&error);
        // The library's words are the message; the chain below them is told once.
        let told = Self::new(code, error.to_string()).with_source(error);
        match hint {
            Some(hint) => told.with_hint(hint),
            None => told,
        }
    }
}

fn explain(error: &LibraryError) -> (ErrorCode, Option<&'static str>) {
    match error {
        LibraryError::Reference(_) | LibraryError::NotATag(_) | LibraryError::PinOwner(_) => {
            (ErrorCode::InvalidSpec, Some("a name is like `alpine:3`"))
        }
        LibraryError::NotFound(_) => (
            ErrorCode::ImageNotFound,
            Some("`kiln image ls --all` lists what is here"),
        ),
        LibraryError::NotHere(_) => (
            ErrorCode::ImageNotFound,
            Some("`kiln pull` fetches it, or run with --pull missing"),
        ),
        LibraryError::Ambiguous(_) => {
            (ErrorCode::Ambiguous, Some("give more characters of the id"))
        }
        LibraryError::InUse { .. } => (
            ErrorCode::ImageInUse,
            Some("remove the sandboxes and snapshots that use it first: `kiln ps --all`"),
        ),
        LibraryError::SeveralNames { .. } => (
            ErrorCode::ImageInUse,
            Some("remove it by one of its names, or with --force"),
        ),
        LibraryError::Registry(error) => explain_registry(error),
        LibraryError::Worker => (ErrorCode::Host, None),
        _ => (ErrorCode::ImageFailed, None),
    }
}

fn explain_registry(error: &RegistryError) -> (ErrorCode, Option<&'static str>) {
    match error {
        RegistryError::NotFound { .. } => (
            ErrorCode::ImageNotFound,
            Some("is the name right? A path begins with `/`, `./` or `../`"),
        ),
        RegistryError::Unauthorized { .. }
        | RegistryError::Challenge { .. }
        | RegistryError::Credentials(_) => (
            ErrorCode::RegistryDenied,
            Some(
                "is the name right? Credentials are those of the daemon's user: \
                 `podman login` or `docker login` as that user",
            ),
        ),
        RegistryError::Connect { .. } => (
            ErrorCode::PullFailed,
            Some("a registry without TLS, or a mirror, is told in images.json"),
        ),
        _ => (ErrorCode::PullFailed, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_of_the_library_have_codes_and_are_told_once() {
        let error = Error::from(LibraryError::NotHere("alpine:latest".into()));
        assert_eq!(error.code(), ErrorCode::ImageNotFound);
        assert!(error.hint().is_some_and(|hint| hint.contains("pull")));
        assert_eq!(
            error.message(),
            "alpine:latest is not here, and the pull policy is `never`"
        );
        let held = LibraryError::InUse {
            image: "abc".into(),
            users: "x".into(),
        };
        assert_eq!(Error::from(held).code(), ErrorCode::ImageInUse);
        let denied = RegistryError::Unauthorized {
            registry: "r".into(),
            repository: "x".into(),
        };
        let error = Error::from(LibraryError::Registry(denied));
        assert_eq!(error.code(), ErrorCode::RegistryDenied);
    }
}
