//! OCI image layouts: `index.json` leads to manifests, everything is found by its digest.

use serde::Deserialize;

use super::{ArchiveError, ArchivedBody, ArchivedImage, Container};
use crate::oci::{Descriptor, Document, Platform, Reference};

const INDEX: &str = "index.json";
/// Names that tools give: the whole name, or a tag alone.
const FULL_NAME: &str = "io.containerd.image.name";
const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// Indexes may hold indexes, but not for ever.
const MAX_DEPTH: usize = 4;

#[derive(Deserialize)]
struct Layout {
    manifests: Vec<Descriptor>,
}

pub(super) fn images(
    container: &Container,
    platform: &Platform,
) -> Result<Vec<ArchivedImage>, ArchiveError> {
    let text = container.document(INDEX)?;
    let layout: Layout =
        serde_json::from_slice(&text).map_err(|source| ArchiveError::Malformed {
            what: INDEX,
            source,
        })?;
    let builds = layout
        .manifests
        .iter()
        .any(|entry| name_of(entry).is_none() && entry.platform.is_some());
    // Several builds of one image without names: the index itself is the image.
    let entries: Vec<&Descriptor> = if builds && layout.manifests.len() > 1 {
        vec![platform.select(&layout.manifests)?]
    } else {
        layout.manifests.iter().collect()
    };
    let images = entries
        .into_iter()
        .map(|entry| image(container, entry, platform));
    images.collect()
}

fn image(
    container: &Container,
    entry: &Descriptor,
    platform: &Platform,
) -> Result<ArchivedImage, ArchiveError> {
    let mut digest = entry.digest;
    for _ in 0..MAX_DEPTH {
        let bytes = container.small_blob(digest)?;
        match Document::parse(&bytes)? {
            Document::Index(index) => digest = platform.select(&index.manifests)?.digest,
            Document::Manifest(manifest) => {
                return Ok(ArchivedImage {
                    names: name_of(entry).into_iter().collect(),
                    config: container.small_blob(manifest.config.digest)?,
                    body: ArchivedBody::Addressed {
                        bytes,
                        digest,
                        manifest: Box::new(manifest),
                    },
                });
            }
        }
    }
    Err(ArchiveError::Empty)
}

/// A full name. A tag alone says nothing about which image it is a tag of.
fn name_of(entry: &Descriptor) -> Option<Reference> {
    let full = entry.annotations.get(FULL_NAME);
    let short = entry.annotations.get(REF_NAME);
    let is_full = |name: &&String| name.contains([':', '/']);
    full.or(short.filter(is_full))
        .and_then(|name| name.parse().ok())
}
