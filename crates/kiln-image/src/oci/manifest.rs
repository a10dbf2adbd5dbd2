//! Manifests and indexes, OCI's and Docker's schema 2, which differ in names only.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::digest::Digest;
use super::platform::Platform;

/// The largest manifest, index or config that is read: what registries accept at most.
pub(crate) const MAX_DOCUMENT: u64 = 4 << 20;
/// More entries than any index has.
const MAX_ENTRIES: usize = 1000;

pub(crate) const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub(crate) const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub(crate) const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
pub(crate) const OCI_LAYER_GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
pub(crate) const OCI_LAYER_ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";
const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const DOCKER_INDEX: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";

/// What is asked of a registry, best first.
const ACCEPTED: [&str; 4] = [OCI_INDEX, OCI_MANIFEST, DOCKER_INDEX, DOCKER_MANIFEST];

/// Layers that are file archives: everything that starts like this.
const LAYER_TYPES: [&str; 4] = [
    OCI_LAYER,
    "application/vnd.oci.image.layer.nondistributable.v1.tar",
    "application/vnd.docker.image.rootfs.diff.tar",
    "application/vnd.docker.image.rootfs.foreign.diff.tar",
];

/// A pointer to content: what it is, its address and its length.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// Media type.
    #[serde(default)]
    pub media_type: String,
    /// Content address.
    pub digest: Digest,
    /// Bytes.
    pub size: u64,
    /// For what machine, in indexes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
    /// Notes of whoever made it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

/// One image: its config and its layers, lowest first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// Always 2.
    pub schema_version: u32,
    /// Its own media type; old OCI manifests have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub media_type: Option<String>,
    /// The image config.
    pub config: Descriptor,
    /// The layers, lowest first.
    pub layers: Vec<Descriptor>,
}

/// Several images, most often builds of one for several platforms.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Index {
    /// Always 2.
    pub schema_version: u32,
    /// Its own media type.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub media_type: Option<String>,
    /// The images, or further indexes.
    pub manifests: Vec<Descriptor>,
}

/// What a manifest's place may hold.
#[derive(Clone, Debug)]
pub(crate) enum Document {
    Manifest(Manifest),
    Index(Index),
}

/// Why a document is not the manifest of an image.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ManifestError {
    /// Not JSON, or without what a manifest must have.
    #[error("the manifest cannot be read")]
    Malformed(#[source] serde_json::Error),
    /// Docker's first format, which has no content addresses worth the name.
    #[error("the manifest has the old schema 1; pull and push the image again with a newer Docker")]
    SchemaOne,
    /// Another version.
    #[error("manifests of version {0} are not supported")]
    Version(u32),
    /// Helm charts, signatures, WebAssembly and what else registries hold.
    #[error("this is not an image of a root filesystem: it holds {0}")]
    NotAnImage(String),
    /// Too many layers or images.
    #[error("{0} entries; at most {MAX_ENTRIES} are allowed")]
    TooMany(usize),
}

/// Enough to tell the two apart; the media type that came with it may be missing or lie.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Outline {
    #[serde(default)]
    schema_version: u32,
    media_type: Option<String>,
    config: Option<serde::de::IgnoredAny>,
    layers: Option<serde::de::IgnoredAny>,
    manifests: Option<serde::de::IgnoredAny>,
}

impl Document {
    /// Reads a manifest or an index. One that could be taken for both is refused: two readers must
    /// not see two images.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Document, ManifestError> {
        let outline: Outline = serde_json::from_slice(bytes).map_err(ManifestError::Malformed)?;
        match outline.schema_version {
            2 => {}
            1 => return Err(ManifestError::SchemaOne),
            version => return Err(ManifestError::Version(version)),
        }
        let is_manifest = outline.config.is_some() || outline.layers.is_some();
        let said = outline.media_type.unwrap_or_default();
        match (is_manifest, outline.manifests.is_some()) {
            (true, false) if ![OCI_INDEX, DOCKER_INDEX].contains(&&*said) => {
                Manifest::parse(bytes).map(Document::Manifest)
            }
            (false, true) if ![OCI_MANIFEST, DOCKER_MANIFEST].contains(&&*said) => {
                Index::parse(bytes).map(Document::Index)
            }
            _ => Err(ManifestError::NotAnImage(
                "neither a manifest nor an index".into(),
            )),
        }
    }

    /// The value of the `Accept` header.
    pub(crate) fn accept() -> String {
        ACCEPTED.join(", ")
    }
}

impl Index {
    fn parse(bytes: &[u8]) -> Result<Index, ManifestError> {
        let index: Index = serde_json::from_slice(bytes).map_err(ManifestError::Malformed)?;
        check_count(index.manifests.len())?;
        Ok(index)
    }
}

