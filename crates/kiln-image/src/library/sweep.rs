//! Throwing away what nobody needs: mark from names and pins, sweep the rest; mend what was cut off.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use rustix::fs::FlockOperation;

use super::ImageLibrary;
use super::catalog::Record;
use super::error::LibraryError;
use super::list::{ImageInfo, ImageQuery, allocated};
use crate::oci::Digest;
use crate::publish::flock_at_once;
use crate::rootfs::{Action, ImageError};
use crate::store::ImageId;

/// Half-fetched layers are gone on with for so long.
const PARTIALS_IDLE: Duration = Duration::from_secs(7 * 24 * 3600);

/// What to throw away. Nothing that is pinned, linked into a jail, or in use goes.
#[derive(Clone, Copy, Debug, Default)]
pub struct PruneRequest {
    /// Also images that have names, and block images that were made without one.
    pub all: bool,
    /// Also the layers of images that stay: their block images do without them, but saving them
    /// makes one layer of all, and pulling a sibling fetches what they share again.
    pub layers: bool,
    /// Only what nobody has asked for so long.
    pub unused_for: Option<Duration>,
    /// Throw away block images without a name, the oldest first, and then the least recently used
    /// images, named or not, until the library fits.
    pub max_bytes: Option<u64>,
}

/// What was thrown away.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pruned {
    /// Images.
    pub images: Vec<Digest>,
    /// Their names.
    pub names: Vec<String>,
    /// Bytes that the disk got back.
    pub freed_bytes: u64,
    /// A pull or import was running: layers were left for the next time.
    pub layers_skipped: bool,
}

impl ImageLibrary {
    /// Throws away what nobody needs.
    ///
    /// `in_use` is asked whether someone needs a block image, besides those who pinned it.
    ///
    /// # Errors
    /// [`LibraryError::Image`] when the library cannot be read or written; what went before is gone.
    pub fn prune(
        &self,
        request: &PruneRequest,
        in_use: &dyn Fn(&ImageId) -> bool,
    ) -> Result<Pruned, LibraryError> {
        let mut pruned = Pruned::default();
        {
            let _lock = self.catalog.lock()?;
            if let Some(most) = request.max_bytes {
                pruned.freed_bytes += self.drop_unnamed_down_to(most, in_use)?;
            }
            for image in self.victims(request, in_use)? {
                for name in &image.names {
                    self.catalog.remove_name(name)?;
                }
                self.catalog.remove_record(image.id)?;
                pruned.freed_bytes += self.drop_rootfs(image.rootfs.id, in_use)?;
                pruned.names.extend(image.names);
                pruned.images.push(image.id);
            }
            if request.all {
                pruned.freed_bytes += self.drop_unnamed_rootfs(request, in_use)?;
            }
        }
        match self.sweep_blobs_but(request.layers)? {
            Some(freed) => pruned.freed_bytes += freed,
            None => pruned.layers_skipped = true,
        }
        Ok(pruned)
    }

    /// Images that go, in the order of going.
    fn victims(
        &self,
        request: &PruneRequest,
        in_use: &dyn Fn(&ImageId) -> bool,
    ) -> Result<Vec<ImageInfo>, LibraryError> {
        let mut images = self.list(&ImageQuery { all: true })?;
        images.sort_by_key(|image| (image.last_used, image.id));
        let mut total: u64 = self.disk_bytes()?;
        let mut victims = Vec::new();
        for image in images {
            let held = !image.pinned_by.is_empty()
                || image.rootfs.has_other_names()?
                || in_use(&image.rootfs.id);
            let too_much = request.max_bytes.is_some_and(|most| total > most);
            let candidate = image.names.is_empty() || request.all;
            let old = request
                .unused_for
                .is_none_or(|age| age_of(image.last_used) >= age);
            if !held && (too_much || (candidate && old)) {
                total = total.saturating_sub(image.unique_bytes());
                victims.push(image);
            }
        }
        Ok(victims)
    }

    /// What the library takes on disk: block images and blobs, named or not.
    ///
    /// # Errors
    /// [`LibraryError::Image`] when the library cannot be read.
    pub fn disk_bytes(&self) -> Result<u64, LibraryError> {
        let images: u64 = self.store.list()?.iter().map(allocated).sum();
        let blobs: u64 = self.blobs.list()?.iter().map(|blob| blob.size).sum();
        Ok(images + blobs)
    }

