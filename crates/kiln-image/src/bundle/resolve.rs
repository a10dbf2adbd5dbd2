//! From what was asked for to exactly which files.

use std::path::{Path, PathBuf};

use super::args::boot_args;
use super::listing::{self, Object, Page};
use super::manifest::{self, Artifact, Manifest, Origin, Place};
use super::version::FirecrackerVersion;
use super::{BundleError, BundleSource, DebianParts, ManifestSource, Origins, Preset, RootfsType};
use crate::download::{Download, DownloadError, fetch_blocking, redirect_blocking};
use crate::kernel::{Architecture, firecracker_ci};
use crate::progress::Silent;
use crate::publish::digest_reader;

/// The release that parity names for those who want no change.
const LTS: FirecrackerVersion = FirecrackerVersion::new(1, 7, 0);
/// A listing of more pages is not of one train and architecture.
const MAX_PAGES: usize = 20;

/// A bundle that is known but perhaps not here.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub(super) preset: Preset,
    pub(super) id: String,
    pub(super) firecracker_version: FirecrackerVersion,
    pub(super) rootfs_type: RootfsType,
    pub(super) rootfs_is_read_only: bool,
    pub(super) boot_args: String,
    /// Where it comes from, for people.
    pub(super) source: String,
    pub(super) kernel_bundle: Option<String>,
    pub(super) kernel: Wanted,
    pub(super) rootfs: Wanted,
}

/// A file of the bundle.
#[derive(Clone, Debug)]
pub(super) struct Wanted {
    pub(super) from: From,
    pub(super) file_name: String,
    pub(super) sha256: Option<String>,
    pub(super) size_bytes: Option<u64>,
}

#[derive(Clone, Debug)]
pub(super) enum From {
    Url(String),
    File(PathBuf),
}

/// Finds out what the source means now. `temporary` takes the answers of servers.
pub(super) fn resolve(
    source: &BundleSource,
    origins: &Origins,
    temporary: &Path,
) -> Result<Plan, BundleError> {
    match source {
        BundleSource::Latest => {
            let version = latest_release(&origins.latest_release)?;
            from_bucket(Preset::Latest, version, origins, temporary)
        }
        BundleSource::Lts => from_bucket(Preset::Lts, LTS, origins, temporary),
        BundleSource::Hosted(manifest) => from_manifest(manifest, temporary),
        BundleSource::Debian(parts) => Ok(from_debian(parts)),
    }
}

/// The tag that the page of the latest release redirects to.
fn latest_release(url: &str) -> Result<FirecrackerVersion, BundleError> {
    let answer = redirect_blocking(url).map_err(BundleError::Release)?;
    let tag = answer.rsplit('/').next().unwrap_or_default();
    tag.parse().map_err(|_| BundleError::ReleaseName { answer })
}

fn from_bucket(
    preset: Preset,
    version: FirecrackerVersion,
    origins: &Origins,
    temporary: &Path,
) -> Result<Plan, BundleError> {
    let architecture = Architecture::host();
    let train = version.train();
    let prefix = format!("firecracker-ci/{train}/{}/", architecture.name());
    let bucket = origins.bucket.trim_end_matches('/');
    let objects = list(bucket, &prefix, temporary)?;
    let missing = |missing| BundleError::NotListed {
        place: format!("{bucket}/{prefix}"),
        missing,
    };
    let kernel = listing::kernel(&objects, &prefix).ok_or_else(|| missing("kernel"))?;
    let rootfs = listing::rootfs(&objects, &prefix).ok_or_else(|| missing("root filesystem"))?;
    let (kernel, rootfs) = (
        wanted(kernel, bucket, &prefix),
        wanted(rootfs, bucket, &prefix),
    );
    let rootfs_type = if rootfs.file_name.ends_with(".squashfs") {
        RootfsType::Squashfs
    } else {
        RootfsType::Ext4
    };
    Ok(Plan {
        preset,
        id: format!(
            "{}-{}-{train}-{}-{}",
            preset.name(),
            architecture.name(),
            kernel.file_name,
            rootfs.file_name
        ),
        firecracker_version: version,
        rootfs_type,
        rootfs_is_read_only: rootfs_type == RootfsType::Squashfs,
        boot_args: boot_args(architecture, rootfs_type),
        source: format!("{bucket}/{prefix}"),
        kernel_bundle: None,
        kernel,
        rootfs,
    })
}

fn wanted(object: &Object, bucket: &str, prefix: &str) -> Wanted {
    let file_name = listing::file_name(object, prefix).unwrap_or_default();
    Wanted {
        from: From::Url(format!("{bucket}/{}", object.key)),
        file_name: file_name.to_owned(),
        // Nobody publishes digests for these; for some we have our own.
        sha256: firecracker_ci::pinned_digest(&object.key).map(str::to_owned),
        size_bytes: object.size,
    }
}

