//! The store of block images: content-addressed, published whole or not at all, shared read-only.
//! Any number of processes may use one store. It does not know who uses an image; callers say so
//! when they remove.
//!
//! ```text
//! images/<id>/rootfs.<filesystem>   0444, never written again
//! images/<id>/image.json
//! memo/<fingerprint>                id of the image that a source gave
//! templates/                        of scratch disks
//! locks/                            images, sources (by their first two digits), tmp/
//! tmp/<random>/                     work of a process, locked while it lives
//! ```

mod image;
mod workspace;

use std::path::{Path, PathBuf};

pub use image::{Image, ImageId};

use crate::failpoint;
use crate::limits::{Budget, Limits};
use crate::progress::{Progress, ProgressEvent};
use crate::publish::{LockFile, lock_file, make_read_only, sync_directory, write_atomically_via};
use crate::rootfs::{self, Action, Built, ImageError, ImageSource};
pub(crate) use workspace::Workspace;

const DIRECTORIES: [&str; 5] = ["images", "memo", "templates", "locks", "tmp"];

/// A store in a directory of its own.
#[derive(Clone, Debug)]
pub struct ImageStore {
    root: PathBuf,
}

impl ImageStore {
    /// Opens the store, makes it if it is not there, and clears away what killed processes left.
    ///
    /// # Errors
    /// [`ImageError::Store`] when the directory cannot be used.
    pub fn open(root: impl Into<PathBuf>) -> Result<ImageStore, ImageError> {
        let store = ImageStore { root: root.into() };
        for name in DIRECTORIES {
            let path = store.root.join(name);
            std::fs::create_dir_all(&path).during("create", &path)?;
        }
        store.sweep()?;
        Ok(store)
    }

    /// The image that `source` gives, made now unless it exists.
    ///
    /// Blocks for as long as reading and writing take: run it where blocking is allowed. Two calls
    /// for the same content, in whatever processes, give one image.
    ///
    /// # Errors
    /// [`ImageError`]; nothing is published then, and nothing left behind.
    pub fn import(
        &self,
        source: ImageSource,
        limits: &Limits,
        progress: &dyn Progress,
    ) -> Result<Image, ImageError> {
        let fingerprint = source.fingerprint();
        let known = || fingerprint.as_deref().and_then(|name| self.recall(name));
        if let Some(image) = known() {
            return Ok(image);
        }
        // Whoever else imports the same source waits, and finds what this call made.
        let _flight = fingerprint
            .as_deref()
            .map(|name| self.lock_source(name))
            .transpose()?;
        if let Some(image) = known() {
            return Ok(image);
        }
        let image = self.make(source, None, limits, progress)?;
        if let Some(fingerprint) = fingerprint {
            self.remember(&fingerprint, &image.id)?;
        }
        Ok(image)
    }

    /// The image that `source` gives, if it is the one that was promised.
    pub(crate) fn import_exactly(
        &self,
        source: ImageSource,
        promised: &ImageId,
        limits: &Limits,
        progress: &dyn Progress,
    ) -> Result<Image, ImageError> {
        self.make(source, Some(promised), limits, progress)
    }

    fn make(
        &self,
        source: ImageSource,
        promised: Option<&ImageId>,
        limits: &Limits,
        progress: &dyn Progress,
    ) -> Result<Image, ImageError> {
        let budget = Budget::new(limits);
        let workspace = Workspace::create(&self.root)?;
        let material = rootfs::prepare(source, workspace.path(), &budget, progress)?;
        let kept = |key| {
            let id = ImageId::from(key);
            match promised {
                Some(promised) if *promised != id => Err(ImageError::OtherLayers),
                _ => Ok(id),
            }
        };
        if let Some(key) = material.key {
            let id = kept(key)?;
            // Others wait for the image instead of building it too.
            let _lock = self.lock(&id)?;
            if let Some(image) = self.get(&id)? {
                return Ok(image);
            }
            let built = material.build(workspace.path(), "rootfs", &budget, progress)?;
            failpoint::reach("image.built");
            return self.publish(&id, &built, workspace, progress);
        }
        let built = material.build(workspace.path(), "rootfs", &budget, progress)?;
        let id = kept(built.key)?;
        let _lock = self.lock(&id)?;
        match self.get(&id)? {
            Some(image) => Ok(image),
            None => self.publish(&id, &built, workspace, progress),
        }
    }

    /// The image that this source gave before, if the source is still the same; never builds one.
    #[must_use]
    pub fn lookup(&self, source: &ImageSource) -> Option<Image> {
        source.fingerprint().and_then(|name| self.recall(&name))
    }

    fn publish(
        &self,
        id: &ImageId,
        built: &Built,
        mut workspace: Workspace,
        progress: &dyn Progress,
    ) -> Result<Image, ImageError> {
        let (file, filesystem) = (&built.file, built.filesystem);
        progress.report(ProgressEvent::Step("Publishing the image".into()));
        let image = Image::describe(&self.root, id, filesystem, file)?;
        let name = Image::file_name(filesystem);
        let path = workspace.path().join(&name);
        std::fs::rename(workspace.path().join("rootfs"), &path).during("rename", &path)?;
        make_read_only(file).during("protect", &path)?;
        file.sync_all().during("sync", &path)?;
        image.save(workspace.path())?;
        sync_directory(workspace.path()).during("sync", workspace.path())?;
        failpoint::reach("image.described");
        workspace.publish(&self.image_directory(id))?;
        failpoint::reach("image.published");
        self.sync_images()?;
        Ok(image)
    }

