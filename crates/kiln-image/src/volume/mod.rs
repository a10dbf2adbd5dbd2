//! Volumes: persistent ext4 disks with names, kept as sparse files. Each operation happens whole or
//! not at all, whenever its process is killed. It does not know who uses a volume; callers say so
//! when they change one.
//!
//! ```text
//! volumes/<name>/               mode 0700
//! volumes/<name>/disk.ext4      the block device of guests, mode 0600; 0644 once it was only read
//! volumes/<name>/volume.json    what it is; names the size that an unfinished resize goes to
//! locks/<name>                  held by whoever changes the volume
//! tmp/<name>/                   a volume that is being made, under the same lock
//! ```

mod draft;
mod e2fs;
mod error;
mod name;
mod record;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

pub use e2fs::E2fsError;
pub(crate) use e2fs::make as make_filesystem;
pub use error::VolumeError;
pub use name::{VolumeName, VolumeNameError};

use crate::clone::clone_file;
use crate::failpoint;
use crate::partial;
use crate::publish::{make_readable, sync_directory};
use crate::rootfs::{Filesystem, identify};
use draft::{Draft, Lock};
use error::During;
use record::Record;

/// mke2fs gives smaller ones no journal.
const LEAST: u64 = 8 << 20;
/// Where ext4 with 4 KiB blocks ended for long.
const MOST: u64 = 16 << 40;
const DIRECTORIES: [&str; 3] = ["volumes", "locks", "tmp"];
const DISK: &str = "disk.ext4";

/// A persistent disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Volume {
    /// Its name.
    pub name: VolumeName,
    /// The block device's file: sparse, whole ext4, no partitions.
    pub path: PathBuf,
    /// Length of the file.
    pub size_bytes: u64,
    /// What it takes of the host's disk now.
    pub allocated_bytes: u64,
    /// When it was made, in whole seconds.
    pub created: SystemTime,
}

/// Says whether anyone has the volume attached, or is about to.
pub type InUse<'a> = &'a dyn Fn(&VolumeName) -> bool;

/// Volumes in a directory of their own. Its calls block.
#[derive(Clone, Debug)]
pub struct VolumeStore {
    root: PathBuf,
}

impl VolumeStore {
    /// Opens the store, makes it if it is not there, clears away what killed processes left and
    /// finishes the resizes that they began.
    ///
    /// # Errors
    /// [`VolumeError::Io`] when the directory cannot be used.
    pub fn open(root: impl Into<PathBuf>) -> Result<VolumeStore, VolumeError> {
        let store = VolumeStore { root: root.into() };
        for name in DIRECTORIES {
            let path = store.root.join(name);
            fs::create_dir_all(&path).during("create", &path)?;
        }
        draft::sweep(&store.root)?;
        store.finish_resizes()?;
        Ok(store)
    }

    /// Makes a blank volume. The size is rounded up to 1 MiB.
    ///
    /// # Errors
    /// [`VolumeError::Exists`], [`VolumeError::Size`], or what stood in the way.
    pub fn create(&self, name: &VolumeName, size_bytes: u64) -> Result<Volume, VolumeError> {
        let size = round_size(size_bytes)?;
        let draft = self.draft(name)?;
        let disk = draft.create_disk()?;
        disk.set_len(size).during("size", draft.path())?;
        e2fs::make(&draft.disk(), draft.path())?;
        self.publish(draft, &disk)
    }

    /// Lets anyone read a volume's disk who gets to it, and nobody write: a jailed VMM, which is
    /// another user, then gets the file itself by a link instead of a copy of it. Nobody else gets
    /// to it, since the volume's directory is private.
    ///
    /// # Errors
    /// [`VolumeError::NotFound`], [`VolumeError::Io`].
    pub fn open_to_readers(&self, name: &VolumeName) -> Result<Volume, VolumeError> {
        let _lock = self.lock(name)?;
        let volume = self
            .get(name)?
            .ok_or_else(|| VolumeError::NotFound(name.clone()))?;
        let disk = File::open(&volume.path).during("open", &volume.path)?;
        make_readable(&disk).during("open up", &volume.path)?;
        Ok(volume)
    }

