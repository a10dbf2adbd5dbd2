//! Pulling: from a reference to a block image, layers decompressed while they still come in.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bytes::Bytes;
use tokio::runtime::Runtime;
use tokio::sync::Notify;

use super::catalog::Record;
use super::described::Described;
use super::error::LibraryError;
use super::fetch::Fetch;
use super::{ImageInfo, ImageLibrary, PullPolicy, PullRequest};
use crate::blobs::Feed;
use crate::failpoint;
use crate::oci::{Descriptor, Digest, Document, Manifest};
use crate::progress::{Progress, ProgressEvent};
use crate::registry::{RegistryError, Repository};
use crate::rootfs::{ImageError, ImageSource, LayerSource};
use crate::store::{Image, ImageId};

/// Indexes may hold indexes, but not for ever.
const MAX_DEPTH: usize = 4;

impl ImageLibrary {
    /// The image with this name: the one that is here, or the registry's, as the policy says.
    ///
    /// Blocks for as long as the network takes: run it where blocking is allowed, and not inside
    /// an asynchronous task. Any number of callers and processes may pull at once; what they have
    /// in common is fetched once.
    ///
    /// # Errors
    /// [`LibraryError`]; the library then holds what it held before, and parts of layers that the
    /// next pull goes on with.
    pub fn pull(
        &self,
        request: &PullRequest,
        progress: &dyn Progress,
    ) -> Result<ImageInfo, LibraryError> {
        if request.policy != PullPolicy::Always
            && let Some(record) = self.take_here(request)?
        {
            return self.describe(&record);
        }
        if request.policy == PullPolicy::Never {
            return Err(LibraryError::NotHere(request.image.familiar()));
        }
        let _quiet = self.keep_blobs()?;
        progress.report(ProgressEvent::Step(format!(
            "Pulling {}",
            request.image.familiar()
        )));
        let worker = Worker::new()?;
        let runtime = worker.runtime()?;
        let repository =
            Repository::new(&request.image, &self.config.registries, &request.keyring)?;
        let described = runtime.block_on(resolve(&repository, request))?;
        described.check_limits(&self.config.limits)?;
        failpoint::reach("pull.resolved");
        self.keep_documents(&described)?;
        failpoint::reach("pull.documents");
        loop {
            let image = self.material(&described, &repository, runtime, progress)?;
            let names = std::slice::from_ref(&request.image);
            let pin = request.pin.as_deref();
            // Removed between making and naming it: make it again.
            if let Some(record) = self.enter(&described, &image, names, pin)? {
                failpoint::reach("pull.entered");
                return self.describe(&record);
            }
        }
    }

    /// Notes the use of an image that is here.
    fn take_here(&self, request: &PullRequest) -> Result<Option<Record>, LibraryError> {
        let _lock = self.catalog.lock()?;
        let Some(record) = self.here(request)? else {
            return Ok(None);
        };
        if let Some(owner) = &request.pin {
            self.catalog.pin(record.id, owner)?;
        }
        self.catalog.touch(record.id);
        Ok(Some(record))
    }

    /// The image if it is here, whole, and for the right machine.
    fn here(&self, request: &PullRequest) -> Result<Option<Record>, LibraryError> {
        let Some(record) = self.named(&request.image)? else {
            return Ok(None);
        };
        let fits = request.platform.accepts(&record.platform);
        let whole = self.store.get(&record.rootfs)?.is_some();
        Ok(Some(record).filter(|_| fits && whole))
    }

    /// The block image: there already, or made of the layers now.
    fn material(
        &self,
        described: &Described,
        repository: &Repository,
        runtime: &Runtime,
        progress: &dyn Progress,
    ) -> Result<Image, LibraryError> {
        let id = described.rootfs();
        if let Some(image) = self.store.get(&id)? {
            return Ok(image);
        }
        let _flight = self.flight(&id, progress)?;
        if let Some(image) = self.store.get(&id)? {
            return Ok(image);
        }
        self.fetch_and_build(&id, described, repository, runtime, progress)
    }