/// All objects below the prefix whose names can be files of ours.
fn list(bucket: &str, prefix: &str, temporary: &Path) -> Result<Vec<Object>, BundleError> {
    let first = format!("{bucket}/?list-type=2&prefix={}", escaped(prefix));
    let mut url = first.clone();
    let mut objects = Vec::new();
    for _ in 0..MAX_PAGES {
        let text =
            text(&url, listing::MAX_PAGE, temporary).map_err(|source| BundleError::List {
                url: url.clone(),
                source: Box::new(source),
            })?;
        let page = Page::parse(&String::from_utf8_lossy(&text)).map_err(|source| {
            BundleError::Listing {
                url: url.clone(),
                source,
            }
        })?;
        let plain = |object: &Object| {
            listing::file_name(object, prefix).is_some_and(manifest::is_plain_name)
        };
        objects.extend(page.objects.into_iter().filter(plain));
        match page.next {
            Some(token) => url = format!("{first}&continuation-token={}", escaped(&token)),
            None => break,
        }
    }
    Ok(objects)
}

/// As a value in a query.
fn escaped(text: &str) -> String {
    let escape = |byte: u8| {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            char::from(byte).to_string()
        } else {
            format!("%{byte:02X}")
        }
    };
    text.bytes().map(escape).collect()
}

/// The content of a short file that nobody knows in advance.
fn text(url: &str, max_size: u64, temporary: &Path) -> Result<Vec<u8>, DownloadError> {
    let target = temporary.join("answer");
    let download = Download {
        max_size,
        ..Download::unpinned(url)
    };
    fetch_blocking(&download, &target, &Silent)?;
    std::fs::read(&target).map_err(|source| DownloadError::Write {
        path: target,
        source,
    })
}

fn from_manifest(source: &ManifestSource, temporary: &Path) -> Result<Plan, BundleError> {
    let (name, text, origin, base) = match source {
        ManifestSource::Url(url) => {
            let text = text(url, manifest::MAX_MANIFEST, temporary);
            let text = text.map_err(BundleError::FetchManifest)?;
            (url.clone(), text, Origin::Url, PathBuf::new())
        }
        ManifestSource::File(path) => {
            let base = path.parent().unwrap_or(Path::new("")).to_owned();
            let name = path.display().to_string();
            (name, read(path)?, Origin::LocalFile, base)
        }
    };
    let architecture = Architecture::host();
    let manifest = Manifest::parse(&text, architecture, origin).map_err(|source| {
        BundleError::InvalidManifest {
            manifest: name.clone(),
            source,
        }
    })?;
    let (kernel, rootfs) = (
        wanted_artifact(manifest.kernel, &base)?,
        wanted_artifact(manifest.rootfs, &base)?,
    );
    Ok(Plan {
        preset: Preset::Hosted,
        id: manifest.bundle_id,
        firecracker_version: manifest.firecracker_version,
        rootfs_type: manifest.rootfs_type,
        rootfs_is_read_only: manifest.rootfs_is_read_only,
        boot_args: manifest
            .boot_args
            .unwrap_or_else(|| boot_args(architecture, manifest.rootfs_type)),
        source: name,
        kernel_bundle: None,
        kernel,
        rootfs,
    })
}

/// A local file without a digest is known by the one that it has now: a changed file is another
/// bundle.
fn wanted_artifact(artifact: Artifact, base: &Path) -> Result<Wanted, BundleError> {
    let (from, sha256) = match artifact.place {
        Place::Url(url) => (From::Url(url), artifact.sha256),
        Place::Path(path) => {
            let path = base.join(path);
            let sha256 = match artifact.sha256 {
                Some(sha256) => sha256,
                None => digest_of(&path)?,
            };
            (From::File(path), Some(sha256))
        }
    };
    Ok(Wanted {
        from,
        file_name: artifact.file_name,
        sha256,
        size_bytes: artifact.size_bytes,
    })
}

fn digest_of(path: &Path) -> Result<String, BundleError> {
    let digest = std::fs::File::open(path).and_then(digest_reader);
    let (sha256, _) = digest.map_err(|source| BundleError::Io {
        action: "read",
        path: path.into(),
        source,
    })?;
    Ok(sha256)
}

fn read(path: &Path) -> Result<Vec<u8>, BundleError> {
    use std::io::Read;
    let mut text = Vec::new();
    std::fs::File::open(path)
        .and_then(|file| file.take(manifest::MAX_MANIFEST).read_to_end(&mut text))
        .map_err(|source| BundleError::ReadManifest {
            path: path.into(),
            source,
        })?;
    Ok(text)
}

fn from_debian(parts: &DebianParts) -> Plan {
    let architecture = Architecture::host();
    let file = |path: &Path, name: &str| Wanted {
        from: From::File(path.into()),
        file_name: name.into(),
        sha256: None,
        size_bytes: None,
    };
    let short = |id: &str| id.chars().take(12).collect::<String>();
    Plan {
        preset: Preset::Debian,
        // Both ids are digests of the content: another content is another bundle.
        id: format!(
            "debian-{}-{}-{}",
            architecture.name(),
            short(&parts.kernel_bundle),
            short(&parts.image_id)
        ),
        firecracker_version: parts.firecracker_version,
        rootfs_type: RootfsType::Ext4,
        rootfs_is_read_only: true,
        boot_args: boot_args(architecture, RootfsType::Ext4),
        source: parts.source.clone(),
        kernel_bundle: Some(parts.kernel_bundle.clone()),
        kernel: file(&parts.kernel, "vmlinux"),
        rootfs: file(&parts.rootfs, "rootfs.ext4"),
    }
}