    /// Makes a volume that holds what `from` holds now: sharing its blocks where the filesystem
    /// can, else by copying its data, never its holes.
    ///
    /// # Errors
    /// [`VolumeError::InUse`] when `from` is attached: a copy of a mounted filesystem is torn.
    pub fn clone_volume(
        &self,
        from: &VolumeName,
        to: &VolumeName,
        in_use: InUse<'_>,
    ) -> Result<Volume, VolumeError> {
        if from == to {
            return Err(VolumeError::Exists(to.clone()));
        }
        // In the order of names, so that no two clones wait for each other.
        let (source, draft) = if from < to {
            let lock = self.lock(from)?;
            (lock, self.draft(to)?)
        } else {
            let draft = self.draft(to)?;
            (self.lock(from)?, draft)
        };
        let original = self.unused(from, in_use)?;
        let disk = draft.create_disk()?;
        copy(&original.path, &disk, &draft.disk())?;
        drop(source);
        self.publish(draft, &disk)
    }

    /// Makes a volume of an ext4 image file, which is copied; grows it to `size_bytes` if given.
    ///
    /// # Errors
    /// [`VolumeError::NotExt4`] for any other file, also for one that was not unmounted cleanly.
    pub fn import(
        &self,
        name: &VolumeName,
        source: &Path,
        size_bytes: Option<u64>,
    ) -> Result<Volume, VolumeError> {
        let draft = self.draft(name)?;
        let disk = draft.create_disk()?;
        // The copy is looked at: nobody can change it any more.
        copy(source, &disk, &draft.disk())?;
        let not_ext4 = || VolumeError::NotExt4(source.into());
        match identify(&disk).during("read", source)? {
            Some(Ok(Filesystem::Ext4)) => {}
            Some(Err(fault)) => {
                return Err(VolumeError::Damaged {
                    path: source.into(),
                    fault,
                });
            }
            _ => return Err(not_ext4()),
        }
        let length = disk.metadata().during("examine", source)?.len();
        let size = round_size(size_bytes.unwrap_or(length))?;
        if size < length {
            return Err(VolumeError::Shrink {
                from: length,
                to: size,
            });
        }
        disk.set_len(size).during("size", draft.path())?;
        e2fs::check(&disk)?;
        e2fs::grow(&disk)?;
        self.publish(draft, &disk)
    }

    /// Copies the volume into the new file `to`, sparse as it is.
    ///
    /// # Errors
    /// [`VolumeError::InUse`], or what stood in the way; `to` does not exist then, or is what it
    /// was.
    pub fn export(
        &self,
        name: &VolumeName,
        to: &Path,
        in_use: InUse<'_>,
    ) -> Result<(), VolumeError> {
        let _lock = self.lock(name)?;
        let volume = self.unused(name, in_use)?;
        let directory = match to.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let new = partial::file_in(directory).during("create a file in", directory)?;
        copy(&volume.path, new.as_file(), to)?;
        new.as_file().sync_all().during("sync", to)?;
        new.persist_noclobber(to)
            .map_err(|error| error.error)
            .during("create", to)?;
        sync_directory(directory).during("sync", directory)
    }

    /// Grows a volume. It must not be attached: the filesystem is grown offline.
    ///
    /// # Errors
    /// [`VolumeError::InUse`]; [`VolumeError::Shrink`] for less than it has; [`VolumeError::E2fs`]
    /// when the filesystem is too damaged to grow.
    pub fn resize(
        &self,
        name: &VolumeName,
        size_bytes: u64,
        in_use: InUse<'_>,
    ) -> Result<Volume, VolumeError> {
        let size = round_size(size_bytes)?;
        let _lock = self.lock(name)?;
        let volume = self.unused(name, in_use)?;
        if size < volume.size_bytes {
            return Err(VolumeError::Shrink {
                from: volume.size_bytes,
                to: size,
            });
        }
        if size > volume.size_bytes {
            let directory = self.directory(name);
            let record = Record::load(&directory)?.ok_or(VolumeError::NotFound(name.clone()))?;
            self.grow(&directory, &record.growing_to(size))?;
        }
        self.get(name)?.ok_or(VolumeError::NotFound(name.clone()))
    }

    /// Removes a volume and all it holds.
    ///
    /// # Errors
    /// [`VolumeError::InUse`], [`VolumeError::NotFound`], or what stood in the way.
    pub fn remove(&self, name: &VolumeName, in_use: InUse<'_>) -> Result<(), VolumeError> {
        let lock = self.lock(name)?;
        self.unused(name, in_use)?;
        let draft = Draft::create(&self.root, name, lock)?;
        failpoint::reach("volume.condemned");
        let (from, to) = (self.directory(name), draft.path().join("removed"));
        fs::rename(&from, &to).during("rename", &from)?;
        failpoint::reach("volume.moved");
        self.sync()
    }

