//! What is in the library, and what it costs.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::time::SystemTime;

use super::ImageLibrary;
use super::catalog::Record;
use super::error::LibraryError;
use crate::oci::{Digest, ImageConfig, Platform};
use crate::rootfs::ImageError;
use crate::store::{Image, ImageId};

/// An image as its users see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageInfo {
    /// Digest of its config.
    pub id: Digest,
    /// Digest of its manifest, if it came with one.
    pub manifest: Option<Digest>,
    /// All its names, sorted.
    pub names: Vec<String>,
    /// What it runs on.
    pub platform: Platform,
    /// How it wants to be run.
    pub config: ImageConfig,
    /// The block image.
    pub rootfs: Image,
    /// Layers as they travelled; their blobs may be gone.
    pub layers: Vec<Digest>,
    /// Bytes on this host: block image and blobs.
    pub size_bytes: u64,
    /// Those of them that other images use, too.
    pub shared_bytes: u64,
    /// When it came here.
    pub added: SystemTime,
    /// When it was last asked for.
    pub last_used: SystemTime,
    /// Who holds it.
    pub pinned_by: Vec<String>,
}

impl ImageInfo {
    /// Bytes that removing it would free.
    #[must_use]
    pub fn unique_bytes(&self) -> u64 {
        self.size_bytes - self.shared_bytes
    }
}

/// Which images to list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImageQuery {
    /// Also those without a name.
    pub all: bool,
}

/// What all images together use, to tell shared from unique.
pub(super) struct Usage {
    blob_sizes: BTreeMap<Digest, u64>,
    blob_users: BTreeMap<Digest, usize>,
    rootfs_users: BTreeMap<ImageId, usize>,
    names: BTreeMap<Digest, Vec<String>>,
    pins: BTreeMap<Digest, Vec<String>>,
}

impl ImageLibrary {
    /// The images, in the order of their first names.
    ///
    /// # Errors
    /// [`LibraryError::Image`] when the library cannot be read.
    pub fn list(&self, query: &ImageQuery) -> Result<Vec<ImageInfo>, LibraryError> {
        let records = self.catalog.records()?;
        let usage = self.usage(&records)?;
        let mut images = Vec::new();
        for record in &records {
            // Removed meanwhile, or cut off: what is not whole is not listed.
            if let Some(image) = self.store.get(&record.rootfs)? {
                images.push(self.info(record, image, &usage));
            }
        }
        images.retain(|image| query.all || !image.names.is_empty());
        images.sort_by(|a, b| {
            (a.names.is_empty(), &a.names, a.id).cmp(&(b.names.is_empty(), &b.names, b.id))
        });
        Ok(images)
    }

    /// The image that a name, an id or the beginning of an id means.
    ///
    /// # Errors
    /// [`LibraryError::NotFound`], [`LibraryError::Ambiguous`], or [`LibraryError::Image`].
    pub fn inspect(&self, key: &str) -> Result<ImageInfo, LibraryError> {
        self.describe(&self.find(key)?)
    }

    pub(super) fn describe(&self, record: &Record) -> Result<ImageInfo, LibraryError> {
        let usage = self.usage(&self.catalog.records()?)?;
        let image = self.store.get(&record.rootfs)?;
        let image = image.ok_or_else(|| LibraryError::NotFound(record.id.to_string()))?;
        Ok(self.info(record, image, &usage))
    }

    fn info(&self, record: &Record, rootfs: Image, usage: &Usage) -> ImageInfo {
        let (size_bytes, shared_bytes) = usage.cost(record, &rootfs);
        let named =
            |map: &BTreeMap<Digest, Vec<String>>| map.get(&record.id).cloned().unwrap_or_default();
        ImageInfo {
            id: record.id,
            manifest: record.manifest,
            names: named(&usage.names),
            platform: record.platform.clone(),
            config: record.config.clone(),
            rootfs,
            layers: record.layers.iter().map(|layer| layer.digest).collect(),
            size_bytes,
            shared_bytes,
            added: record.added(),
            last_used: self
                .catalog
                .last_used(record.id)
                .unwrap_or_else(|| record.added()),
            pinned_by: named(&usage.pins),
        }
    }

    pub(super) fn usage(&self, records: &[Record]) -> Result<Usage, ImageError> {
        let blobs = self.blobs.list()?;
        let mut usage = Usage {
            blob_sizes: blobs
                .into_iter()
                .map(|blob| (blob.digest, blob.size))
                .collect(),
            blob_users: BTreeMap::new(),
            rootfs_users: BTreeMap::new(),
            names: BTreeMap::new(),
            pins: BTreeMap::new(),
        };
        for record in records {
            *usage.rootfs_users.entry(record.rootfs).or_default() += 1;
            for digest in distinct_blobs(record) {
                *usage.blob_users.entry(digest).or_default() += 1;
            }
        }
        for named in self.catalog.names()? {
            usage.names.entry(named.image).or_default().push(named.name);
        }
        for (image, owner) in self.catalog.pins()? {
            usage.pins.entry(image).or_default().push(owner);
        }
        Ok(usage)
    }
}

/// One layer may stand in an image twice.
fn distinct_blobs(record: &Record) -> std::collections::BTreeSet<Digest> {
    record.blobs().collect()
}

impl Usage {
    /// Bytes in all, and bytes that others use, too.
    fn cost(&self, record: &Record, rootfs: &Image) -> (u64, u64) {
        let rootfs_bytes = allocated(rootfs);
        let rootfs_shared = self
            .rootfs_users
            .get(&record.rootfs)
            .is_some_and(|users| *users > 1);
        let (mut size, mut shared) = (rootfs_bytes, if rootfs_shared { rootfs_bytes } else { 0 });
        for digest in distinct_blobs(record) {
            let bytes = self.blob_sizes.get(&digest).copied().unwrap_or(0);
            size += bytes;
            if self.blob_users.get(&digest).is_some_and(|users| *users > 1) {
                shared += bytes;
            }
        }
        (size, shared)
    }
}

/// Holes cost nothing.
pub(super) fn allocated(image: &Image) -> u64 {
    std::fs::metadata(&image.path).map_or(0, |metadata| metadata.blocks() * 512)
}
