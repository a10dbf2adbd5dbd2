//! Layers: read side by side, merged one over the other.

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use super::error::ImageError;
use super::{LayerSource, content_key, open, stamp_of, write_ext4};
use crate::content::{Contents, Stamp};
use crate::ext4::Unsealed;
use crate::hashing::Hashing;
use crate::limits::Budget;
use crate::progress::{Progress, ProgressEvent};
use crate::spool::{self, Spooled};
use crate::tree::{LayerRules, Tree};

/// Decompressors at once: each takes a core and its window.
const WORKERS: usize = 4;

/// The plain archives of all layers.
pub(super) struct Archives {
    files: Vec<File>,
    facts: Vec<Facts>,
    rules: LayerRules,
}

/// What is known of an archive, in step with the files.
#[derive(Clone, Copy)]
struct Facts {
    /// `None` while nobody has read it whole.
    digest: Option<[u8; 32]>,
    /// Of archives that are used in place.
    stamp: Option<Stamp>,
}

/// Brings all layers into plain archives; those that are plain already are not read yet.
pub(super) fn prepare(
    layers: Vec<LayerSource>,
    rules: LayerRules,
    temporary: &Path,
    budget: &Budget,
    progress: &dyn Progress,
) -> Result<Archives, ImageError> {
    let limit = budget.limits().layers;
    if layers.len() > limit {
        return Err(ImageError::Layers {
            found: layers.len(),
            limit,
        });
    }
    let what = if layers.len() == 1 {
        "archive".into()
    } else {
        format!("{} layers", layers.len())
    };
    progress.report(ProgressEvent::Step(format!("Reading the {what}")));
    let layers = spool_all(layers, hashing(rules), temporary, budget, progress)?;
    let (files, facts) = layers
        .into_iter()
        .map(|Layer { spooled, stamp }| {
            let digest = spooled.digest;
            (spooled.file, Facts { digest, stamp })
        })
        .unzip();
    Ok(Archives {
        files,
        facts,
        rules,
    })
}

impl Archives {
    /// The content key, if all archives have been read.
    pub(super) fn key(&self) -> Option<[u8; 32]> {
        key(self.rules, self.facts.iter().map(|facts| facts.digest))
    }

    /// Makes the image in `out`, all but its superblock, and reads meanwhile what has not been read
    /// for the key.
    pub(super) fn write(
        self,
        out: &File,
        source: &str,
        budget: &Budget,
        progress: &dyn Progress,
    ) -> Result<(Unsealed, [u8; 32]), ImageError> {
        let Archives {
            files,
            facts,
            rules,
        } = self;
        let contents = Contents {
            layers: files,
            directory: None,
        };
        let stop = AtomicBool::new(false);
        let (written, digests) = std::thread::scope(|scope| {
            let digests = scope.spawn(|| digests(&contents.layers, &facts, hashing(rules), &stop));
            let written = merge(&contents.layers, rules, budget, progress)
                .and_then(|tree| write_ext4(&tree, &contents, out, source, progress));
            stop.store(written.is_err(), Ordering::Relaxed);
            (written, digests.join())
        });
        let unsealed = written?;
        let unread = |error| ImageError::Read {
            what: source.to_owned(),
            source: error,
        };
        let digests = digests
            .unwrap_or_else(|_| Err(io::ErrorKind::Other.into()))
            .map_err(unread)?;
        check_unchanged(&contents.layers, &facts, source)?;
        let key = key(rules, digests.into_iter().map(Some));
        Ok((unsealed, key.unwrap_or_default()))
    }
}

/// The content key of archives with these digests, if all are known.
fn key(rules: LayerRules, digests: impl Iterator<Item = Option<[u8; 32]>>) -> Option<[u8; 32]> {
    let digests: Option<Vec<[u8; 32]>> = digests.collect();
    Some(content_key(kind(rules), &digests?))
}

/// The digests of all archives; those that are not known yet are computed, until `stop`.
fn digests(
    files: &[File],
    facts: &[Facts],
    hashing: Hashing,
    stop: &AtomicBool,
) -> io::Result<Vec<[u8; 32]>> {
    let digest = |(file, facts): (&File, &Facts)| match facts.digest {
        Some(digest) => Ok(digest),
        None => spool::digest_in_place(file, hashing, stop),
    };
    files.iter().zip(facts).map(digest).collect()
}