    fn image_directory(&self, id: &ImageId) -> PathBuf {
        self.root.join("images").join(id.to_string())
    }

    /// Excludes other makers and removers of the image until dropped.
    fn lock(&self, id: &ImageId) -> Result<LockFile, ImageError> {
        let path = self.root.join("locks").join(&id.to_string()[..2]);
        lock_file(&path).during("lock", &path)
    }

    /// Excludes other importers of the source until dropped. Always taken before [`Self::lock`], and
    /// at another place, so that nobody waits in a circle.
    fn lock_source(&self, fingerprint: &str) -> Result<LockFile, ImageError> {
        let name = format!("source-{}", &fingerprint[..2]);
        let path = self.root.join("locks").join(name);
        lock_file(&path).during("lock", &path)
    }

    /// The image with this id.
    ///
    /// # Errors
    /// [`ImageError::Store`] when its description cannot be read.
    pub fn get(&self, id: &ImageId) -> Result<Option<Image>, ImageError> {
        Image::load(&self.root, id)
    }

    /// All images, in the order of their ids.
    ///
    /// # Errors
    /// [`ImageError::Store`] when the store cannot be read.
    pub fn list(&self) -> Result<Vec<Image>, ImageError> {
        let directory = self.root.join("images");
        let mut images = Vec::new();
        for entry in std::fs::read_dir(&directory).during("read", &directory)? {
            let entry = entry.during("read", &directory)?;
            let id = entry
                .file_name()
                .to_str()
                .and_then(|name| name.parse::<ImageId>().ok());
            // Removed meanwhile, perhaps.
            if let Some(id) = id
                && let Some(image) = self.get(&id)?
            {
                images.push(image);
            }
        }
        images.sort_by_key(|image| image.id);
        Ok(images)
    }

    /// Removes an image, unless `in_use` says that someone needs it or its file has further names
    /// (hard links in jails).
    ///
    /// `in_use` is asked while no one can publish or remove the image.
    ///
    /// # Errors
    /// [`ImageError::InUse`], [`ImageError::NotFound`], or [`ImageError::Store`].
    pub fn remove(
        &self,
        id: &ImageId,
        in_use: &dyn Fn(&ImageId) -> bool,
    ) -> Result<(), ImageError> {
        let _lock = self.lock(id)?;
        let image = self
            .get(id)?
            .ok_or_else(|| ImageError::NotFound(id.to_string()))?;
        if in_use(id) || image.has_other_names()? {
            return Err(ImageError::InUse(id.to_string()));
        }
        let workspace = Workspace::create(&self.root)?;
        let (from, to) = (self.image_directory(id), workspace.path().join("removed"));
        std::fs::rename(&from, &to).during("rename", &from)?;
        self.sync_images()
    }

    fn sync_images(&self) -> Result<(), ImageError> {
        let directory = self.root.join("images");
        sync_directory(&directory).during("sync", &directory)
    }

    /// Notes that the source named `name` (any text that names exactly one content) gave this
    /// image.
    ///
    /// # Errors
    /// [`ImageError::Store`] when the note cannot be written.
    pub fn remember(&self, name: &str, id: &ImageId) -> Result<(), ImageError> {
        let path = self.memo(name);
        let workspace = Workspace::create(&self.root)?;
        write_atomically_via(&path, workspace.path(), id.to_string().as_bytes())
            .during("write", &path)
    }

    /// The image that [`ImageStore::remember`] noted, if it still exists.
    #[must_use]
    pub fn recall(&self, name: &str) -> Option<Image> {
        let id = std::fs::read_to_string(self.memo(name)).ok()?;
        self.get(&id.trim().parse().ok()?).ok().flatten()
    }

    fn memo(&self, name: &str) -> PathBuf {
        use sha2::{Digest, Sha256};
        self.root
            .join("memo")
            .join(hex::encode(Sha256::digest(name.as_bytes())))
    }

    /// Removes the work of processes that live no more.
    ///
    /// # Errors
    /// [`ImageError::Store`] when the store cannot be read.
    pub fn sweep(&self) -> Result<(), ImageError> {
        workspace::sweep(&self.root)?;
        self.forget_removed_images()
    }

    fn forget_removed_images(&self) -> Result<(), ImageError> {
        let directory = self.root.join("memo");
        for entry in std::fs::read_dir(&directory).during("read", &directory)? {
            let path = entry.during("read", &directory)?.path();
            let id = std::fs::read_to_string(&path)
                .ok()
                .and_then(|id| id.trim().parse().ok());
            let exists = id.is_some_and(|id| self.image_directory(&id).exists());
            if !exists && let Err(error) = std::fs::remove_file(&path) {
                tracing::debug!(path = %path.display(), %error, "stale memo stays");
            }
        }
        Ok(())
    }

    /// Where the store keeps templates of scratch disks.
    #[must_use]
    pub fn templates(&self) -> PathBuf {
        self.root.join("templates")
    }

    /// The store's directory.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }
}
