//! Images from files: archives with their names and configs, or bare root filesystems.

use std::path::{Path, PathBuf};

use super::catalog::Record;
use super::described::Described;
use super::error::LibraryError;
use super::{ImageInfo, ImageLibrary};
use crate::archive::{ArchiveError, ArchivedBody, ArchivedImage, Container};
use crate::blobs::IngestError;
use crate::decompress::Compression;
use crate::limits::Budget;
use crate::oci::{
    Descriptor, Digest, ImageConfig, ImageDocument, Manifest, OCI_CONFIG, OCI_LAYER,
    OCI_LAYER_GZIP, OCI_LAYER_ZSTD, OCI_MANIFEST, Platform, Reference,
};
use crate::progress::{Progress, ProgressEvent};
use crate::rootfs::{ImageError, ImageSource, LayerSource};
use crate::store::{Image, Workspace};

/// What to import.
#[derive(Clone, Debug)]
pub struct ImportRequest {
    /// What `docker save` wrote, an OCI archive or layout directory; or a root filesystem: a tar
    /// archive, a directory, an ext4, squashfs or erofs image. Archives may be compressed.
    pub path: PathBuf,
    /// The image's name; the archive's own if there is none.
    pub name: Option<Reference>,
    /// For what machine; bare root filesystems are taken to be for it.
    pub platform: Platform,
    /// How a bare root filesystem wants to be run.
    pub config: ImageConfig,
}

impl ImportRequest {
    /// The file for this machine, under the names that it brings.
    pub fn new(path: impl Into<PathBuf>) -> ImportRequest {
        ImportRequest {
            path: path.into(),
            name: None,
            platform: Platform::host(),
            config: ImageConfig::default(),
        }
    }
}

impl ImageLibrary {
    /// Takes the images of a file into the library.
    ///
    /// # Errors
    /// [`LibraryError`]; the library then holds what it held before, and perhaps some of the
    /// archive's images.
    pub fn import(
        &self,
        request: &ImportRequest,
        progress: &dyn Progress,
    ) -> Result<Vec<ImageInfo>, LibraryError> {
        let _quiet = self.keep_blobs()?;
        let workspace = Workspace::create(self.store.root())?;
        let budget = Budget::new(&self.config.limits);
        let failed = |source| LibraryError::Archive {
            path: request.path.clone(),
            source,
        };
        let container = Container::open(&request.path, workspace.path(), &budget);
        let Some(container) = container.map_err(failed)? else {
            return self
                .import_rootfs(request, progress)
                .map(|image| vec![image]);
        };
        progress.report(ProgressEvent::Step(format!(
            "Importing {}",
            request.path.display()
        )));
        let images = container.images(&request.platform).map_err(failed)?;
        let alone = images.len() == 1;
        let mut records = Vec::new();
        for mut image in images {
            if let Some(name) = request.name.as_ref().filter(|_| alone) {
                image.names = vec![name.clone()];
            }
            let taking = Taking {
                request,
                container: &container,
                temporary: workspace.path(),
            };
            records.push(self.take(&taking, image, progress)?);
        }
        records.iter().map(|record| self.describe(record)).collect()
    }

    /// Takes one image of an archive.
    fn take(
        &self,
        taking: &Taking<'_>,
        image: ArchivedImage,
        progress: &dyn Progress,
    ) -> Result<Record, LibraryError> {
        let names = image.names;
        let (manifest, fresh) = match image.body {
            ArchivedBody::Addressed {
                bytes,
                digest,
                manifest,
            } => ((digest, bytes, *manifest), false),
            ArchivedBody::Named(layers) => {
                let manifest = self.take_named(taking, &image.config, &layers)?;
                let bytes = serde_json::to_vec(&manifest).unwrap_or_default();
                ((Digest::of(&bytes), bytes.into(), manifest), true)
            }
        };
        let shown = taking.request.path.display().to_string();
        let described = Described::new(&shown, &taking.request.platform, manifest, image.config)?;
        described.check_limits(&self.config.limits)?;
        if !fresh {
            self.take_addressed(taking, &described.manifest)?;
        }
        self.keep_documents(&described)?;
        loop {
            let image = self.build_from_blobs(&described, progress)?;
            if let Some(record) = self.enter(&described, &image, &names, None)? {
                return Ok(record);
            }
        }
    }

