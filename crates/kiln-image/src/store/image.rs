//! One published image and its description on disk.

use std::fmt;
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::rootfs::{Action, Filesystem, ImageError};

/// SHA-256 over all that decides an image's bytes: equal ids, equal images.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ImageId([u8; 32]);

impl From<[u8; 32]> for ImageId {
    fn from(bytes: [u8; 32]) -> ImageId {
        ImageId(bytes)
    }
}

impl ImageId {
    /// The digest itself.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for ImageId {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for ImageId {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, out)
    }
}

/// Not 64 hexadecimal digits.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not an image id (64 hexadecimal digits)")]
pub struct ImageIdError;

impl FromStr for ImageId {
    type Err = ImageIdError;

    fn from_str(text: &str) -> Result<ImageId, ImageIdError> {
        let mut bytes = [0; 32];
        // Upper case would be a second name for the same directory.
        if text.bytes().any(|byte| byte.is_ascii_uppercase()) {
            return Err(ImageIdError);
        }
        hex::decode_to_slice(text, &mut bytes).map_err(|_| ImageIdError)?;
        Ok(ImageId(bytes))
    }
}

/// A block image, ready to be attached read-only to any number of machines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// Content id.
    pub id: ImageId,
    /// The image file, mode 0444; never written again.
    pub path: PathBuf,
    /// What is in it.
    pub filesystem: Filesystem,
    /// Length of the file.
    pub size_bytes: u64,
    /// When it was made here.
    pub created: SystemTime,
}

/// `image.json`.
#[derive(Serialize, Deserialize)]
struct Description {
    schema: u32,
    id: String,
    filesystem: Filesystem,
    size_bytes: u64,
    created_unix_s: u64,
}

const SCHEMA: u32 = 1;
const DESCRIPTION: &str = "image.json";

impl Image {
    pub(super) fn file_name(filesystem: Filesystem) -> String {
        format!("rootfs.{}", filesystem.name())
    }

    pub(super) fn describe(
        root: &Path,
        id: &ImageId,
        filesystem: Filesystem,
        file: &File,
    ) -> Result<Image, ImageError> {
        let path = path_of(root, id, filesystem);
        let size_bytes = file.metadata().during("examine", &path)?.len();
        Ok(Image {
            id: *id,
            path,
            filesystem,
            size_bytes,
            created: now(),
        })
    }

    pub(super) fn save(&self, directory: &Path) -> Result<(), ImageError> {
        let path = directory.join(DESCRIPTION);
        let created = self.created.duration_since(UNIX_EPOCH).unwrap_or_default();
        let description = Description {
            schema: SCHEMA,
            id: self.id.to_string(),
            filesystem: self.filesystem,
            size_bytes: self.size_bytes,
            created_unix_s: created.as_secs(),
        };
        let file = File::create(&path).during("create", &path)?;
        serde_json::to_writer_pretty(&file, &description).during("write", &path)?;
        file.sync_all().during("sync", &path)
    }

    pub(super) fn load(root: &Path, id: &ImageId) -> Result<Option<Image>, ImageError> {
        let path = root.join("images").join(id.to_string()).join(DESCRIPTION);
        let text = match std::fs::read(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            other => other.during("read", &path)?,
        };
        let description: Description = serde_json::from_slice(&text).during("understand", &path)?;
        Ok(Some(Image {
            id: *id,
            path: path_of(root, id, description.filesystem),
            filesystem: description.filesystem,
            size_bytes: description.size_bytes,
            created: UNIX_EPOCH + Duration::from_secs(description.created_unix_s),
        }))
    }

    /// Whether jails hold hard links to the file.
    pub(crate) fn has_other_names(&self) -> Result<bool, ImageError> {
        let metadata = std::fs::metadata(&self.path).during("examine", &self.path)?;
        Ok(metadata.nlink() > 1)
    }
}

fn path_of(root: &Path, id: &ImageId, filesystem: Filesystem) -> PathBuf {
    root.join("images")
        .join(id.to_string())
        .join(Image::file_name(filesystem))
}

/// Whole seconds: what the description keeps.
fn now() -> SystemTime {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    UNIX_EPOCH + Duration::from_secs(since.as_secs())
}
