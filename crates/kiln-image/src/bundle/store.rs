//! The store of bundles: verified before each use, the least recently used evicted.

use std::fs::{self, File};
use std::io;
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;

use super::record::{BaseImage, FileRecord, Record};
use super::resolve::{From, Plan, Wanted, resolve};
use super::{BundleError, BundleSource, Origins, Preset, is_plain_name};
use crate::clone::clone_file;
use crate::download::{Download, fetch_blocking};
use crate::kernel::Architecture;
use crate::progress::{Progress, ProgressEvent, Silent};
use crate::publish::{digest_reader, sync_directory};

const PARTIAL: &str = ".partial-";
/// Where a file's size is not known in advance.
const MAX_FILE: u64 = 8 << 30;

/// Base images, kept and verified. Its calls block.
#[derive(Clone, Debug)]
pub struct BundleStore {
    root: PathBuf,
    max_stored: NonZeroUsize,
    origins: Origins,
}

/// A base image, and what had to go for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ensured {
    /// The image that was asked for.
    pub image: BaseImage,
    /// Whether it was here already.
    pub was_cached: bool,
    /// Ids of the bundles that were evicted.
    pub evicted: Vec<String>,
}

impl BundleStore {
    /// Opens or creates the store; it keeps at most `max_stored` bundles (the setting
    /// `max_stored_base_images`, 2 unless set).
    ///
    /// # Errors
    /// [`BundleError::InvalidCacheLimit`] for zero, [`BundleError::Io`] when the directory cannot
    /// be used.
    pub fn open(root: &Path, max_stored: usize) -> Result<BundleStore, BundleError> {
        let max_stored = NonZeroUsize::new(max_stored).ok_or(BundleError::InvalidCacheLimit)?;
        let root = std::path::absolute(root).map_err(io_error("resolve", root))?;
        let bundles = root.join("bundles");
        fs::create_dir_all(&bundles).map_err(io_error("create", &bundles))?;
        Ok(BundleStore {
            root,
            max_stored,
            origins: Origins::default(),
        })
    }

    /// Asks these servers instead.
    #[must_use]
    pub fn with_origins(mut self, origins: Origins) -> BundleStore {
        self.origins = origins;
        self
    }

    /// The base image of a source: the one that is here, verified, or a newly fetched one.
    /// `force_download` fetches it in any case. Evicts what is too much, with a note that says so.
    ///
    /// Where the servers behind a preset cannot be reached, the newest bundle of that preset that
    /// is here serves, with a note.
    ///
    /// # Errors
    /// [`BundleError`]; nothing is left behind, and what was stored stays.
    pub fn ensure(
        &self,
        source: &BundleSource,
        force_download: bool,
        progress: &dyn Progress,
    ) -> Result<Ensured, BundleError> {
        let _lock = self.lock(progress)?;
        self.sweep()?;
        let partial = self.partial()?;
        let plan = match resolve(source, &self.origins, partial.path()) {
            Ok(plan) => plan,
            Err(error) if error.is_unreachable() && !force_download => {
                return self.newest(source.preset(), progress)?.ok_or(error);
            }
            Err(error) => return Err(error),
        };
        if !force_download && let Some(image) = self.cached(&plan, progress)? {
            return Ok(self.found(image));
        }
        let image = self.fetch(&plan, partial, progress)?;
        let evicted = self.evict(&plan.id, progress)?;
        Ok(Ensured {
            image,
            was_cached: false,
            evicted,
        })
    }

    /// All bundles, the most recently used first. They are not verified.
    ///
    /// # Errors
    /// [`BundleError::Io`] when the store cannot be read.
    pub fn list(&self) -> Result<Vec<BaseImage>, BundleError> {
        let bundles = self.root.join("bundles");
        let mut images = Vec::new();
        for entry in fs::read_dir(&bundles).map_err(io_error("read", &bundles))? {
            let name = entry.map_err(io_error("read", &bundles))?.file_name();
            if let Some(id) = name.to_str()
                && let Some(record) = self.load(id)?
            {
                images.push(record.into_base_image(id, &self.directory(id)));
            }
        }
        images.sort_by(|a, b| {
            let by_use = b.last_accessed.cmp(&a.last_accessed);
            by_use.then_with(|| a.id.cmp(&b.id))
        });
        Ok(images)
    }

    /// A bundle that is here and whole, by its id; it counts as used now.
    ///
    /// # Errors
    /// [`BundleError::Io`] when the store cannot be read.
    pub fn stored(&self, id: &str) -> Result<Option<BaseImage>, BundleError> {
        if !is_plain_name(id) {
            return Ok(None);
        }
        let _lock = self.lock(&Silent)?;
        match self.load(id)? {
            Some(record) => self.verified(id, record, &Silent),
            None => Ok(None),
        }
    }