    /// Takes layers that have no digests yet, and makes the manifest that Docker would have made.
    fn take_named(
        &self,
        taking: &Taking<'_>,
        config: &[u8],
        layers: &[String],
    ) -> Result<Manifest, LibraryError> {
        let limit = self.config.limits.layers;
        if layers.len() > limit {
            let found = layers.len();
            return Err(LibraryError::Image(ImageError::Layers { found, limit }));
        }
        let mut descriptors = Vec::new();
        for layer in layers {
            let input = taking
                .container
                .open_entry(layer)
                .map_err(|error| taking.failed(error))?;
            let stored = self
                .blobs
                .ingest(input, taking.temporary, self.config.limits.layer_bytes);
            let stored = stored.map_err(|error| taking.ingest_failed(layer, error))?;
            let media_type = self.layer_type(stored.digest);
            descriptors.push(descriptor(media_type, stored.digest, stored.size));
        }
        Ok(Manifest {
            schema_version: 2,
            media_type: Some(OCI_MANIFEST.to_owned()),
            config: descriptor(OCI_CONFIG, Digest::of(config), config.len() as u64),
            layers: descriptors,
        })
    }

    /// Takes the layers that are not here yet.
    fn take_addressed(&self, taking: &Taking<'_>, manifest: &Manifest) -> Result<(), LibraryError> {
        for layer in &manifest.layers {
            if self.blobs.find(layer.digest, Some(layer.size)).is_some() {
                continue;
            }
            let input = taking
                .container
                .blob(layer.digest)
                .map_err(|error| taking.failed(error))?;
            let stored = self.blobs.ingest(input, taking.temporary, layer.size);
            let stored =
                stored.map_err(|error| taking.ingest_failed(&layer.digest.to_string(), error))?;
            if stored.digest != layer.digest {
                // It is what it is, under its true name; the next sweep takes it.
                return Err(taking.failed(ArchiveError::WrongDigest(layer.digest)));
            }
        }
        Ok(())
    }

    fn layer_type(&self, digest: Digest) -> &'static str {
        use std::io::Read;
        let mut head = Vec::new();
        if let Some(file) = self.blobs.find(digest, None) {
            // What cannot be read now cannot be read later either, and fails there.
            let _ = file.take(16).read_to_end(&mut head);
        }
        match Compression::detect(&head) {
            Compression::Gzip => OCI_LAYER_GZIP,
            Compression::Zstd => OCI_LAYER_ZSTD,
            _ => OCI_LAYER,
        }
    }

    fn build_from_blobs(
        &self,
        described: &Described,
        progress: &dyn Progress,
    ) -> Result<Image, LibraryError> {
        let id = described.rootfs();
        let _flight = self.flight(&id, progress)?;
        if let Some(image) = self.store.get(&id)? {
            return Ok(image);
        }
        let layers = described.manifest.layers.iter();
        let sources = layers.map(|layer| LayerSource::File(self.blobs.path(layer.digest)));
        let source = ImageSource::Layers(sources.collect());
        Ok(self
            .store
            .import_exactly(source, &id, &self.config.limits, progress)?)
    }

    /// A root filesystem that says nothing about itself gets a config from the request.
    fn import_rootfs(
        &self,
        request: &ImportRequest,
        progress: &dyn Progress,
    ) -> Result<ImageInfo, LibraryError> {
        loop {
            let source = ImageSource::detect(&request.path)?;
            let image = self.store.import(source, &self.config.limits, progress)?;
            let document = ImageDocument {
                platform: request.platform.clone(),
                created: None,
                // No layers: what stands for them is the block image's own id, so that two images
                // with equal configs stay two.
                diff_ids: vec![Digest::from(*image.id.as_bytes())],
                config: request.config.clone(),
            };
            let id = self.blobs.put(&document.to_bytes())?;
            let record = Record::new(id, document.platform, image.id, document.config);
            let names: Vec<Reference> = request.name.iter().cloned().collect();
            if let Some(record) = self.enter_record(record, &names, None)? {
                return self.describe(&record);
            }
        }
    }
}

fn descriptor(media_type: &str, digest: Digest, size: u64) -> Descriptor {
    Descriptor {
        media_type: media_type.to_owned(),
        digest,
        size,
        platform: None,
        annotations: std::collections::BTreeMap::new(),
    }
}

/// One archive on its way in.
struct Taking<'a> {
    request: &'a ImportRequest,
    container: &'a Container,
    temporary: &'a Path,
}

impl Taking<'_> {
    fn failed(&self, source: ArchiveError) -> LibraryError {
        LibraryError::Archive {
            path: self.request.path.clone(),
            source,
        }
    }

    fn ingest_failed(&self, what: &str, error: IngestError) -> LibraryError {
        match error {
            IngestError::Read(source) => self.failed(ArchiveError::Read {
                path: self.request.path.clone(),
                source,
            }),
            IngestError::TooLarge(limit) => LibraryError::Image(ImageError::LayerTooLarge {
                what: what.escape_debug().collect(),
                limit,
            }),
            IngestError::Store(error) => error.into(),
        }
    }
}