    /// Fetches on one thread and builds on this one. The first fault of either stops both.
    fn fetch_and_build(
        &self,
        id: &ImageId,
        described: &Described,
        repository: &Repository,
        runtime: &Runtime,
        progress: &dyn Progress,
    ) -> Result<Image, LibraryError> {
        let layers: Vec<(Descriptor, Arc<Feed>)> = described
            .manifest
            .layers
            .iter()
            .map(|layer| (layer.clone(), Arc::new(Feed::default())))
            .collect();
        let fetch = Fetch {
            blobs: &self.blobs,
            repository,
            progress,
            total: described.manifest.layer_bytes(),
            done: AtomicU64::new(0),
        };
        progress.report(ProgressEvent::Step(format!(
            "Downloading {} layers",
            layers.len()
        )));
        let (fetched, stop) = (AtomicBool::new(false), Notify::new());
        let quiet = WhileFetching {
            inner: progress,
            fetched: &fetched,
        };
        let (download, built) = std::thread::scope(|scope| {
            let downloading = scope.spawn(|| {
                let result = runtime.block_on(async {
                    tokio::select! {
                        result = fetch.all(&layers) => Some(result),
                        () = stop.notified() => None,
                    }
                });
                fetched.store(true, Ordering::Relaxed);
                result
            });
            let built = self.build(id, &layers, &quiet);
            if built.as_ref().is_err_and(is_final) {
                stop.notify_one();
            }
            (downloading.join(), built)
        });
        match download.map_err(|_| LibraryError::Worker)? {
            // The cause, where the build only saw its input end.
            Some(Err(error)) => Err(error),
            // What it read was wrong, and came right in the end.
            Some(Ok(()))
                if built.is_err() && layers.iter().any(|(_, feed)| feed.was_restarted()) =>
            {
                Ok(self.build(id, &layers, &quiet)?)
            }
            _ => Ok(built?),
        }
    }

    fn build(
        &self,
        id: &ImageId,
        layers: &[(Descriptor, Arc<Feed>)],
        progress: &dyn Progress,
    ) -> Result<Image, ImageError> {
        let sources = layers
            .iter()
            .map(|(_, feed)| LayerSource::Stream(Box::new(feed.follow())));
        let source = ImageSource::Layers(sources.collect());
        self.store
            .import_exactly(source, id, &self.config.limits, progress)
    }
}

/// Whether no other bytes could have made it better. All else may come from bytes that turn out
/// wrong only at the end of a layer.
fn is_final(error: &ImageError) -> bool {
    matches!(
        error,
        ImageError::Limit { .. }
            | ImageError::LayerTooLarge { .. }
            | ImageError::Layers { .. }
            | ImageError::Store { .. }
            | ImageError::Ext4(_)
    )
}

/// While layers come in, their bytes are the progress; the work on them shows afterwards.
struct WhileFetching<'a> {
    inner: &'a dyn Progress,
    fetched: &'a AtomicBool,
}

impl Progress for WhileFetching<'_> {
    fn report(&self, event: ProgressEvent) {
        let is_note = matches!(event, ProgressEvent::Note(_));
        if is_note || self.fetched.load(Ordering::Relaxed) {
            self.inner.report(event);
        }
    }
}

/// The runtime of one pull. A thread of it may be waiting for another process's download when the
/// pull has failed already; it must not hold up the answer.
struct Worker(Option<Runtime>);

impl Worker {
    fn new() -> Result<Worker, LibraryError> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        Ok(Worker(Some(runtime.map_err(|_| LibraryError::Worker)?)))
    }

    fn runtime(&self) -> Result<&Runtime, LibraryError> {
        self.0.as_ref().ok_or(LibraryError::Worker)
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

/// Asks what the reference means: the build for the platform, and its config.
async fn resolve(
    repository: &Repository,
    request: &PullRequest,
) -> Result<Described, LibraryError> {
    let found = find_manifest(repository, request).await?;
    let config = repository.small_blob(found.2.config.digest).await?;
    Described::new(&request.image.familiar(), &request.platform, found, config)
}

async fn find_manifest(
    repository: &Repository,
    request: &PullRequest,
) -> Result<(Digest, Bytes, Manifest), LibraryError> {
    let (mut tag, mut digest) = (request.image.tag(), request.image.digest());
    for _ in 0..MAX_DEPTH {
        let (found, bytes) = repository.manifest(tag, digest).await?;
        let document = Document::parse(&bytes).map_err(|source| RegistryError::Manifest {
            image: request.image.familiar(),
            source,
        })?;
        match document {
            Document::Manifest(manifest) => return Ok((found, bytes, manifest)),
            Document::Index(index) => {
                let chosen = request.platform.select(&index.manifests);
                (tag, digest) = (None, Some(chosen.map_err(RegistryError::from)?.digest));
            }
        }
    }
    Err(LibraryError::Registry(RegistryError::Malformed {
        url: request.image.to_string(),
        problem: "indexes of indexes without end",
    }))
}
