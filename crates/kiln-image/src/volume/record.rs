//! A volume's description on disk.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::error::During;
use super::{Volume, VolumeError, VolumeName};
use crate::publish::write_atomically;

const SCHEMA: u32 = 1;
const RECORD: &str = "volume.json";

/// `volume.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Record {
    schema: u32,
    size_bytes: u64,
    created_unix_s: u64,
    /// The size that a resize was going to when this was written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) resizing_to: Option<u64>,
}

impl Record {
    pub(super) fn new(size_bytes: u64) -> Record {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        Record {
            schema: SCHEMA,
            size_bytes,
            created_unix_s: now.unwrap_or_default().as_secs(),
            resizing_to: None,
        }
    }

    /// The same, noting what is about to happen.
    pub(super) fn growing_to(&self, size: u64) -> Record {
        Record {
            resizing_to: Some(size),
            ..self.clone()
        }
    }

    /// The same, when it has happened.
    pub(super) fn grown(&self, size_bytes: u64) -> Record {
        Record {
            size_bytes,
            resizing_to: None,
            ..self.clone()
        }
    }

    pub(super) fn save(&self, directory: &Path) -> Result<(), VolumeError> {
        let path = directory.join(RECORD);
        let text = serde_json::to_vec_pretty(self).map_err(|source| VolumeError::Record {
            path: path.clone(),
            source,
        })?;
        write_atomically(&path, &text).during("write", &path)
    }

    /// `None` where there is no volume.
    pub(super) fn load(directory: &Path) -> Result<Option<Record>, VolumeError> {
        let path = directory.join(RECORD);
        let text = match std::fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other.during("read", &path)?,
        };
        serde_json::from_slice(&text)
            .map(Some)
            .map_err(|source| VolumeError::Record { path, source })
    }

    pub(super) fn volume(&self, name: &VolumeName, path: PathBuf) -> Result<Volume, VolumeError> {
        let metadata = std::fs::metadata(&path).during("examine", &path)?;
        Ok(Volume {
            name: name.clone(),
            size_bytes: self.size_bytes,
            allocated_bytes: metadata.blocks() * 512,
            created: UNIX_EPOCH + Duration::from_secs(self.created_unix_s),
            path,
        })
    }
}