    fn directory(&self, id: &str) -> PathBuf {
        self.root.join("bundles").join(id)
    }

    fn load(&self, id: &str) -> Result<Option<Record>, BundleError> {
        let directory = self.directory(id);
        Record::load(&directory).map_err(io_error("read", &directory))
    }

    fn found(&self, image: BaseImage) -> Ensured {
        Ensured {
            image,
            was_cached: true,
            evicted: Vec::new(),
        }
    }

    /// The bundle of the plan, if it is here, whole, and what the plan means now.
    fn cached(
        &self,
        plan: &Plan,
        progress: &dyn Progress,
    ) -> Result<Option<BaseImage>, BundleError> {
        let Some(record) = self.load(&plan.id)? else {
            return Ok(None);
        };
        if !plan.describes(&record) {
            return Ok(None);
        }
        self.verified(&plan.id, record, progress)
    }

    fn verified(
        &self,
        id: &str,
        record: Record,
        progress: &dyn Progress,
    ) -> Result<Option<BaseImage>, BundleError> {
        let directory = self.directory(id);
        let whole = record.is_whole(&directory);
        if !whole.map_err(io_error("read", &directory))? {
            let note = format!("The stored base image {id} is damaged and is fetched again");
            progress.report(ProgressEvent::Note(note));
            return Ok(None);
        }
        let record = record.touched();
        record
            .save(&directory)
            .map_err(io_error("write", &directory))?;
        Ok(Some(record.into_base_image(id, &directory)))
    }

    /// The last used whole bundle of a preset.
    fn newest(
        &self,
        preset: Preset,
        progress: &dyn Progress,
    ) -> Result<Option<Ensured>, BundleError> {
        for image in self.list()? {
            if image.preset != preset {
                continue;
            }
            let Some(record) = self.load(&image.id)? else {
                continue;
            };
            if let Some(image) = self.verified(&image.id, record, progress)? {
                let note = format!(
                    "The servers of the preset {} cannot be reached: using {}, which is here",
                    preset.name(),
                    image.id
                );
                progress.report(ProgressEvent::Note(note));
                return Ok(Some(self.found(image)));
            }
        }
        Ok(None)
    }

    /// Fetches both files beside their place, and moves them there when they are proven right.
    fn fetch(
        &self,
        plan: &Plan,
        partial: tempfile::TempDir,
        progress: &dyn Progress,
    ) -> Result<BaseImage, BundleError> {
        let new = partial.path().join("bundle");
        fs::create_dir(&new).map_err(io_error("create", &new))?;
        let kernel = plan.kernel.fetch(&plan.id, &new, progress)?;
        let rootfs = plan.rootfs.fetch(&plan.id, &new, progress)?;
        let record = plan.record(kernel, rootfs).stamped();
        record.save(&new).map_err(io_error("write", &new))?;
        let directory = self.directory(&plan.id);
        match fs::rename(&directory, partial.path().join("old")) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(io_error("move", &directory)(error));
            }
            _ => {}
        }
        fs::rename(&new, &directory).map_err(io_error("create", &directory))?;
        let bundles = self.root.join("bundles");
        sync_directory(&bundles).map_err(io_error("write", &bundles))?;
        Ok(record.into_base_image(&plan.id, &directory))
    }

    /// Removes the least recently used bundles beyond the limit, never `keep`.
    fn evict(&self, keep: &str, progress: &dyn Progress) -> Result<Vec<String>, BundleError> {
        let others = self.list()?.into_iter().filter(|image| image.id != keep);
        let mut evicted = Vec::new();
        for image in others.skip(self.max_stored.get() - 1) {
            let partial = self.partial()?;
            let from = &image.directory;
            fs::rename(from, partial.path().join("old")).map_err(io_error("move", from))?;
            evicted.push(image.id);
        }
        if !evicted.is_empty() {
            progress.report(ProgressEvent::Note(format!(
                "Evicted base images {}: max_stored_base_images is {}; raise it to keep more",
                evicted.join(", "),
                self.max_stored
            )));
        }
        Ok(evicted)
    }

    fn lock(&self, progress: &dyn Progress) -> Result<File, BundleError> {
        let path = self.root.join("lock");
        let file = File::create(&path).map_err(io_error("open", &path))?;
        let lock = |operation| rustix::fs::flock(&file, operation).map_err(io::Error::from);
        if lock(FlockOperation::NonBlockingLockExclusive).is_err() {
            let step = "Waiting for another process that fetches a base image".to_owned();
            progress.report(ProgressEvent::Step(step));
            lock(FlockOperation::LockExclusive).map_err(io_error("lock", &path))?;
        }
        Ok(file)
    }

    fn partial(&self) -> Result<tempfile::TempDir, BundleError> {
        let builder = tempfile::Builder::new()
            .prefix(PARTIAL)
            .tempdir_in(&self.root);
        builder.map_err(io_error("create a directory in", &self.root))
    }

    /// Removes what a killed fetcher left. Only the holder of the lock may.
    fn sweep(&self) -> Result<(), BundleError> {
        for entry in fs::read_dir(&self.root).map_err(io_error("read", &self.root))? {
            let entry = entry.map_err(io_error("read", &self.root))?;
            if entry.file_name().to_string_lossy().starts_with(PARTIAL) {
                let path = entry.path();
                fs::remove_dir_all(&path).map_err(io_error("remove", &path))?;
            }
        }
        Ok(())
    }
}

