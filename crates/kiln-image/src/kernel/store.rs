//! The directory of kernel bundles.
//!
//! ```text
//! <root>/bundles/<id>/{bundle.json, vmlinux, config, modules/*.ko}   immutable, by content
//! <root>/sources/<key>.json                                          which bundle a source gave
//! <root>/apt/                                                        apt's state and packages
//! <root>/lock                                                        held while one is built
//! ```

use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};

use super::bundle::{self, FileRecord, KernelBundle, Record};
use super::{
    Architecture, KernelError, KernelSource, Material, PinnedKernel, firecracker_ci, from_debian,
    from_local, io_error,
};
use crate::progress::{Progress, ProgressEvent, Silent};
use crate::publish::{FileStamp, digest, sync_directory, write_atomically};

const PARTIAL: &str = ".partial-";

/// Kernel bundles, kept and verified. Its calls block: use them from a blocking thread.
#[derive(Debug)]
pub struct KernelStore {
    root: PathBuf,
    pins: Vec<PinnedKernel>,
    /// Files that this process has hashed, as they were then. Hashing a kernel takes 50 ms, a
    /// `stat` none, and a start must not wait for it each time.
    verified: Mutex<HashMap<PathBuf, FileStamp>>,
}

/// A file that a bundle was made from, as it was then.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Input {
    path: PathBuf,
    stamp: FileStamp,
}

impl Input {
    pub(super) fn of(path: &Path) -> io::Result<Self> {
        Ok(Self {
            path: path.to_owned(),
            stamp: FileStamp::of(path)?,
        })
    }

    fn is_unchanged(&self) -> bool {
        FileStamp::of(&self.path).is_ok_and(|stamp| stamp == self.stamp)
    }
}

/// `sources/<key>.json`.
#[derive(Serialize, Deserialize)]
struct Pointer {
    bundle: String,
    inputs: Vec<Input>,
}

impl KernelStore {
    /// Opens or creates the store in `root`.
    ///
    /// # Errors
    /// The directories cannot be created.
    pub fn open(root: &Path) -> Result<Self, KernelError> {
        let root = std::path::absolute(root).map_err(io_error("resolve", root))?;
        for directory in ["bundles", "sources", "apt"] {
            let path = root.join(directory);
            fs::create_dir_all(&path).map_err(io_error("create", &path))?;
        }
        Ok(Self {
            root,
            pins: Vec::new(),
            verified: Mutex::default(),
        })
    }

    /// Adds pinned Firecracker CI kernels, which win over the built-in table.
    #[must_use]
    pub fn with_pins(mut self, pins: Vec<PinnedKernel>) -> Self {
        self.pins = pins;
        self
    }

    /// The bundle of a source: the one that is here, verified, or a new one. One process builds at
    /// a time; the others wait and use its result.
    ///
    /// A package source keeps the version it once gave; [`KernelStore::refresh`] asks for a newer.
    ///
    /// # Errors
    /// See [`KernelError`].
    pub fn ensure(
        &self,
        source: &KernelSource,
        progress: &dyn Progress,
    ) -> Result<KernelBundle, KernelError> {
        let source = &absolute(source)?;
        let key = self.key(source)?;
        if let Some(bundle) = self.current(&key, &Silent) {
            return Ok(bundle);
        }
        let _flight = self.flight(progress)?;
        if let Some(bundle) = self.current(&key, progress) {
            return Ok(bundle);
        }
        self.build(source, &key, progress)
    }

    /// Builds the bundle of a source anew, from its newest version.
    ///
    /// # Errors
    /// See [`KernelError`].
    pub fn refresh(
        &self,
        source: &KernelSource,
        progress: &dyn Progress,
    ) -> Result<KernelBundle, KernelError> {
        let source = &absolute(source)?;
        let key = self.key(source)?;
        let _flight = self.flight(progress)?;
        self.build(source, &key, progress)
    }

