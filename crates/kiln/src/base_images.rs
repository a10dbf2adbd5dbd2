//! The base-image bundles of a host: a kernel and a root filesystem that belong together, by preset
//! or by id. It knows what the host's owner decided about them; fetching and keeping them is the
//! store's.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use kiln_image::Progress;
use kiln_image::bundle::{
    BaseImage, BundleError, BundleSource, BundleStore, DebianParts, Ensured, FirecrackerVersion,
    ManifestSource, Origins, Preset,
};
use kiln_image::kernel::KernelBundle;
use serde::Deserialize;

use crate::config::HostConfig;
use crate::error::{Error, ErrorCode};
use crate::host::Host;

/// Bundles that are kept unless the owner says otherwise.
const MAX_STORED: usize = 2;
/// What the preset `debian` says it belongs to: the newest that is known to be good.
const FIRECRACKER: &str = "v1.16.1";

/// Which base image to have here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EnsureBaseImage {
    /// Its kind.
    pub preset: Preset,
    /// For `hosted`: a URL, or a path on this host; the owner's when unset.
    pub manifest: Option<String>,
    /// Fetch it even if it is here.
    pub force_download: bool,
}

/// `base_images` of the file `images.json`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct BaseImageSettings {
    /// How many are kept.
    max_stored: Option<usize>,
    /// What `hosted` means: a URL or a path.
    manifest: Option<String>,
    /// A mirror of Firecracker's CI bucket.
    bucket: Option<String>,
    /// A mirror of the page of the latest release.
    latest_release: Option<String>,
}

impl BaseImageSettings {
    /// What who opened the host says counts more than the file.
    pub(crate) fn overridden_by(mut self, config: &HostConfig) -> Self {
        self.max_stored = config.max_base_images.or(self.max_stored);
        self.manifest = config.base_image_manifest.clone().or(self.manifest);
        self
    }

    fn origins(&self) -> Origins {
        let default = Origins::default();
        Origins {
            bucket: self.bucket.clone().unwrap_or(default.bucket),
            latest_release: self
                .latest_release
                .clone()
                .unwrap_or(default.latest_release),
        }
    }
}

/// The bundles of a host. Its calls block.
#[derive(Clone, Debug)]
pub(crate) struct BaseImages {
    root: PathBuf,
    settings: BaseImageSettings,
}

impl BaseImages {
    pub(crate) fn new(root: PathBuf, settings: BaseImageSettings) -> Self {
        Self { root, settings }
    }

    /// Opened when it is needed: a host without base images has no directory for them.
    fn store(&self) -> Result<BundleStore, Error> {
        let max_stored = self.settings.max_stored.unwrap_or(MAX_STORED);
        let store = BundleStore::open(&self.root, max_stored)?;
        Ok(store.with_origins(self.settings.origins()))
    }

    fn list(&self) -> Result<Vec<BaseImage>, Error> {
        if !self.root.exists() {
            return Ok(Vec::new());
        }
        Ok(self.store()?.list()?)
    }

    /// The base image of a request; `debian` makes the parts of that preset.
    pub(crate) fn ensure(
        &self,
        request: &EnsureBaseImage,
        debian: impl FnOnce() -> Result<DebianParts, Error>,
        progress: &dyn Progress,
    ) -> Result<Ensured, Error> {
        let source = match request.preset {
            Preset::Latest => BundleSource::Latest,
            Preset::Lts => BundleSource::Lts,
            Preset::Debian => BundleSource::Debian(debian()?),
            Preset::Hosted => BundleSource::hosted(self.manifest(request))?,
        };
        let store = self.store()?;
        Ok(store.ensure(&source, request.force_download, progress)?)
    }

    fn manifest(&self, request: &EnsureBaseImage) -> Option<ManifestSource> {
        let given = request
            .manifest
            .as_ref()
            .or(self.settings.manifest.as_ref());
        given.map(|text| match text.split_once("://") {
            Some(_) => ManifestSource::Url(text.clone()),
            None => ManifestSource::File(text.into()),
        })
    }