impl Plan {
    /// Whether a stored bundle is what this plan would fetch, as far as the plan knows.
    fn describes(&self, record: &Record) -> bool {
        let file = |wanted: &Wanted, stored: &FileRecord| {
            wanted.file_name == stored.file
                && wanted
                    .size_bytes
                    .is_none_or(|size| size == stored.size_bytes)
                && wanted
                    .sha256
                    .as_ref()
                    .is_none_or(|digest| *digest == stored.sha256)
        };
        record.preset == self.preset
            && record.architecture == Architecture::host().name()
            && record.firecracker_version == self.firecracker_version.to_string()
            && record.rootfs_type == self.rootfs_type
            && record.rootfs_is_read_only == self.rootfs_is_read_only
            && record.boot_args == self.boot_args
            && record.source == self.source
            && file(&self.kernel, &record.kernel)
            && file(&self.rootfs, &record.rootfs)
    }

    fn record(&self, kernel: FileRecord, rootfs: FileRecord) -> Record {
        Record {
            schema: Record::SCHEMA,
            preset: self.preset,
            architecture: Architecture::host().name().to_owned(),
            train: self.firecracker_version.train(),
            firecracker_version: self.firecracker_version.to_string(),
            kernel,
            rootfs,
            rootfs_type: self.rootfs_type,
            rootfs_is_read_only: self.rootfs_is_read_only,
            boot_args: self.boot_args.clone(),
            source: self.source.clone(),
            kernel_bundle: self.kernel_bundle.clone(),
            created_unix_ms: 0,
            last_accessed_unix_ms: 0,
        }
    }
}

impl Wanted {
    /// Brings the file into `directory`; it is there only if it is right.
    fn fetch(
        &self,
        id: &str,
        directory: &Path,
        progress: &dyn Progress,
    ) -> Result<FileRecord, BundleError> {
        let target = directory.join(&self.file_name);
        let (sha256, size_bytes) = match &self.from {
            From::Url(url) => {
                let download = Download {
                    sha256: self.sha256.as_deref(),
                    size: self.size_bytes,
                    max_size: MAX_FILE,
                    ..Download::unpinned(url)
                };
                let fetched = fetch_blocking(&download, &target, progress);
                let fetched = fetched.map_err(|source| BundleError::Download {
                    id: id.to_owned(),
                    file: self.file_name.clone(),
                    source: Box::new(source),
                })?;
                (fetched.sha256, fetched.size)
            }
            From::File(path) => self.copy(path, &target)?,
        };
        Ok(FileRecord {
            file: self.file_name.clone(),
            sha256,
            size_bytes,
        })
    }

    /// Copies a local file and looks at the copy, which nobody else changes.
    fn copy(&self, path: &Path, target: &Path) -> Result<(String, u64), BundleError> {
        let source = File::open(path).map_err(io_error("open", path))?;
        let mut options = File::options();
        options.read(true).write(true).create_new(true);
        let copy = options.open(target).map_err(io_error("create", target))?;
        clone_file(&source, &copy).map_err(io_error("write", target))?;
        copy.sync_all().map_err(io_error("sync", target))?;
        let (sha256, size) = digest_reader(&copy).map_err(io_error("read", target))?;
        let mismatch = |what| BundleError::Mismatch {
            path: path.into(),
            what,
        };
        if self.size_bytes.is_some_and(|wanted| wanted != size) {
            return Err(mismatch("its size"));
        }
        if self.sha256.as_ref().is_some_and(|wanted| *wanted != sha256) {
            return Err(mismatch("its SHA-256"));
        }
        Ok((sha256, size))
    }
}

fn io_error<'a>(
    action: &'static str,
    path: &'a Path,
) -> impl FnOnce(io::Error) -> BundleError + 'a {
    move |source| BundleError::Io {
        action,
        path: path.to_owned(),
        source,
    }
}
