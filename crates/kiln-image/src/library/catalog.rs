//! What the library knows of its images: records, names and pins, each a small file of its own that
//! is there whole or not at all. A record is written before the name that leads to it.
//!
//! ```text
//! records/<config digest>.json    one image; its time of modification is when it was last used
//! names/<hash of name>.json       name → image
//! pins/<config digest>.<owner>    empty: the owner needs the image
//! ```

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::error::LibraryError;
use crate::oci::{Descriptor, Digest, ImageConfig, Platform, Reference};
use crate::publish::{LockFile, lock_file, sync_directory, write_atomically_via};
use crate::rootfs::{Action, ImageError};
use crate::store::{ImageId, Workspace};

const SCHEMA: u32 = 1;
const DIRECTORIES: [&str; 3] = ["records", "names", "pins"];
const MAX_OWNER: usize = 128;

/// One image as it is kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    schema: u32,
    /// Digest of the config: the image's id.
    pub(super) id: Digest,
    /// Digest of the manifest, where there is one.
    pub(super) manifest: Option<Digest>,
    pub(super) platform: Platform,
    /// The block image.
    #[serde(with = "image_id")]
    pub(super) rootfs: ImageId,
    /// The layers as they travelled, lowest first; empty for images that never had any.
    pub(super) layers: Vec<Descriptor>,
    pub(super) config: ImageConfig,
    added_unix_s: u64,
}

#[derive(Serialize, Deserialize)]
struct NameRecord {
    name: String,
    image: Digest,
}

/// One name and what it leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Named {
    pub(super) name: String,
    pub(super) image: Digest,
}

mod image_id {
    use serde::{Deserialize, Deserializer, Serializer};

    use super::ImageId;

    pub(super) fn serialize<S: Serializer>(id: &ImageId, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(id)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<ImageId, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

impl Record {
    pub(super) fn new(
        id: Digest,
        platform: Platform,
        rootfs: ImageId,
        config: ImageConfig,
    ) -> Record {
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        Record {
            schema: SCHEMA,
            id,
            manifest: None,
            platform,
            rootfs,
            layers: Vec::new(),
            config,
            added_unix_s: now.as_secs(),
        }
    }

    pub(super) fn added(&self) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(self.added_unix_s)
    }

    /// Everything in `blobs/` that the image consists of.
    pub(super) fn blobs(&self) -> impl Iterator<Item = Digest> + '_ {
        let layers = self.layers.iter().map(|layer| layer.digest);
        [self.id].into_iter().chain(self.manifest).chain(layers)
    }
}

/// The files.
#[derive(Clone, Debug)]
pub(super) struct Catalog {
    root: PathBuf,
}

impl Catalog {
    pub(super) fn open(root: &Path) -> Result<Catalog, ImageError> {
        for name in DIRECTORIES {
            let path = root.join(name);
            std::fs::create_dir_all(&path).during("create", &path)?;
        }
        Ok(Catalog { root: root.into() })
    }

    /// Excludes other writers of the catalog. Held for moments, never while content is moved.
    pub(super) fn lock(&self) -> Result<LockFile, ImageError> {
        let path = self.root.join("locks/catalog");
        lock_file(&path).during("lock", &path)
    }

    fn record_path(&self, id: Digest) -> PathBuf {
        self.root.join("records").join(format!("{}.json", id.hex()))
    }

    fn name_path(&self, name: &str) -> PathBuf {
        let hash = Digest::of(name.as_bytes()).hex();
        self.root.join("names").join(format!("{hash}.json"))
    }

    pub(super) fn save(&self, record: &Record) -> Result<(), ImageError> {
        self.write(&self.record_path(record.id), record)
    }

    pub(super) fn record(&self, id: Digest) -> Result<Option<Record>, ImageError> {
        read(&self.record_path(id))
    }

    pub(super) fn records(&self) -> Result<Vec<Record>, ImageError> {
        let mut records: Vec<Record> = self.read_all("records")?;
        records.sort_by_key(|record| record.id);
        Ok(records)
    }

    pub(super) fn remove_record(&self, id: Digest) -> Result<(), ImageError> {
        remove(&self.record_path(id))
    }

    /// When someone last wanted the image.
    pub(super) fn last_used(&self, id: Digest) -> Option<SystemTime> {
        let metadata = std::fs::metadata(self.record_path(id)).ok()?;
        metadata.modified().ok()
    }