impl Manifest {
    fn parse(bytes: &[u8]) -> Result<Manifest, ManifestError> {
        let manifest: Manifest = serde_json::from_slice(bytes).map_err(ManifestError::Malformed)?;
        check_count(manifest.layers.len())?;
        let config = manifest.config.media_type.as_str();
        // Podman and old builders leave it out.
        if !["", OCI_CONFIG, DOCKER_CONFIG, "application/octet-stream"].contains(&config) {
            return Err(ManifestError::NotAnImage(shorten(config)));
        }
        let strange = manifest
            .layers
            .iter()
            .find(|layer| !is_layer(&layer.media_type));
        match strange {
            Some(layer) => Err(ManifestError::NotAnImage(shorten(&layer.media_type))),
            None => Ok(manifest),
        }
    }

    /// Bytes of all layers as they travel.
    #[must_use]
    pub fn layer_bytes(&self) -> u64 {
        let sizes = self.layers.iter().map(|layer| layer.size);
        sizes.fold(0, u64::saturating_add)
    }
}

fn check_count(count: usize) -> Result<(), ManifestError> {
    if count > MAX_ENTRIES {
        return Err(ManifestError::TooMany(count));
    }
    Ok(())
}

/// How it is compressed is judged by the bytes, which do not lie; encrypted layers are refused.
fn is_layer(media_type: &str) -> bool {
    LAYER_TYPES.iter().any(|known| {
        let rest = media_type.strip_prefix(known);
        rest.is_some_and(|rest| ["", "+gzip", "+zstd", ".gzip", ".zstd"].contains(&rest))
    })
}

fn shorten(text: &str) -> String {
    text.chars()
        .take(100)
        .flat_map(char::escape_default)
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn manifest(config: &str, layer: &str) -> String {
        let digest = Digest::of(b"");
        format!(
            r#"{{"schemaVersion":2,"config":{{"mediaType":"{config}","digest":"{digest}","size":2}},
            "layers":[{{"mediaType":"{layer}","digest":"{digest}","size":3}}]}}"#
        )
    }

    fn refusal(text: &str) -> String {
        Document::parse(text.as_bytes()).unwrap_err().to_string()
    }

    #[test]
    fn both_families_are_read() {
        for (config, layer) in [
            (OCI_CONFIG, OCI_LAYER_GZIP),
            (OCI_CONFIG, OCI_LAYER_ZSTD),
            (
                DOCKER_CONFIG,
                "application/vnd.docker.image.rootfs.diff.tar.gzip",
            ),
        ] {
            let document = Document::parse(manifest(config, layer).as_bytes()).unwrap();
            let Document::Manifest(manifest) = document else {
                panic!()
            };
            assert_eq!(manifest.layer_bytes(), 3);
        }
        let index = format!(
            r#"{{"schemaVersion":2,"manifests":[{{"digest":"{}","size":5}}]}}"#,
            Digest::of(b"")
        );
        assert!(matches!(
            Document::parse(index.as_bytes()),
            Ok(Document::Index(_))
        ));
    }

    #[test]
    fn what_is_no_image_is_refused_with_its_name() {
        let helm = manifest("application/vnd.cncf.helm.config.v1+json", OCI_LAYER);
        assert!(refusal(&helm).contains("helm"));
        let encrypted = manifest(
            OCI_CONFIG,
            "application/vnd.oci.image.layer.v1.tar+gzip+encrypted",
        );
        assert!(refusal(&encrypted).contains("encrypted"));
        assert!(refusal(r#"{"schemaVersion":1,"fsLayers":[]}"#).contains("schema 1"));
        assert!(refusal(r#"{"schemaVersion":3}"#).contains("version 3"));
        assert!(refusal("{}").contains("version 0"));
        let both = manifest(OCI_CONFIG, OCI_LAYER).replacen('{', r#"{"manifests":[],"#, 1);
        assert!(refusal(&both).contains("neither"));
        let liar = manifest(OCI_CONFIG, OCI_LAYER).replacen(
            '{',
            &format!(r#"{{"mediaType":"{OCI_INDEX}","#),
            1,
        );
        assert!(refusal(&liar).contains("neither"));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Document::parse(&bytes);
        }

        #[test]
        fn no_change_of_a_byte_makes_it_panic(at in any::<prop::sample::Index>(), byte in any::<u8>()) {
            let mut bytes = manifest(OCI_CONFIG, OCI_LAYER).into_bytes();
            let at = at.index(bytes.len());
            bytes[at] = byte;
            let _ = Document::parse(&bytes);
        }
    }
}
