//! An image as its documents describe it, and how it enters the library.

use bytes::Bytes;

use super::ImageLibrary;
use super::catalog::Record;
use super::error::LibraryError;
use crate::failpoint;
use crate::limits::{LimitError, Limits};
use crate::oci::{Digest, ImageDocument, Manifest, Platform, Reference};
use crate::rootfs::{ImageError, layers_key};
use crate::store::{Image, ImageId};

/// Manifest and config, which fit together and the platform.
pub(super) struct Described {
    pub(super) manifest_digest: Digest,
    pub(super) manifest_bytes: Bytes,
    pub(super) manifest: Manifest,
    pub(super) config_bytes: Bytes,
    pub(super) document: ImageDocument,
}

impl Described {
    /// Checks that the documents belong together. `image` is for messages.
    pub(super) fn new(
        image: &str,
        platform: &Platform,
        (manifest_digest, manifest_bytes, manifest): (Digest, Bytes, Manifest),
        config_bytes: Bytes,
    ) -> Result<Described, LibraryError> {
        let document = ImageDocument::parse(&config_bytes)?;
        // A lone manifest says nothing about its platform; the config does.
        if !platform.accepts(&document.platform) {
            return Err(LibraryError::Platform {
                image: image.to_owned(),
                found: document.platform.to_string(),
                wanted: platform.to_string(),
            });
        }
        if document.diff_ids.len() != manifest.layers.len() {
            return Err(LibraryError::LayerCount {
                config: document.diff_ids.len(),
                manifest: manifest.layers.len(),
            });
        }
        Ok(Described {
            manifest_digest,
            manifest_bytes,
            manifest,
            config_bytes,
            document,
        })
    }

    /// Refuses what would be too much before any of it is fetched: no layer is larger packed than
    /// plain.
    pub(super) fn check_limits(&self, limits: &Limits) -> Result<(), ImageError> {
        let layers = &self.manifest.layers;
        if layers.len() > limits.layers {
            return Err(ImageError::Layers {
                found: layers.len(),
                limit: limits.layers,
            });
        }
        if let Some(layer) = layers.iter().find(|layer| layer.size > limits.layer_bytes) {
            return Err(ImageError::LayerTooLarge {
                what: format!("layer {}", layer.digest.short()),
                limit: limits.layer_bytes,
            });
        }
        if self.manifest.layer_bytes() > limits.total_bytes {
            return Err(ImageError::Limit {
                what: "the image".to_owned(),
                limit: LimitError::Total(limits.total_bytes),
            });
        }
        Ok(())
    }

    /// The block image that the layers give, known before they are.
    pub(super) fn rootfs(&self) -> ImageId {
        ImageId::from(layers_key(&self.document.diff_ids))
    }

    /// What is kept of it.
    fn record(&self, image: &Image) -> Record {
        let mut record = Record::new(
            Digest::of(&self.config_bytes),
            self.document.platform.clone(),
            image.id,
            self.document.config.clone(),
        );
        record.manifest = Some(self.manifest_digest);
        record.layers.clone_from(&self.manifest.layers);
        record
    }
}

impl ImageLibrary {
    /// Keeps the documents, which come before the record that names them.
    pub(super) fn keep_documents(&self, described: &Described) -> Result<(), LibraryError> {
        self.blobs.put(&described.config_bytes)?;
        self.blobs.put(&described.manifest_bytes)?;
        Ok(())
    }

    /// Notes the image under these names; `None` if the block image was removed meanwhile and must
    /// be made again.
    pub(super) fn enter(
        &self,
        described: &Described,
        image: &Image,
        names: &[Reference],
        pin: Option<&str>,
    ) -> Result<Option<Record>, LibraryError> {
        self.enter_record(described.record(image), names, pin)
    }

    pub(super) fn enter_record(
        &self,
        record: Record,
        names: &[Reference],
        pin: Option<&str>,
    ) -> Result<Option<Record>, LibraryError> {
        let _lock = self.catalog.lock()?;
        if self.store.get(&record.rootfs)?.is_none() {
            return Ok(None);
        }
        if let Some(owner) = pin {
            self.catalog.pin(record.id, owner)?;
        }
        self.catalog.save(&record)?;
        failpoint::reach("pull.recorded");
        for name in names {
            self.catalog.set_name(name, record.id)?;
        }
        Ok(Some(record))
    }
}