    /// Removes a block image that no record needs any more; says how many bytes. To be called under
    /// the catalog's lock.
    pub(super) fn drop_rootfs(
        &self,
        id: ImageId,
        in_use: &dyn Fn(&ImageId) -> bool,
    ) -> Result<u64, LibraryError> {
        if self
            .catalog
            .records()?
            .iter()
            .any(|record| record.rootfs == id)
        {
            return Ok(0);
        }
        let Some(image) = self.store.get(&id)? else {
            return Ok(0);
        };
        let bytes = allocated(&image);
        match self.store.remove(&id, in_use) {
            Ok(()) => Ok(bytes),
            // Someone took it meanwhile; the next sweep sees it again.
            Err(ImageError::InUse(_) | ImageError::NotFound(_)) => Ok(0),
            Err(error) => Err(error.into()),
        }
    }

    /// Block images that were made without a name (of a path, say) are made again when needed.
    fn drop_unnamed_down_to(
        &self,
        most: u64,
        in_use: &dyn Fn(&ImageId) -> bool,
    ) -> Result<u64, LibraryError> {
        let mut excess = self.disk_bytes()?.saturating_sub(most);
        let mut images = self.store.list()?;
        images.sort_by_key(|image| (image.created, image.id));
        let mut freed = 0;
        for image in images {
            if excess == 0 {
                break;
            }
            let bytes = self.drop_rootfs(image.id, in_use)?;
            excess = excess.saturating_sub(bytes);
            freed += bytes;
        }
        Ok(freed)
    }

    fn drop_unnamed_rootfs(
        &self,
        request: &PruneRequest,
        in_use: &dyn Fn(&ImageId) -> bool,
    ) -> Result<u64, LibraryError> {
        let mut freed = 0;
        for image in self.store.list()? {
            if request
                .unused_for
                .is_none_or(|age| age_of(image.created) >= age)
            {
                freed += self.drop_rootfs(image.id, in_use)?;
            }
        }
        Ok(freed)
    }

    pub(super) fn sweep_blobs(&self) -> Result<(), LibraryError> {
        self.sweep_blobs_but(false).map(drop)
    }

    /// Removes blobs that no image has, with `layers` all but manifests and configs; says how many
    /// bytes, or nothing if someone is just fetching: it is not worth a wait.
    fn sweep_blobs_but(&self, layers: bool) -> Result<Option<u64>, LibraryError> {
        let mut alone = false;
        let _lock = self.lock_path("blobs", |file, path| {
            alone = flock_at_once(file, FlockOperation::NonBlockingLockExclusive)
                .during("lock", path)?;
            Ok(())
        })?;
        if !alone {
            return Ok(None);
        }
        let records = self.catalog.records()?;
        let needed: BTreeSet<Digest> = records
            .iter()
            .flat_map(|record| needed(record, layers))
            .collect();
        let mut freed = self.blobs.sweep_partials(PARTIALS_IDLE)?;
        for blob in self.blobs.list()? {
            if !needed.contains(&blob.digest) {
                self.blobs.remove(blob.digest)?;
                freed += blob.size;
            }
        }
        Ok(Some(freed))
    }

    /// Takes away records without a block image and names without a record: what a power cut or a
    /// meddling hand leaves. All else that a killed process leaves is whole, and found again.
    pub(super) fn mend(&self) -> Result<(), LibraryError> {
        let _lock = self.catalog.lock()?;
        let mut whole = BTreeSet::new();
        for record in self.catalog.records()? {
            let image = self.store.get(&record.rootfs)?;
            if image.is_some_and(|image| image.path.exists()) {
                whole.insert(record.id);
            } else {
                tracing::warn!(image = %record.id, "an image without its block image is forgotten");
                self.catalog.remove_record(record.id)?;
            }
        }
        for named in self.catalog.names()? {
            if !whole.contains(&named.image) {
                tracing::warn!(name = named.name, "a name without its image is forgotten");
                self.catalog.remove_name(&named.name)?;
            }
        }
        Ok(())
    }
}

fn needed(record: &Record, without_layers: bool) -> Vec<Digest> {
    let layers = record.layers.iter().map(|layer| layer.digest);
    let layers: BTreeSet<Digest> = layers.filter(|_| without_layers).collect();
    record
        .blobs()
        .filter(|digest| !layers.contains(digest))
        .collect()
}

fn age_of(time: SystemTime) -> Duration {
    SystemTime::now().duration_since(time).unwrap_or_default()
}