    /// Notes that someone wants the image now.
    pub(super) fn touch(&self, id: Digest) {
        let path = self.record_path(id);
        let touched = File::options().write(true).open(&path);
        // Only the order of eviction hangs on it.
        if let Err(error) = touched.and_then(|file| file.set_modified(SystemTime::now())) {
            tracing::debug!(path = %path.display(), %error, "cannot note the use of an image");
        }
    }

    pub(super) fn set_name(&self, name: &Reference, image: Digest) -> Result<(), ImageError> {
        let name = name.to_string();
        self.write(&self.name_path(&name), &NameRecord { name, image })
    }

    pub(super) fn lookup(&self, name: &Reference) -> Result<Option<Digest>, ImageError> {
        let named: Option<NameRecord> = read(&self.name_path(&name.to_string()))?;
        Ok(named.map(|named| named.image))
    }

    pub(super) fn names(&self) -> Result<Vec<Named>, ImageError> {
        let names: Vec<NameRecord> = self.read_all("names")?;
        let mut names: Vec<Named> = names
            .into_iter()
            .map(|NameRecord { name, image }| Named { name, image })
            .collect();
        names.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(names)
    }

    pub(super) fn remove_name(&self, name: &str) -> Result<(), ImageError> {
        remove(&self.name_path(name))
    }

    pub(super) fn pin(&self, image: Digest, owner: &str) -> Result<(), LibraryError> {
        let path = self.pin_path(image, owner)?;
        File::create(&path).during("create", &path)?;
        self.sync("pins")?;
        Ok(())
    }

    pub(super) fn unpin(&self, image: Digest, owner: &str) -> Result<(), LibraryError> {
        Ok(remove(&self.pin_path(image, owner)?)?)
    }

    /// All pins: image and owner.
    pub(super) fn pins(&self) -> Result<Vec<(Digest, String)>, ImageError> {
        let directory = self.root.join("pins");
        let mut pins = Vec::new();
        for entry in std::fs::read_dir(&directory).during("read", &directory)? {
            let name = entry.during("read", &directory)?.file_name();
            let pin = name.to_str().and_then(|name| {
                let (image, owner) = name.split_once('.')?;
                Some((Digest::from_hex(image).ok()?, owner.to_owned()))
            });
            pins.extend(pin);
        }
        pins.sort();
        Ok(pins)
    }

    fn pin_path(&self, image: Digest, owner: &str) -> Result<PathBuf, LibraryError> {
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
        if owner.is_empty() || owner.len() > MAX_OWNER || !owner.bytes().all(fits) {
            let shown = owner.chars().take(MAX_OWNER).flat_map(char::escape_default);
            return Err(LibraryError::PinOwner(shown.collect()));
        }
        Ok(self
            .root
            .join("pins")
            .join(format!("{}.{owner}", image.hex())))
    }

    fn write(&self, path: &Path, content: &impl Serialize) -> Result<(), ImageError> {
        let text = serde_json::to_vec_pretty(content).during("describe", path)?;
        let workspace = Workspace::create(&self.root)?;
        write_atomically_via(path, workspace.path(), &text).during("write", path)
    }

    fn sync(&self, name: &str) -> Result<(), ImageError> {
        let directory = self.root.join(name);
        sync_directory(&directory).during("sync", &directory)
    }

    fn read_all<T: for<'de> Deserialize<'de>>(&self, name: &str) -> Result<Vec<T>, ImageError> {
        let directory = self.root.join(name);
        let mut all = Vec::new();
        for entry in std::fs::read_dir(&directory).during("read", &directory)? {
            let path = entry.during("read", &directory)?.path();
            // Removed meanwhile, perhaps.
            all.extend(read(&path)?);
        }
        Ok(all)
    }
}

/// One file; `None` if there is none, or what is in it is not ours: a damaged description must not
/// stop all work on the others.
fn read<T: for<'de> Deserialize<'de>>(path: &Path) -> Result<Option<T>, ImageError> {
    let text = match std::fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other.during("read", path)?,
    };
    match serde_json::from_slice(&text) {
        Ok(content) => Ok(Some(content)),
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "damaged description is ignored");
            Ok(None)
        }
    }
}

fn remove(path: &Path) -> Result<(), ImageError> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other.during("remove", path),
    }
}