    /// The volume of this name.
    ///
    /// # Errors
    /// [`VolumeError::Io`] when it cannot be read.
    pub fn get(&self, name: &VolumeName) -> Result<Option<Volume>, VolumeError> {
        let directory = self.directory(name);
        let Some(record) = Record::load(&directory)? else {
            return Ok(None);
        };
        record.volume(name, directory.join(DISK)).map(Some)
    }

    /// All volumes, by name.
    ///
    /// # Errors
    /// [`VolumeError::Io`] when the store cannot be read.
    pub fn list(&self) -> Result<Vec<Volume>, VolumeError> {
        let mut volumes = Vec::new();
        for name in draft::names_in(&self.root.join("volumes"))? {
            // Removed meanwhile, perhaps.
            volumes.extend(self.get(&name)?);
        }
        Ok(volumes)
    }

    fn directory(&self, name: &VolumeName) -> PathBuf {
        self.root.join("volumes").join(name.as_str())
    }

    fn lock(&self, name: &VolumeName) -> Result<Lock, VolumeError> {
        Lock::take(&self.root, name)
    }

    /// Room for a new volume, whose name nobody else can take meanwhile.
    fn draft(&self, name: &VolumeName) -> Result<Draft, VolumeError> {
        let lock = self.lock(name)?;
        if self.directory(name).exists() {
            return Err(VolumeError::Exists(name.clone()));
        }
        Draft::create(&self.root, name, lock)
    }

    /// The volume, which its caller has locked, unless someone uses it.
    fn unused(&self, name: &VolumeName, in_use: InUse<'_>) -> Result<Volume, VolumeError> {
        let volume = self.get(name)?;
        let volume = volume.ok_or_else(|| VolumeError::NotFound(name.clone()))?;
        if in_use(name) {
            return Err(VolumeError::InUse(name.clone()));
        }
        Ok(volume)
    }

    fn publish(&self, draft: Draft, disk: &File) -> Result<Volume, VolumeError> {
        disk.sync_all().during("sync", &draft.disk())?;
        let size = disk.metadata().during("examine", &draft.disk())?.len();
        failpoint::reach("volume.made");
        Record::new(size).save(draft.path())?;
        failpoint::reach("volume.recorded");
        let name = draft.name().clone();
        let directory = self.directory(&name);
        draft.publish(&directory)?;
        failpoint::reach("volume.published");
        self.sync()?;
        self.get(&name)?.ok_or(VolumeError::NotFound(name))
    }

    fn sync(&self) -> Result<(), VolumeError> {
        let volumes = self.root.join("volumes");
        sync_directory(&volumes).during("sync", &volumes)
    }

    /// Carries out the growth that the record names. Whatever instant it is cut off at, doing it
    /// again comes to the same end: the file only gets longer, and e2fsck mends what was half done.
    fn grow(&self, directory: &Path, record: &Record) -> Result<(), VolumeError> {
        let Some(size) = record.resizing_to else {
            return Ok(());
        };
        record.save(directory)?;
        let path = directory.join(DISK);
        let disk = open(&path)?;
        e2fs::wait_for_orphans(&disk).during("lock", &path)?;
        disk.set_len(size).during("size", &path)?;
        e2fs::check(&disk)?;
        e2fs::grow(&disk)?;
        disk.sync_all().during("sync", &path)?;
        record.grown(size).save(directory)
    }

    fn finish_resizes(&self) -> Result<(), VolumeError> {
        for name in draft::names_in(&self.root.join("volumes"))? {
            let directory = self.directory(&name);
            let pending = |record: &Record| record.resizing_to.is_some();
            if !Record::load(&directory)?.as_ref().is_some_and(pending) {
                continue;
            }
            // Whoever is at it may be the orphan of a killed process, and will be done soon.
            let _lock = self.lock(&name)?;
            let finished = Record::load(&directory)
                .and_then(|record| record.map_or(Ok(()), |record| self.grow(&directory, &record)));
            // One damaged volume does not keep the others away.
            if let Err(error) = finished {
                tracing::warn!(volume = %name, %error, "its resize is not finished");
            }
        }
        Ok(())
    }
}

fn round_size(size_bytes: u64) -> Result<u64, VolumeError> {
    size_bytes
        .checked_next_multiple_of(1 << 20)
        .filter(|size| (LEAST..=MOST).contains(size))
        .ok_or(VolumeError::Size { size_bytes })
}

fn open(path: &Path) -> Result<File, VolumeError> {
    let mut options = File::options();
    options.read(true).write(true);
    options.open(path).during("open", path)
}

fn copy(from: &Path, to: &File, to_path: &Path) -> Result<(), VolumeError> {
    let from = File::open(from).during("open", from)?;
    clone_file(&from, to).during("write", to_path)?;
    Ok(())
}
