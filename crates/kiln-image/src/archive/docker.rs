//! What `docker save` writes: `manifest.json` names a config and layers for each image.

use serde::Deserialize;

use super::{ArchiveError, ArchivedBody, ArchivedImage, Container};
use crate::oci::Reference;

const MANIFEST: &str = "manifest.json";

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Entry {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

/// Root filesystems may have a file of that name, too; it then says something else.
pub(super) fn describes_images(container: &Container) -> bool {
    entries(container).is_ok_and(|entries| !entries.is_empty())
}

fn entries(container: &Container) -> Result<Vec<Entry>, ArchiveError> {
    let text = container.document(MANIFEST)?;
    serde_json::from_slice(&text).map_err(|source| ArchiveError::Malformed {
        what: MANIFEST,
        source,
    })
}

pub(super) fn images(container: &Container) -> Result<Vec<ArchivedImage>, ArchiveError> {
    let images = entries(container)?.into_iter().map(|entry| {
        let names = entry.repo_tags.unwrap_or_default();
        Ok(ArchivedImage {
            // A name that is none would only be lost; the image has its id.
            names: names
                .iter()
                .filter_map(|name| name.parse::<Reference>().ok())
                .collect(),
            config: container.document(&entry.config)?.into(),
            body: ArchivedBody::Named(entry.layers),
        })
    });
    images.collect()
}