    /// The base image that a preset or an id means.
    pub(crate) fn find(
        &self,
        name: &str,
        debian: impl FnOnce() -> Result<DebianParts, Error>,
        progress: &dyn Progress,
    ) -> Result<BaseImage, Error> {
        if let Ok(preset) = name.parse() {
            let request = EnsureBaseImage {
                preset,
                manifest: None,
                force_download: false,
            };
            return Ok(self.ensure(&request, debian, progress)?.image);
        }
        let stored = self.store()?.stored(name)?;
        stored.ok_or_else(|| {
            Error::new(
                ErrorCode::BaseImageResolveFailed,
                format!("there is no base image {name:?}, or it is damaged"),
            )
            .with_hint("`kiln image bundle ls` lists those that are here; latest, lts, hosted and debian are fetched")
        })
    }
}

/// What the preset `debian` is made of.
pub(crate) fn debian_parts(
    kernel: &KernelBundle,
    image: &kiln_image::Image,
) -> Result<DebianParts, Error> {
    let version: FirecrackerVersion = FIRECRACKER.parse().map_err(|source| {
        Error::new(ErrorCode::Host, "Firecracker's version is none").with_source(source)
    })?;
    Ok(DebianParts::new(kernel, image, version))
}

/// Refuses what could be neither a preset nor an id.
pub(crate) fn is_base_image_name(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    !matches!(name, "" | "." | "..") && name.len() <= 200 && name.bytes().all(plain)
}

impl Host {
    /// The base images that are here, the most recently used first.
    ///
    /// # Errors
    /// [`ErrorCode::BaseImagePrepareFailed`] when they cannot be read;
    /// [`ErrorCode::InvalidBaseImageCacheLimit`] when the owner's setting is none.
    pub async fn base_images(&self) -> Result<Vec<BaseImage>, Error> {
        let materials = &self.shared.materials;
        materials.with_base_images(|images| images.list()).await
    }

    /// Has a base image here, verified: kernel and root filesystem. Others may have to go for it:
    /// the answer names them.
    ///
    /// # Errors
    /// [`ErrorCode::VersionFetchFailed`], [`ErrorCode::BaseImageResolveFailed`],
    /// [`ErrorCode::BaseImageManifestFailed`], [`ErrorCode::InvalidBaseImageManifest`],
    /// [`ErrorCode::BaseImagePrepareFailed`], [`ErrorCode::InvalidBaseImageCacheLimit`].
    pub async fn ensure_base_image(
        &self,
        request: EnsureBaseImage,
        progress: Arc<dyn Progress>,
    ) -> Result<Ensured, Error> {
        if let Some(manifest) = &request.manifest
            && !manifest.contains("://")
            && !Path::new(manifest).is_absolute()
        {
            let message = format!("{manifest:?} is neither a URL nor an absolute path");
            return Err(Error::new(ErrorCode::InvalidSpec, message));
        }
        let materials = &self.shared.materials;
        materials.ensure_base_image(request, progress).await
    }
}