    /// Every bundle that is here and whole, by release.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn list(&self) -> Result<Vec<KernelBundle>, KernelError> {
        let bundles = self.root.join("bundles");
        let entries = fs::read_dir(&bundles).map_err(io_error("read", &bundles))?;
        let mut all: Vec<_> = entries
            .flatten()
            .filter_map(|entry| self.get(entry.file_name().to_str()?))
            .collect();
        all.sort_by(|a, b| (&a.release, &a.id).cmp(&(&b.release, &b.id)));
        Ok(all)
    }

    /// The bundle with this id, verified; `None` where it is not here or damaged.
    #[must_use]
    pub fn get(&self, id: &str) -> Option<KernelBundle> {
        let is_id = id.len() == 64 && id.bytes().all(|byte| byte.is_ascii_hexdigit());
        if !is_id {
            return None;
        }
        let directory = self.bundle_directory(id);
        bundle::open(&directory, id, |path, wanted| self.verify(path, wanted))
            .ok()
            .flatten()
    }

    fn key(&self, source: &KernelSource) -> Result<String, KernelError> {
        let architecture = Architecture::host().name();
        Ok(match source {
            KernelSource::Debian => format!("debian-{architecture}"),
            KernelSource::Local { kernel, modules } => {
                let mut name = kernel.as_os_str().as_encoded_bytes().to_vec();
                name.push(0);
                name.extend(
                    modules
                        .iter()
                        .flat_map(|path| path.as_os_str().as_encoded_bytes()),
                );
                format!("local-{}", digest(&name))
            }
            KernelSource::FirecrackerCi { version } => {
                let pin = firecracker_ci::find(version, &self.pins)?;
                format!("firecracker-ci-{}", digest(pin.sha256.as_bytes()))
            }
        })
    }

    fn current(&self, key: &str, progress: &dyn Progress) -> Option<KernelBundle> {
        let pointer = fs::read(self.pointer(key)).ok()?;
        let pointer: Pointer = serde_json::from_slice(&pointer).ok()?;
        if !pointer.inputs.iter().all(Input::is_unchanged) {
            return None;
        }
        let bundle = self.get(&pointer.bundle);
        if bundle.is_none() {
            let note = "The stored kernel is damaged and is being built again".to_owned();
            progress.report(ProgressEvent::Note(note));
        }
        bundle
    }

    fn build(
        &self,
        source: &KernelSource,
        key: &str,
        progress: &dyn Progress,
    ) -> Result<KernelBundle, KernelError> {
        self.sweep()?;
        let material = self.gather(source, progress)?;
        let bundle = self.publish(&material)?;
        self.point(key, &bundle, material.inputs)?;
        Ok(bundle)
    }

    fn gather(
        &self,
        source: &KernelSource,
        progress: &dyn Progress,
    ) -> Result<Material, KernelError> {
        match source {
            KernelSource::Debian => from_debian::gather(&self.root.join("apt"), progress),
            KernelSource::Local { kernel, modules } => {
                from_local::gather(kernel, modules.as_deref())
            }
            KernelSource::FirecrackerCi { version } => {
                let pin = firecracker_ci::find(version, &self.pins)?;
                firecracker_ci::gather(&pin, &self.root, progress)
            }
        }
    }

    /// Writes the bundle beside its place, moves it there, and reads it back.
    fn publish(&self, material: &Material) -> Result<KernelBundle, KernelError> {
        let bundles = self.root.join("bundles");
        let record = Record::of(material);
        let id = digest(&record.to_bytes().map_err(io_error("write", &bundles))?);
        if let Some(bundle) = self.get(&id) {
            return Ok(bundle);
        }
        let target = self.bundle_directory(&id);
        let partial = self.partial()?;
        bundle::write(partial.path(), material, &record)
            .map_err(io_error("write", partial.path()))?;
        self.move_away(&target)?;
        let written = partial.keep();
        fs::rename(&written, &target).map_err(io_error("create", &target))?;
        sync_directory(&bundles).map_err(io_error("write", &bundles))?;
        self.get(&id).ok_or(KernelError::Unstable { path: target })
    }

    /// Takes a damaged bundle out of the way.
    fn move_away(&self, target: &Path) -> Result<(), KernelError> {
        if !target.exists() {
            return Ok(());
        }
        let aside = self.partial()?;
        fs::rename(target, aside.path().join("damaged")).map_err(io_error("move", target))
    }

    fn partial(&self) -> Result<tempfile::TempDir, KernelError> {
        let bundles = self.root.join("bundles");
        let builder = tempfile::Builder::new()
            .prefix(PARTIAL)
            .tempdir_in(&bundles);
        builder.map_err(io_error("create a directory in", &bundles))
    }

    fn point(
        &self,
        key: &str,
        bundle: &KernelBundle,
        inputs: Vec<Input>,
    ) -> Result<(), KernelError> {
        let path = self.pointer(key);
        let pointer = Pointer {
            bundle: bundle.id.clone(),
            inputs,
        };
        let bytes = serde_json::to_vec(&pointer).map_err(io::Error::other);
        bytes
            .and_then(|bytes| write_atomically(&path, &bytes))
            .map_err(io_error("write", &path))
    }

    /// Removes what a killed builder left. Only the holder of the lock may.
    fn sweep(&self) -> Result<(), KernelError> {
        let bundles = self.root.join("bundles");
        for entry in fs::read_dir(&bundles).map_err(io_error("read", &bundles))? {
            let path = entry.map_err(io_error("read", &bundles))?.path();
            let name = path
                .file_name()
                .and_then(|name| name.to_str())
                .unwrap_or_default();
            if name.starts_with(PARTIAL) {
                fs::remove_dir_all(&path).map_err(io_error("remove", &path))?;
            }
        }
        Ok(())
    }

    fn flight(&self, progress: &dyn Progress) -> Result<File, KernelError> {
        let path = self.root.join("lock");
        let file = File::create(&path).map_err(io_error("open", &path))?;
        let lock = |operation| rustix::fs::flock(&file, operation).map_err(io::Error::from);
        if lock(FlockOperation::NonBlockingLockExclusive).is_err() {
            let step = "Waiting for another process that prepares the kernel".to_owned();
            progress.report(ProgressEvent::Step(step));
            lock(FlockOperation::LockExclusive).map_err(io_error("lock", &path))?;
        }
        Ok(file)
    }

    fn verify(&self, path: &Path, wanted: &FileRecord) -> io::Result<bool> {
        // Taken before the content is read: a write in between changes the stamp.
        let stamp = FileStamp::of_published(path)?;
        if self.verified().get(path) == Some(&stamp) {
            return Ok(true);
        }
        let is_good = bundle::matches(path, wanted)?;
        if is_good {
            self.verified().insert(path.to_owned(), stamp);
        }
        Ok(is_good)
    }

    fn verified(&self) -> MutexGuard<'_, HashMap<PathBuf, FileStamp>> {
        self.verified.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn bundle_directory(&self, id: &str) -> PathBuf {
        self.root.join("bundles").join(id)
    }

    fn pointer(&self, key: &str) -> PathBuf {
        self.root.join("sources").join(format!("{key}.json"))
    }
}

fn absolute(source: &KernelSource) -> Result<KernelSource, KernelError> {
    let resolve = |path: &PathBuf| std::path::absolute(path).map_err(io_error("resolve", path));
    Ok(match source {
        KernelSource::Local { kernel, modules } => KernelSource::Local {
            kernel: resolve(kernel)?,
            modules: modules.as_ref().map(resolve).transpose()?,
        },
        other => other.clone(),
    })
}

#[cfg(test)]
#[path = "store_tests.rs"]
mod tests;
