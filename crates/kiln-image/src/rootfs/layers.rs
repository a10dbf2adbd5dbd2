//! Layers: read side by side, merged one over the other.

use std::fs::File;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use super::error::ImageError;
use super::{Body, LayerSource, content_key, open, stamp_of};
use crate::content::Stamp;
use crate::limits::Budget;
use crate::progress::{Progress, ProgressEvent};
use crate::spool::{self, Spooled};
use crate::tree::{LayerRules, Tree};

/// Decompressors at once: each takes a core and its window.
const WORKERS: usize = 4;

struct Layer {
    spooled: Spooled,
    /// Of archives that are used in place.
    stamp: Option<Stamp>,
}

/// Spools all layers and derives the key from their digests.
pub(super) fn prepare(
    layers: Vec<LayerSource>,
    rules: LayerRules,
    temporary: &Path,
    budget: &Budget,
    progress: &dyn Progress,
) -> Result<([u8; 32], Body), ImageError> {
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
    let layers = spool_all(layers, temporary, budget, progress)?;
    let digests: Vec<[u8; 32]> = layers.iter().map(|layer| layer.spooled.digest).collect();
    let stamps = layers.iter().map(|layer| layer.stamp).collect();
    let files = layers.into_iter().map(|layer| layer.spooled.file).collect();
    Ok((
        content_key(kind(rules), &digests),
        Body::Layers {
            files,
            rules,
            stamps,
        },
    ))
}

/// Part of the key: the same archive means other things under other rules.
pub(super) fn kind(rules: LayerRules) -> &'static str {
    match rules {
        LayerRules::Overlay => "layers",
        LayerRules::Plain => "tar",
        LayerRules::Package => "packages",
    }
}

fn spool_all(
    layers: Vec<LayerSource>,
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
                    let layer = spool_one(source, number, temporary, budget, &|bytes| {
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
    temporary: &Path,
    budget: &Budget,
    more: &(dyn Fn(u64) + Sync),
) -> Result<Layer, ImageError> {
    let seen = std::cell::Cell::new(0);
    let done = |total: u64| more(total - seen.replace(total));
    match source {
        LayerSource::Stream(stream) => {
            let what = format!("layer {}", number + 1);
            let spooled = spool::spool(stream, temporary, budget, &done)
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
            let spooled = spool::spool_file(file, temporary, budget, &done)
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
pub(super) fn merge(
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

/// Archives that were used in place must still be what was hashed.
pub(super) fn check_unchanged(
    files: &[File],
    stamps: &[Option<Stamp>],
    source: &str,
) -> Result<(), ImageError> {
    for (file, stamp) in files.iter().zip(stamps) {
        if let Some(stamp) = stamp
            && stamp_of(file).ok() != Some(*stamp)
        {
            return Err(ImageError::Changed(source.to_owned()));
        }
    }
    Ok(())
}
