//! What OCI and Docker write down about images: references, digests, manifests, indexes, platforms
//! and image configs. Pure: parses and prints, knows no network and no store.

mod config;
mod digest;
mod manifest;
mod platform;
mod process;
mod reference;

pub use config::{ConfigError, Healthcheck, ImageConfig, ImageDocument};
pub use digest::{Digest, DigestError};
pub use manifest::{Descriptor, Index, Manifest, ManifestError};
pub(crate) use manifest::{
    Document, MAX_DOCUMENT, OCI_CONFIG, OCI_LAYER, OCI_LAYER_GZIP, OCI_LAYER_ZSTD, OCI_MANIFEST,
};
pub use platform::{Platform, PlatformError};
pub use process::{Overrides, ProcessError, ProcessSpec};
pub use reference::{Reference, ReferenceError};