impl From<BundleError> for Error {
    fn from(error: BundleError) -> Self {
        let code = match error.code() {
            "INVALID_BASE_IMAGE_CACHE_LIMIT" => ErrorCode::InvalidBaseImageCacheLimit,
            "VERSION_FETCH_FAILED" => ErrorCode::VersionFetchFailed,
            "BASE_IMAGE_RESOLVE_FAILED" => ErrorCode::BaseImageResolveFailed,
            "BASE_IMAGE_MANIFEST_FAILED" => ErrorCode::BaseImageManifestFailed,
            "INVALID_BASE_IMAGE_MANIFEST" => ErrorCode::InvalidBaseImageManifest,
            _ => ErrorCode::BaseImagePrepareFailed,
        };
        let hint = match code {
            ErrorCode::InvalidBaseImageCacheLimit => {
                "`base_images.max_stored` in images.json is how many are kept: 1 or more"
            }
            ErrorCode::InvalidBaseImageManifest | ErrorCode::BaseImageManifestFailed => {
                "docs/images.md says what a manifest holds"
            }
            _ => {
                "a mirror is told in images.json: `base_images.bucket`, `base_images.latest_release`"
            }
        };
        // The library's words are the message; the chain below them is told once.
        let told = Self::new(code, error.to_string());
        told.with_source(error).with_hint(hint)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn images(settings: &str) -> (tempfile::TempDir, BaseImages) {
        let temp = tempfile::tempdir().expect("dir");
        let settings = serde_json::from_str(settings).expect("settings");
        let images = BaseImages::new(temp.path().join("bundles"), settings);
        (temp, images)
    }

    fn no_debian() -> Result<DebianParts, Error> {
        Err(Error::new(ErrorCode::Host, "not asked for"))
    }

    fn hosted(manifest: Option<String>) -> EnsureBaseImage {
        EnsureBaseImage {
            preset: Preset::Hosted,
            manifest,
            force_download: false,
        }
    }

    /// Kernel, root filesystem, and the manifest that describes them.
    fn manifest(dir: &Path) -> String {
        std::fs::write(dir.join("vmlinux"), b"kernel").expect("kernel");
        std::fs::write(dir.join("rootfs.ext4"), b"rootfs").expect("rootfs");
        let path = dir.join("manifest.json");
        let arch = std::env::consts::ARCH;
        let text = format!(
            r#"{{"schemaVersion":1,"bundleId":"mine","arch":"{arch}","firecrackerVersion":"v1.16.1",
                "rootfsType":"ext4","kernel":{{"path":"vmlinux"}},"rootfs":{{"path":"rootfs.ext4"}}}}"#
        );
        std::fs::write(&path, text).expect("manifest");
        path.display().to_string()
    }

    #[test]
    fn a3_1_a_hosted_bundle_is_found_by_preset_and_by_id() {
        let (temp, images) = images("{}");
        assert!(images.list().expect("list").is_empty());
        let error = images
            .ensure(&hosted(None), no_debian, &kiln_image::Silent)
            .expect_err("no manifest");
        assert_eq!(error.code(), ErrorCode::BaseImageResolveFailed);
        let path = manifest(temp.path());
        let made = images
            .ensure(&hosted(Some(path)), no_debian, &kiln_image::Silent)
            .expect("made");
        let found = images
            .find("mine", no_debian, &kiln_image::Silent)
            .expect("found");
        assert_eq!(found.kernel, made.image.kernel);
        std::fs::write(&found.rootfs.path, b"damage").expect("damage");
        let error = images
            .find("mine", no_debian, &kiln_image::Silent)
            .expect_err("damaged");
        assert_eq!(error.code(), ErrorCode::BaseImageResolveFailed);
    }

    /// Opens a host, as its owner says it, and has its own base image `hosted`.
    async fn hosted_by(config: &HostConfig, path: &Path) -> Result<Ensured, Error> {
        let host = Host::open(config.clone()).await?;
        let request = hosted(Some(path.display().to_string()));
        let made = host.ensure_base_image(request, Arc::new(kiln_image::Silent));
        let made = made.await;
        host.close().await;
        made
    }

    #[tokio::test]
    async fn a1_8_where_how_many_and_from_where_is_the_owners_to_say() {
        let temp = tempfile::tempdir().expect("dir");
        let path = |name: &str| temp.path().join(name);
        // The file says otherwise: who opens the host counts more.
        std::fs::create_dir(path("data")).expect("data");
        let settings = r#"{"base_images":{"max_stored":2,"manifest":"/no/such/manifest"}}"#;
        std::fs::write(path("data/images.json"), settings).expect("settings");
        let mine = manifest(temp.path());
        let config = HostConfig {
            base_images_dir: Some(path("elsewhere")),
            max_base_images: Some(1),
            base_image_manifest: Some(mine.clone()),
            ..HostConfig::new(path("data"), path("run"))
        };
        let host = Host::open(config.clone()).await.expect("open");
        let made = host.ensure_base_image(hosted(None), Arc::new(kiln_image::Silent));
        let made = made.await.expect("the owner's manifest");
        assert!(made.image.kernel.path.starts_with(path("elsewhere")));
        assert!(!path("data/base-images").exists());
        host.close().await;

        // Another one: of one that may be kept the first has to go.
        let other = std::fs::read_to_string(&mine).expect("manifest");
        let other_path = path("other.json");
        std::fs::write(&other_path, other.replace("mine", "other")).expect("manifest");
        let made = hosted_by(&config, &other_path).await.expect("made");
        let evicted: Vec<_> = made.evicted.iter().map(|it| it.as_str()).collect();
        assert_eq!(evicted, ["mine"]);
    }

    #[tokio::test]
    async fn a1_8_what_cannot_be_is_refused_before_anything_is_made() {
        let temp = tempfile::tempdir().expect("dir");
        let good = HostConfig::new(temp.path().join("data"), temp.path().join("run"));
        for (config, code) in [
            (
                HostConfig {
                    max_base_images: Some(0),
                    ..good.clone()
                },
                "INVALID_BASE_IMAGE_CACHE_LIMIT",
            ),
            (
                HostConfig {
                    base_images_dir: Some("relative".into()),
                    ..good.clone()
                },
                "INVALID_CONFIG",
            ),
            (
                HostConfig {
                    base_image_manifest: Some("relative.json".to_owned()),
                    ..good.clone()
                },
                "INVALID_CONFIG",
            ),
        ] {
            let refused = Host::open(config).await.expect_err("refused");
            assert_eq!(refused.code().as_str(), code);
            assert!(!temp.path().join("data").exists());
        }
    }

    #[test]
    fn a9_every_failure_keeps_its_code() {
        let (_temp, zero) = images(r#"{"max_stored":0}"#);
        let error = zero
            .ensure(&hosted(Some("/m".into())), no_debian, &kiln_image::Silent)
            .expect_err("zero");
        assert_eq!(error.code().as_str(), "INVALID_BASE_IMAGE_CACHE_LIMIT");
        let (temp, images) = images(r#"{"latest_release":"http://127.0.0.1:1/"}"#);
        let ensure = |preset, manifest: Option<PathBuf>| {
            let request = EnsureBaseImage {
                preset,
                manifest: manifest.map(|path| path.display().to_string()),
                force_download: false,
            };
            let error = images.ensure(&request, no_debian, &kiln_image::Silent);
            error.expect_err("failure").code().as_str()
        };
        assert_eq!(ensure(Preset::Latest, None), "VERSION_FETCH_FAILED");
        let missing = temp.path().join("missing");
        assert_eq!(
            ensure(Preset::Hosted, Some(missing)),
            "BASE_IMAGE_MANIFEST_FAILED"
        );
        let wrong = temp.path().join("wrong");
        std::fs::write(&wrong, "{}").expect("write");
        assert_eq!(
            ensure(Preset::Hosted, Some(wrong)),
            "INVALID_BASE_IMAGE_MANIFEST"
        );
        let gone: PathBuf = manifest(temp.path()).into();
        std::fs::remove_file(temp.path().join("rootfs.ext4")).expect("remove");
        assert_eq!(
            ensure(Preset::Hosted, Some(gone)),
            "BASE_IMAGE_PREPARE_FAILED"
        );
    }

    #[test]
    fn names_lead_nowhere_else() {
        for name in ["latest", "lts-x86_64-v1.7-vmlinux-5.10", "a"] {
            assert!(is_base_image_name(name), "{name}");
        }
        for name in ["", ".", "..", "a/b", "../x", "a b"] {
            assert!(!is_base_image_name(name), "{name}");
        }
    }
}