/// One layer as it comes from spooling.
struct Layer {
    spooled: Spooled,
    stamp: Option<Stamp>,
}

/// Part of the key: the same archive means other things under other rules.
pub(super) fn kind(rules: LayerRules) -> &'static str {
    match rules {
        LayerRules::Overlay => "layers",
        LayerRules::Plain => "tar",
        LayerRules::Package => "packages",
    }
}

/// Layers have the names that OCI gives them; archives of other kinds have none yet.
fn hashing(rules: LayerRules) -> Hashing {
    match rules {
        LayerRules::Overlay => Hashing::Sha256,
        LayerRules::Plain | LayerRules::Package => Hashing::Blake3,
    }
}

fn spool_all(
    layers: Vec<LayerSource>,
    hashing: Hashing,
    temporary: &Path,
    budget: &Budget,
    progress: &dyn Progress,
) -> Result<Vec<Layer>, ImageError> {
    let count = layers.len();
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let next = AtomicUsize::new(0);
    let sources: Vec<Mutex<Option<LayerSource>>> = layers
        .into_iter()
        .map(|layer| Mutex::new(Some(layer)))
        .collect();
    let results: Vec<Mutex<Option<Result<Layer, ImageError>>>> =
        (0..count).map(|_| Mutex::new(None)).collect();
    let read = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for _ in 0..count.min(cores).min(WORKERS) {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    let Some(source) = sources.get(number) else {
                        break;
                    };
                    let Some(source) = lock(source).take() else {
                        break;
                    };
                    let layer = spool_one(source, number, hashing, temporary, budget, &|bytes| {
                        let done = read.fetch_add(bytes, Ordering::Relaxed) + bytes;
                        progress.report(ProgressEvent::Bytes { done, total: None });
                    });
                    // The others need not go on for nothing.
                    if layer.is_err() {
                        next.store(count, Ordering::Relaxed);
                    }
                    *lock(&results[number]) = Some(layer);
                }
            });
        }
    });
    let results = results.into_iter().filter_map(|result| {
        result
            .into_inner()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    });
    results.collect()
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn spool_one(
    source: LayerSource,
    number: usize,
    hashing: Hashing,
    temporary: &Path,
    budget: &Budget,
    more: &(dyn Fn(u64) + Sync),
) -> Result<Layer, ImageError> {
    let seen = std::cell::Cell::new(0);
    let done = |total: u64| more(total - seen.replace(total));
    match source {
        LayerSource::Stream(stream) => {
            let what = format!("layer {}", number + 1);
            let spooled = spool::spool(stream, temporary, hashing, budget, &done)
                .map_err(|error| ImageError::spool(&what, temporary, error))?;
            Ok(Layer {
                spooled,
                stamp: None,
            })
        }
        LayerSource::File(path) => {
            let what = path.display().to_string();
            let file = open(&path)?;
            let stamp = stamp_of(&file).map_err(|source| ImageError::Open {
                path: path.clone(),
                source,
            })?;
            let spooled = spool::spool_file(file, temporary, hashing, budget, &done)
                .map_err(|error| ImageError::spool(&what, temporary, error))?;
            let in_place = stamp_of(&spooled.file).is_ok_and(|now| now.same_file(&stamp));
            Ok(Layer {
                spooled,
                stamp: in_place.then_some(stamp),
            })
        }
    }
}

/// Lays the layers over each other, lowest first.
fn merge(
    files: &[File],
    rules: LayerRules,
    budget: &Budget,
    progress: &dyn Progress,
) -> Result<Tree, ImageError> {
    progress.report(ProgressEvent::Step("Merging layers".into()));
    let mut tree = Tree::new();
    for (number, file) in (0u32..).zip(files) {
        tree.apply(file, number, rules, budget)?;
    }
    Ok(tree)
}

/// Archives that are used in place must still be what they were before the first byte was read.
fn check_unchanged(files: &[File], facts: &[Facts], source: &str) -> Result<(), ImageError> {
    for (file, facts) in files.iter().zip(facts) {
        if let Some(stamp) = facts.stamp
            && stamp_of(file).ok() != Some(stamp)
        {
            return Err(ImageError::Changed(source.to_owned()));
        }
    }
    Ok(())
}
