//! Fetching one layer into the store: once for everyone who wants it, on from where someone stopped,
//! checked on the way.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use sha2::{Digest as _, Sha256};
use tokio::sync::Semaphore;

use super::error::LibraryError;
use crate::blobs::{Begun, Blobs, Feed, Partial, digest_of};
use crate::failpoint;
use crate::oci::Descriptor;
use crate::progress::{Progress, ProgressEvent};
use crate::registry::{Backoff, RegistryError, Repository};

/// How often progress is told: every this many bytes.
const PROGRESS_STEP: u64 = 1 << 20;

/// The layers of one image, fetched side by side.
pub(super) struct Fetch<'a> {
    pub(super) blobs: &'a Blobs,
    pub(super) repository: &'a Repository,
    pub(super) progress: &'a dyn Progress,
    pub(super) total: u64,
    pub(super) done: AtomicU64,
}

/// Tells the readers of a feed when its fetch ends without success, however it ends.
struct FailOnDrop<'a>(&'a Feed);

impl Drop for FailOnDrop<'_> {
    fn drop(&mut self) {
        self.0.fail();
    }
}

impl Fetch<'_> {
    /// Fetches all layers; each feed gets its layer's bytes. Fails with the first that fails.
    pub(super) async fn all(&self, layers: &[(Descriptor, Arc<Feed>)]) -> Result<(), LibraryError> {
        // However this ends, nobody waits for ever.
        let _guards: Vec<FailOnDrop<'_>> =
            layers.iter().map(|(_, feed)| FailOnDrop(feed)).collect();
        let slots = Semaphore::new(self.repository.patience().parallel.max(1));
        let fetches = layers.iter().map(|(layer, feed)| async {
            let _slot = slots.acquire().await;
            self.one(layer, feed).await
        });
        futures_util::future::try_join_all(fetches).await.map(drop)
    }

    async fn one(&self, layer: &Descriptor, feed: &Feed) -> Result<(), LibraryError> {
        let (blobs, digest, size) = (self.blobs.clone(), layer.digest, layer.size);
        let begun = blocking(move || blobs.begin(digest, size)).await??;
        let mut partial = match begun {
            Begun::Whole(file) => {
                feed.start(file, size);
                feed.finish();
                self.count(size);
                return Ok(());
            }
            Begun::Mine(partial) => partial,
        };
        let mut counted = 0;
        for last in [false, true] {
            let hash;
            (partial, hash) = self.prepare(partial, size).await?;
            feed.start(partial.reader()?, partial.len()?);
            let hash = self
                .receive(layer, &mut partial, hash, feed, &mut counted)
                .await?;
            let found = digest_of(&hash);
            if found == digest {
                blocking(move || partial.finish()).await??;
                failpoint::reach("pull.layer");
                feed.finish();
                return Ok(());
            }
            // What another process left may have been damaged since, or the registry's cache: one
            // more try from the beginning.
            tracing::warn!(%digest, %found, "a layer came with a wrong digest");
            if last {
                partial.discard();
                return Err(LibraryError::Registry(RegistryError::WrongDigest {
                    url: digest.to_string(),
                    found,
                    expected: digest,
                }));
            }
            feed.restart();
            partial.truncate(0)?;
        }
        Ok(())
    }

    /// Hashes what is there already.
    async fn prepare(
        &self,
        mut partial: Partial,
        size: u64,
    ) -> Result<(Partial, Sha256), LibraryError> {
        let prepared = blocking(move || {
            if partial.len()? > size {
                partial.truncate(0)?;
            }
            let hash = partial.hash()?;
            Ok::<_, LibraryError>((partial, hash))
        });
        prepared.await?
    }

    /// Receives what is missing, in as many pieces as it takes.
    async fn receive(
        &self,
        layer: &Descriptor,
        partial: &mut Partial,
        mut hash: Sha256,
        feed: &Feed,
        counted: &mut u64,
    ) -> Result<Sha256, LibraryError> {
        let mut backoff = Backoff::new(self.repository.patience());
        let mut at = partial.len()?;
        self.count_up_to(at, counted);
        while at < layer.size {
            let before = at;
            let outcome = self
                .piece(layer, partial, &mut hash, feed, &mut at, counted)
                .await;
            let error = match outcome {
                Ok(()) if at == layer.size => break,
                // Ended early without an error: a proxy that was cut off.
                Ok(()) => LibraryError::Registry(RegistryError::WrongSize {
                    url: layer.digest.to_string(),
                    received: at,
                    expected: layer.size,
                }),
                Err(LibraryError::Registry(error)) if error.is_passing() => {
                    LibraryError::Registry(error)
                }
                Err(error) => return Err(error),
            };
            if at > before {
                backoff.reset();
            }
            match backoff.next(None) {
                Some(wait) => {
                    tracing::debug!(digest = %layer.digest, at, %error, "going on after a break");
                    tokio::time::sleep(wait).await;
                }
                None => return Err(error),
            }
        }
        Ok(hash)
    }

    /// Receives from one connection until it ends.
    async fn piece(
        &self,
        layer: &Descriptor,
        partial: &mut Partial,
        hash: &mut Sha256,
        feed: &Feed,
        at: &mut u64,
        counted: &mut u64,
    ) -> Result<(), LibraryError> {
        let mut body = self.repository.blob(layer.digest, *at).await?;
        let mut excess = body.excess;
        while let Some(bytes) = body.next().await? {
            // A server that knows no ranges sends again what is there already.
            let skipped = excess.min(bytes.len() as u64);
            excess -= skipped;
            let bytes = &bytes[skipped as usize..];
            let end = *at + bytes.len() as u64;
            if end > layer.size {
                return Err(LibraryError::Registry(RegistryError::WrongSize {
                    url: body.url,
                    received: end,
                    expected: layer.size,
                }));
            }
            partial.write_at(bytes, *at)?;
            hash.update(bytes);
            *at = end;
            feed.grow(end);
            // The block image is being built of these bytes meanwhile.
            failpoint::reach("pull.unpacking");
            self.count_up_to(end, counted);
        }
        Ok(())
    }

    /// Counts a layer's bytes once, whatever is fetched anew.
    fn count_up_to(&self, at: u64, counted: &mut u64) {
        if at > *counted {
            self.count(at - *counted);
            *counted = at;
        }
    }

    fn count(&self, bytes: u64) {
        let before = self.done.fetch_add(bytes, Ordering::Relaxed);
        let done = before + bytes;
        if before / PROGRESS_STEP != done / PROGRESS_STEP || done >= self.total {
            self.progress.report(ProgressEvent::Bytes {
                done,
                total: Some(self.total),
            });
        }
    }
}

/// Runs what blocks where it hinders nobody.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, LibraryError> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|_| LibraryError::Worker)
}
