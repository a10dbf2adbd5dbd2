//! A stored bundle and its description on disk.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::manifest::is_plain_name;
use super::{Preset, RootfsType};
use crate::kernel::Architecture;
use crate::publish::{digest_reader, write_atomically};

pub(super) const RECORD: &str = "bundle.json";
const SCHEMA: u32 = 1;
const MAX_RECORD: u64 = 1 << 20;

/// A kernel and a root filesystem that belong together, verified and ready to boot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BaseImage {
    /// What was asked for.
    pub preset: Preset,
    /// The processor it is for.
    pub architecture: Architecture,
    /// Firecracker's CI train: `v1.16`.
    pub train: String,
    /// The Firecracker release it belongs to: `v1.16.1`.
    pub firecracker_version: String,
    /// Its name in the store.
    pub id: String,
    /// Where it is kept.
    pub directory: PathBuf,
    /// The kernel.
    pub kernel: BaseFile,
    /// The root filesystem.
    pub rootfs: BaseFile,
    /// How the root filesystem is packed.
    pub rootfs_type: RootfsType,
    /// Whether guests must not write to it.
    pub rootfs_is_read_only: bool,
    /// Kernel arguments.
    pub boot_args: String,
    /// Where it came from.
    pub source: String,
    /// The kernel bundle whose modules the kernel needs; `None` where all is built in.
    pub kernel_bundle: Option<String>,
    /// When it was stored.
    pub created: SystemTime,
    /// When it was last asked for.
    pub last_accessed: SystemTime,
}

/// One file of a bundle.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BaseFile {
    /// Where it is.
    pub path: PathBuf,
    /// SHA-256 in lower-case hex.
    pub sha256: String,
    /// Its size.
    pub size_bytes: u64,
}

/// `bundle.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Record {
    pub(super) schema: u32,
    pub(super) preset: Preset,
    pub(super) architecture: String,
    pub(super) train: String,
    pub(super) firecracker_version: String,
    pub(super) kernel: FileRecord,
    pub(super) rootfs: FileRecord,
    pub(super) rootfs_type: RootfsType,
    pub(super) rootfs_is_read_only: bool,
    pub(super) boot_args: String,
    pub(super) source: String,
    #[serde(default)]
    pub(super) kernel_bundle: Option<String>,
    pub(super) created_unix_ms: u64,
    pub(super) last_accessed_unix_ms: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct FileRecord {
    /// Its name in the bundle's directory.
    pub(super) file: String,
    pub(super) sha256: String,
    pub(super) size_bytes: u64,
}

impl Record {
    pub(super) const SCHEMA: u32 = SCHEMA;

    /// Fills in the fields that say when.
    pub(super) fn stamped(mut self) -> Record {
        self.schema = SCHEMA;
        (self.created_unix_ms, self.last_accessed_unix_ms) = (now_ms(), now_ms());
        self
    }

    pub(super) fn save(&self, directory: &Path) -> io::Result<()> {
        write_atomically(&directory.join(RECORD), &serde_json::to_vec_pretty(self)?)
    }

    /// `None` where there is no bundle, or none that is understood.
    pub(super) fn load(directory: &Path) -> io::Result<Option<Record>> {
        let path = directory.join(RECORD);
        let length = match fs::metadata(&path) {
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
                ) =>
            {
                return Ok(None);
            }
            other => other?.len(),
        };
        if length > MAX_RECORD {
            return Ok(None);
        }
        let record = serde_json::from_slice::<Record>(&fs::read(&path)?).ok();
        Ok(record.filter(|record| record.schema == SCHEMA))
    }

    /// The same, used now.
    pub(super) fn touched(mut self) -> Record {
        // Never backwards, whatever the clock does.
        self.last_accessed_unix_ms = now_ms().max(self.last_accessed_unix_ms + 1);
        self
    }

    /// Whether both files are inside the directory, and are what was stored.
    pub(super) fn is_whole(&self, directory: &Path) -> io::Result<bool> {
        Ok(self.kernel.is_whole(directory)? && self.rootfs.is_whole(directory)?)
    }

    pub(super) fn into_base_image(self, id: &str, directory: &Path) -> BaseImage {
        let at = |ms| UNIX_EPOCH + Duration::from_millis(ms);
        BaseImage {
            preset: self.preset,
            // Only this machine's are ever stored.
            architecture: Architecture::host(),
            train: self.train,
            firecracker_version: self.firecracker_version,
            id: id.to_owned(),
            directory: directory.to_owned(),
            kernel: self.kernel.into_base_file(directory),
            rootfs: self.rootfs.into_base_file(directory),
            rootfs_type: self.rootfs_type,
            rootfs_is_read_only: self.rootfs_is_read_only,
            boot_args: self.boot_args,
            source: self.source,
            kernel_bundle: self.kernel_bundle,
            created: at(self.created_unix_ms),
            last_accessed: at(self.last_accessed_unix_ms),
        }
    }
}

impl FileRecord {
    fn is_whole(&self, directory: &Path) -> io::Result<bool> {
        let path = directory.join(&self.file);
        // Neither the name nor a symlink leads out of the directory.
        let metadata = match fs::symlink_metadata(&path) {
            _ if !is_plain_name(&self.file) => return Ok(false),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            other => other?,
        };
        if !metadata.is_file() || metadata.len() != self.size_bytes {
            return Ok(false);
        }
        Ok(digest_reader(fs::File::open(&path)?)?.0 == self.sha256)
    }

    fn into_base_file(self, directory: &Path) -> BaseFile {
        BaseFile {
            path: directory.join(&self.file),
            sha256: self.sha256,
            size_bytes: self.size_bytes,
        }
    }
}

fn now_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    u64::try_from(now.unwrap_or_default().as_millis()).unwrap_or(u64::MAX)
}
