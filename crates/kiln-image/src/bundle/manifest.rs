//! The manifest of a hosted bundle, schema version 1: read, and held to every rule before anything
//! is fetched.

use serde::Deserialize;
use serde_json::Value;

use super::version::FirecrackerVersion;
use crate::kernel::Architecture;

/// More is no manifest.
pub(super) const MAX_MANIFEST: u64 = 1 << 20;

/// How a root filesystem is packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RootfsType {
    /// ext4.
    Ext4,
    /// squashfs.
    Squashfs,
}

/// What is wrong with a manifest.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ManifestError {
    /// Not JSON, or a field of another kind.
    #[error("it cannot be read: {0}")]
    Json(String),
    /// Another schema.
    #[error("schemaVersion must be 1")]
    Schema,
    /// A bundle id that is no plain name.
    #[error("bundleId must be of A-Z, a-z, 0-9, `.`, `_`, `-`")]
    BundleId,
    /// For another processor.
    #[error("arch is not {0}")]
    Arch(&'static str),
    /// Not `vN.N.N`.
    #[error("firecrackerVersion must be of the form vN.N.N")]
    Version,
    /// Neither ext4 nor squashfs.
    #[error("rootfsType must be ext4 or squashfs")]
    RootfsType,
    /// An artifact needs one place.
    #[error("{0} must have either url or path")]
    Place(&'static str),
    /// A manifest from elsewhere does not say which of our files to take.
    #[error("{0} has a path, which only a manifest that is a local file may have")]
    RemotePath(&'static str),
    /// What is downloaded must be known in advance.
    #[error("{0} has a url but no sha256")]
    NoDigest(&'static str),
    /// Not 64 hexadecimal digits.
    #[error("sha256 of {0} must be 64 hexadecimal digits")]
    Digest(&'static str),
    /// Not a size.
    #[error("sizeBytes of {0} must be a non-negative integer")]
    Size(&'static str),
    /// A file name that is no plain name.
    #[error("fileName of {0} must be of A-Z, a-z, 0-9, `.`, `_`, `-`")]
    FileName(&'static str),
    /// One name for two files.
    #[error("kernel and rootfs have the same fileName")]
    SameFileName,
}

/// Where a manifest was found: decides what it may refer to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    LocalFile,
    Url,
}

/// Where a file comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Place {
    Url(String),
    /// As the manifest writes it: relative to itself.
    Path(String),
}

/// One file of a bundle.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Artifact {
    pub(super) place: Place,
    pub(super) file_name: String,
    /// In lower case.
    pub(super) sha256: Option<String>,
    pub(super) size_bytes: Option<u64>,
}

/// A valid manifest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Manifest {
    pub(super) bundle_id: String,
    pub(super) firecracker_version: FirecrackerVersion,
    pub(super) rootfs_type: RootfsType,
    pub(super) rootfs_is_read_only: bool,
    pub(super) boot_args: Option<String>,
    pub(super) kernel: Artifact,
    pub(super) rootfs: Artifact,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawManifest {
    schema_version: Value,
    #[serde(default)]
    bundle_id: String,
    #[serde(default, rename = "name")]
    _name: Option<String>,
    #[serde(default)]
    arch: String,
    #[serde(default)]
    firecracker_version: String,
    #[serde(default)]
    rootfs_type: String,
    rootfs_is_read_only: Option<bool>,
    boot_args: Option<String>,
    kernel: RawArtifact,
    rootfs: RawArtifact,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawArtifact {
    url: Option<String>,
    path: Option<String>,
    file_name: Option<String>,
    sha256: Option<String>,
    size_bytes: Option<Value>,
}

impl RootfsType {
    /// As it is written in manifests.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ext4 => "ext4",
            Self::Squashfs => "squashfs",
        }
    }
}

impl Manifest {
    /// Reads a manifest for machines of this architecture.
    pub(super) fn parse(
        text: &[u8],
        architecture: Architecture,
        origin: Origin,
    ) -> Result<Manifest, ManifestError> {
        // The version first: another schema may have other fields.
        let value: Value = serde_json::from_slice(text).map_err(json)?;
        if value.get("schemaVersion").and_then(Value::as_u64) != Some(1) {
            return Err(ManifestError::Schema);
        }
        let raw: RawManifest = serde_json::from_value(value).map_err(json)?;
        debug_assert_eq!(raw.schema_version, 1);
        if !is_plain_name(&raw.bundle_id) {
            return Err(ManifestError::BundleId);
        }
        if raw.arch != architecture.name() {
            return Err(ManifestError::Arch(architecture.name()));
        }
        let version = raw.firecracker_version.parse();
        let rootfs_type = match raw.rootfs_type.as_str() {
            "ext4" => RootfsType::Ext4,
            "squashfs" => RootfsType::Squashfs,
            _ => return Err(ManifestError::RootfsType),
        };
        let manifest = Manifest {
            bundle_id: raw.bundle_id,
            firecracker_version: version.map_err(|_| ManifestError::Version)?,
            rootfs_type,
            rootfs_is_read_only: raw
                .rootfs_is_read_only
                .unwrap_or(rootfs_type == RootfsType::Squashfs),
            boot_args: raw.boot_args,
            kernel: raw.kernel.check("kernel", origin)?,
            rootfs: raw.rootfs.check("rootfs", origin)?,
        };
        if manifest.kernel.file_name == manifest.rootfs.file_name {
            return Err(ManifestError::SameFileName);
        }
        Ok(manifest)
    }
}

impl RawArtifact {
    fn check(self, which: &'static str, origin: Origin) -> Result<Artifact, ManifestError> {
        let given = |text: Option<String>| text.filter(|text| !text.is_empty());
        let place = match (given(self.url), given(self.path)) {
            (Some(url), None) => Place::Url(url),
            (None, Some(path)) => Place::Path(path),
            _ => return Err(ManifestError::Place(which)),
        };
        let sha256 = self.sha256.map(|digest| digest.to_ascii_lowercase());
        if let Some(digest) = &sha256
            && !(digest.len() == 64 && digest.bytes().all(|byte| byte.is_ascii_hexdigit()))
        {
            return Err(ManifestError::Digest(which));
        }
        match &place {
            Place::Url(_) if sha256.is_none() => return Err(ManifestError::NoDigest(which)),
            Place::Path(_) if origin == Origin::Url => {
                return Err(ManifestError::RemotePath(which));
            }
            _ => {}
        }
        let size_bytes = match self.size_bytes {
            None => None,
            Some(size) => Some(size.as_u64().ok_or(ManifestError::Size(which))?),
        };
        let file_name = self.file_name.unwrap_or_else(|| last_name(&place));
        if !is_plain_name(&file_name) || file_name == super::record::RECORD {
            return Err(ManifestError::FileName(which));
        }
        Ok(Artifact {
            place,
            file_name,
            sha256,
            size_bytes,
        })
    }
}

fn json(error: serde_json::Error) -> ManifestError {
    ManifestError::Json(error.to_string())
}

fn last_name(place: &Place) -> String {
    let text = match place {
        Place::Url(url) => url.split(['?', '#']).next().unwrap_or_default(),
        Place::Path(path) => path,
    };
    text.rsplit('/').next().unwrap_or_default().to_owned()
}

/// `[A-Za-z0-9._-]+`, and neither of the two names that lead elsewhere.
pub(crate) fn is_plain_name(text: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    !matches!(text, "" | "." | "..") && text.len() <= 200 && text.bytes().all(plain)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn good() -> Value {
        json!({
            "schemaVersion": 1, "bundleId": "base_1.0-x", "name": "Base", "arch": "x86_64",
            "firecrackerVersion": "v1.7.0", "rootfsType": "squashfs",
            "kernel": { "url": "https://a.example/k/vmlinux?x=1", "sha256": "A".repeat(64), "sizeBytes": 0 },
            "rootfs": { "path": "files/root.squashfs", "fileName": "r" },
            "somethingNew": true,
        })
    }

    fn parse(value: &Value, origin: Origin) -> Result<Manifest, ManifestError> {
        Manifest::parse(value.to_string().as_bytes(), Architecture::X86_64, origin)
    }

    #[test]
    fn a3_3_a_good_manifest_is_read_with_its_defaults() {
        let manifest = parse(&good(), Origin::LocalFile).unwrap();
        assert_eq!(manifest.bundle_id, "base_1.0-x");
        assert_eq!(manifest.firecracker_version.to_string(), "v1.7.0");
        assert!(manifest.rootfs_is_read_only, "squashfs is");
        assert_eq!(manifest.kernel.file_name, "vmlinux");
        assert_eq!(manifest.kernel.size_bytes, Some(0));
        assert_eq!(manifest.kernel.sha256, Some("a".repeat(64)));
        assert_eq!(manifest.rootfs.file_name, "r");
        let mut ext4 = good();
        ext4["rootfsType"] = "ext4".into();
        assert!(!parse(&ext4, Origin::LocalFile).unwrap().rootfs_is_read_only);
        ext4["rootfsIsReadOnly"] = true.into();
        assert!(parse(&ext4, Origin::LocalFile).unwrap().rootfs_is_read_only);
    }

    #[test]
    fn a3_3_every_broken_rule_is_named() {
        use ManifestError as E;
        let url = || json!({ "url": "https://a.example/r", "sha256": "b".repeat(64) });
        let with = |key: &str, value: Value| {
            let mut object = url();
            object[key] = value;
            object
        };
        let cases: Vec<(&str, Value, ManifestError)> = vec![
            ("schemaVersion", 2.into(), E::Schema),
            ("schemaVersion", "1".into(), E::Schema),
            ("schemaVersion", Value::Null, E::Schema),
            ("bundleId", "".into(), E::BundleId),
            ("bundleId", "..".into(), E::BundleId),
            ("bundleId", "a/b".into(), E::BundleId),
            ("bundleId", "a b".into(), E::BundleId),
            ("arch", "aarch64".into(), E::Arch("x86_64")),
            ("firecrackerVersion", "1.7.0".into(), E::Version),
            ("firecrackerVersion", "v1.7".into(), E::Version),
            ("rootfsType", "erofs".into(), E::RootfsType),
            ("rootfs", json!({}), E::Place("rootfs")),
            (
                "rootfs",
                json!({ "url": "", "path": "" }),
                E::Place("rootfs"),
            ),
            ("rootfs", with("path", "p".into()), E::Place("rootfs")),
            (
                "rootfs",
                json!({ "url": "https://a.example/r" }),
                E::NoDigest("rootfs"),
            ),
            (
                "rootfs",
                with("sha256", "b".repeat(63).into()),
                E::Digest("rootfs"),
            ),
            (
                "rootfs",
                with("sha256", "g".repeat(64).into()),
                E::Digest("rootfs"),
            ),
            ("rootfs", with("sizeBytes", (-1).into()), E::Size("rootfs")),
            ("rootfs", with("sizeBytes", 1.5.into()), E::Size("rootfs")),
            ("rootfs", with("sizeBytes", "1".into()), E::Size("rootfs")),
            (
                "rootfs",
                with("fileName", "../../etc/passwd".into()),
                E::FileName("rootfs"),
            ),
            (
                "rootfs",
                with("fileName", "..".into()),
                E::FileName("rootfs"),
            ),
            ("rootfs", with("fileName", "".into()), E::FileName("rootfs")),
            (
                "rootfs",
                with("fileName", "bundle.json".into()),
                E::FileName("rootfs"),
            ),
            (
                "rootfs",
                with("fileName", "vmlinux".into()),
                E::SameFileName,
            ),
        ];
        for (key, value, expected) in cases {
            let mut manifest = good();
            manifest[key] = value.clone();
            let found = parse(&manifest, Origin::LocalFile);
            assert_eq!(found, Err(expected), "{key} = {value}");
        }
        let mut kind = good();
        kind["bootArgs"] = 5.into();
        assert!(matches!(parse(&kind, Origin::LocalFile), Err(E::Json(_))));
        assert!(matches!(
            Manifest::parse(b"{", Architecture::X86_64, Origin::LocalFile),
            Err(E::Json(_))
        ));
    }

    /// What a server sends must not choose which of this host's files guests get to see.
    #[test]
    fn a_manifest_from_a_server_names_no_local_files() {
        let refused = parse(&good(), Origin::Url);
        assert_eq!(refused, Err(ManifestError::RemotePath("rootfs")));
    }
}
