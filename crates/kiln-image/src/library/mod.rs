//! The library of images as users know them: by name, with their config, pulled or imported, kept,
//! counted and thrown away. It stands on the store of block images and the blobs, and knows nothing
//! of machines; who uses an image pins it, or says so when asked.
//!
//! All calls block. Any number of processes may use one library, and any of them may be killed at
//! any moment: content comes before the record that names it, the record before the name.

mod catalog;
mod described;
mod error;
mod fetch;
mod import;
mod list;
mod pull;
mod remove;
mod save;
mod sweep;

use std::fs::File;
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};

use catalog::{Catalog, Record};
pub use error::LibraryError;
pub use import::ImportRequest;
pub use list::{ImageInfo, ImageQuery};
pub use remove::Removed;
pub use sweep::{PruneRequest, Pruned};

use crate::blobs::Blobs;
use crate::credentials::Keyring;
use crate::limits::Limits;
use crate::oci::{Digest, Platform, Reference};
use crate::progress::{Progress, ProgressEvent};
use crate::publish::{LockFile, flock_at_once, flock_waiting, open_lock};
use crate::registry::RegistrySettings;
use crate::rootfs::{Action, ImageError};
use crate::store::{ImageId, ImageStore};

/// When to ask the registry for an image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PullPolicy {
    /// Each time: names move.
    Always,
    /// When the image is not here.
    #[default]
    Missing,
    /// Not at all.
    Never,
}

/// What to pull.
#[derive(Clone, Debug)]
pub struct PullRequest {
    /// The image.
    pub image: Reference,
    /// When to ask the registry.
    pub policy: PullPolicy,
    /// For what machine.
    pub platform: Platform,
    /// Who is asking.
    pub keyring: Keyring,
    /// Pins the image for this owner before anyone could remove it again.
    pub pin: Option<String>,
}

impl PullRequest {
    /// The image for this machine, if it is not here, asked for by nobody in particular.
    #[must_use]
    pub fn new(image: Reference) -> PullRequest {
        PullRequest {
            image,
            policy: PullPolicy::default(),
            platform: Platform::host(),
            keyring: Keyring::anonymous(),
            pin: None,
        }
    }
}

/// What the host's owner decides.
#[derive(Clone, Debug, Default)]
pub struct LibraryConfig {
    /// Mirrors, plain HTTP, patience.
    pub registries: RegistrySettings,
    /// What an image may cost.
    pub limits: Limits,
}

/// A library in a directory of its own.
#[derive(Clone, Debug)]
pub struct ImageLibrary {
    store: ImageStore,
    blobs: Blobs,
    catalog: Catalog,
    config: LibraryConfig,
}

impl ImageLibrary {
    /// Opens the library, makes it if it is not there, and mends what killed processes left.
    ///
    /// # Errors
    /// [`LibraryError::Image`] when the directory cannot be used.
    pub fn open(
        root: impl Into<PathBuf>,
        config: LibraryConfig,
    ) -> Result<ImageLibrary, LibraryError> {
        let store = ImageStore::open(root)?;
        let library = ImageLibrary {
            blobs: Blobs::open(store.root())?,
            catalog: Catalog::open(store.root())?,
            store,
            config,
        };
        library.mend()?;
        Ok(library)
    }

    /// The store of block images beneath.
    #[must_use]
    pub fn store(&self) -> &ImageStore {
        &self.store
    }

    fn named(&self, name: &Reference) -> Result<Option<Record>, LibraryError> {
        match self.catalog.lookup(name)? {
            Some(id) => Ok(self.catalog.record(id)?),
            None => Ok(None),
        }
    }

    /// Blobs without a record stay until this is dropped: they are on their way to one.
    fn keep_blobs(&self) -> Result<LockFile, ImageError> {
        self.lock_path("blobs", |file, path| {
            flock_waiting(file, FlockOperation::LockShared).during("lock", path)
        })
    }

    /// One process makes an image, the others wait for it. Told apart by the last two digits: the
    /// store's own locks go by the first.
    fn flight(&self, id: &ImageId, progress: &dyn Progress) -> Result<LockFile, ImageError> {
        let id = id.to_string();
        self.lock_path(&format!("make-{}", &id[id.len() - 2..]), |file, path| {
            let at_once = flock_at_once(file, FlockOperation::NonBlockingLockExclusive);
            if !at_once.during("lock", path)? {
                let waiting = "Waiting for another pull";
                progress.report(ProgressEvent::Note(waiting.into()));
                flock_waiting(file, FlockOperation::LockExclusive).during("lock", path)?;
            }
            Ok(())
        })
    }

    fn lock_path(
        &self,
        name: &str,
        lock: impl FnOnce(&File, &Path) -> Result<(), ImageError>,
    ) -> Result<LockFile, ImageError> {
        let path = self.store.root().join("locks").join(name);
        let file = open_lock(&path).during("open", &path)?;
        lock(&file, &path)?;
        Ok(file)
    }

    /// The image that a name, an id or the beginning of an id means.
    fn find(&self, key: &str) -> Result<Record, LibraryError> {
        if let Ok(name) = key.parse::<Reference>()
            && let Some(record) = self.named(&name)?
        {
            return Ok(record);
        }
        let digits = key.strip_prefix("sha256:").unwrap_or(key);
        let is_id = (4..=64).contains(&digits.len())
            && digits
                .bytes()
                .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        if !is_id {
            return Err(LibraryError::NotFound(shorten(key)));
        }
        let begins = |id: &Digest| id.hex().starts_with(digits);
        let records = self.catalog.records()?;
        let mut found = records.into_iter().filter(|record| begins(&record.id));
        match (found.next(), found.next()) {
            (Some(record), None) => Ok(record),
            (Some(_), Some(_)) => Err(LibraryError::Ambiguous(digits.to_owned())),
            (None, _) => Err(LibraryError::NotFound(shorten(key))),
        }
    }
}

fn shorten(text: &str) -> String {
    text.chars()
        .take(300)
        .flat_map(char::escape_default)
        .collect()
}
