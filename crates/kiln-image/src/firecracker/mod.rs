//! Firecracker's released binaries: resolved, downloaded, verified, kept per version.
//!
//! A release is believed when its archive has the SHA-256 that is published beside it, and each
//! program the one of the archive's own list. It appears whole or not at all, and is fetched once
//! however many ask. What is there already needs no network. This room runs nothing.

mod archive;
mod tag;
#[cfg(test)]
mod tests;

use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};
use thiserror::Error;

pub use self::tag::{ReleaseTag, ReleaseTagError};
use crate::download::{Download, DownloadError, fetch, fetch_text, first_redirect};
use crate::kernel::Architecture;
use crate::progress::{Progress, ProgressEvent};
use crate::publish::{digest_reader, sync_directory, write_atomically};

const RELEASES: &str = "https://github.com/firecracker-microvm/firecracker/releases";
/// Releases have about 20 MiB.
const MAX_ARCHIVE_BYTES: u64 = 256 << 20;
/// A digest and a name.
const MAX_DIGEST_FILE_BYTES: u64 = 4096;
const STALL: Duration = Duration::from_secs(30);
const RECORD: &str = "release.json";
const FIRECRACKER: &str = "firecracker";
const JAILER: &str = "jailer";

/// Which release.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Release {
    /// The newest that is published.
    Latest,
    /// This one.
    Pinned(ReleaseTag),
}

/// A release that is here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InstalledRelease {
    /// Its version.
    pub tag: ReleaseTag,
    /// The VMM.
    pub firecracker: PathBuf,
    /// Its jailer.
    pub jailer: PathBuf,
    /// SHA-256 of the archive that it came from.
    pub archive_sha256: String,
}

/// What is written beside the programs.
#[derive(Debug, Serialize, Deserialize)]
struct Record {
    archive_sha256: String,
    firecracker_sha256: String,
    jailer_sha256: String,
}

/// Why there is no release.
#[derive(Debug, Error)]
pub enum ReleaseError {
    /// It cannot be fetched.
    #[error(transparent)]
    Download(#[from] DownloadError),
    /// Nobody says which is the newest.
    #[error("cannot find out which release of Firecracker is the newest")]
    Latest(#[source] DownloadError),
    /// The place where the newest one is named does not name one.
    #[error("{url} does not lead to a release but to {found:?}")]
    NoLatest {
        /// The place.
        url: String,
        /// What it led to.
        found: String,
    },
    /// What should be the digest of an archive is none.
    #[error("{url} holds no SHA-256 of {archive}")]
    NoDigest {
        /// Where it should be.
        url: String,
        /// Of what.
        archive: String,
    },
    /// The archive is not one of a release.
    #[error("the archive of {tag} cannot be used: {problem}")]
    Archive {
        /// The release.
        tag: ReleaseTag,
        /// What is wrong.
        problem: String,
    },
    /// It is not here, and the network is not to be used.
    #[error("Firecracker {0} is not installed, and nothing is downloaded in offline mode")]
    Offline(String),
    /// A file cannot be read or written.
    #[error("cannot {step} {}", path.display())]
    File {
        /// What was being done.
        step: &'static str,
        /// With what.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
}

impl ReleaseError {
    /// The code that callers of the SDK know (parity A9).
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Latest(_) | Self::NoLatest { .. } => "VERSION_FETCH_FAILED",
            Self::Download(_) | Self::NoDigest { .. } | Self::Archive { .. } => "DOWNLOAD_FAILED",
            Self::Offline(_) | Self::File { .. } => "BINARY_NOT_FOUND",
        }
    }
}

/// Where releases are kept, and come from.
#[derive(Clone, Debug)]
pub struct FirecrackerStore {
    dir: PathBuf,
    releases: String,
    architecture: &'static str,
    stall: Duration,
    offline: bool,
}

impl FirecrackerStore {
    /// Keeps releases in `dir`, which is made when it is needed.
    #[must_use]
    pub fn new(dir: impl Into<PathBuf>) -> Self {
        Self {
            dir: dir.into(),
            releases: RELEASES.to_owned(),
            architecture: Architecture::host().name(),
            stall: STALL,
            offline: false,
        }
    }

    /// Takes releases from a mirror: `URL/latest`, `URL/download/TAG/…`.
    #[must_use]
    pub fn with_releases(mut self, url: impl Into<String>) -> Self {
        self.releases = url.into();
        self
    }

    /// Keeps releases for another processor than this machine's, as for a host that is being
    /// prepared.
    #[must_use]
    pub fn with_architecture(mut self, architecture: Architecture) -> Self {
        self.architecture = architecture.name();
        self
    }

    /// Gives a transfer up when nothing comes for so long.
    #[must_use]
    pub fn with_stall(mut self, stall: Duration) -> Self {
        self.stall = stall;
        self
    }

    /// Never uses the network.
    #[must_use]
    pub fn offline(mut self) -> Self {
        self.offline = true;
        self
    }

    /// Where a release has its VMM once it is installed.
    #[must_use]
    pub fn firecracker(&self, tag: &ReleaseTag) -> PathBuf {
        self.dir_of(tag).join(FIRECRACKER)
    }

    /// Where a release has its jailer once it is installed.
    #[must_use]
    pub fn jailer(&self, tag: &ReleaseTag) -> PathBuf {
        self.dir_of(tag).join(JAILER)
    }

    /// The newest release that is published, by where its page redirects to.
    ///
    /// # Errors
    /// No network, or no such page.
    pub async fn latest(&self) -> Result<ReleaseTag, ReleaseError> {
        if self.offline {
            return Err(ReleaseError::Offline("latest".to_owned()));
        }
        let url = format!("{}/latest", self.releases);
        let found = first_redirect(&url, self.stall)
            .await
            .map_err(ReleaseError::Latest)?;
        let tag = found.rsplit('/').next().and_then(|name| name.parse().ok());
        tag.ok_or(ReleaseError::NoLatest { url, found })
    }

    /// A release that is here already; needs no network.
    ///
    /// # Errors
    /// It is damaged: what is there has other bytes than were installed.
    pub fn installed(&self, tag: &ReleaseTag) -> Result<Option<InstalledRelease>, ReleaseError> {
        let dir = self.dir_of(tag);
        let path = dir.join(RECORD);
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(failed("read", &path)(source)),
        };
        let damaged = |problem: &str| ReleaseError::Archive {
            tag: tag.clone(),
            problem: problem.to_owned(),
        };
        let record: Record =
            serde_json::from_slice(&text).map_err(|_| damaged("its record is damaged"))?;
        let release = InstalledRelease {
            tag: tag.clone(),
            firecracker: self.firecracker(tag),
            jailer: self.jailer(tag),
            archive_sha256: record.archive_sha256,
        };
        for (path, expected) in [
            (&release.firecracker, &record.firecracker_sha256),
            (&release.jailer, &record.jailer_sha256),
        ] {
            let opened = File::open(path).map_err(failed("open", path))?;
            let (found, _) = digest_reader(opened).map_err(failed("read", path))?;
            if found != *expected {
                return Err(damaged("a program was changed after it was installed"));
            }
        }
        Ok(Some(release))
    }

    /// The newest release that is here, whole; needs no network.
    #[must_use]
    pub fn newest_installed(&self) -> Option<InstalledRelease> {
        let suffix = format!("-{}", self.architecture);
        let mut tags: Vec<ReleaseTag> = fs::read_dir(&self.dir)
            .ok()?
            .filter_map(|entry| {
                let name = entry.ok()?.file_name().into_string().ok()?;
                name.strip_suffix(&suffix)?.parse().ok()
            })
            .collect();
        tags.sort_unstable();
        tags.iter()
            .rev()
            .find_map(|tag| self.installed(tag).ok().flatten())
    }

    /// The release, downloaded unless it is here. Callers at the same time, of other processes
    /// too, wait for one download.
    ///
    /// # Errors
    /// As [`ReleaseError`] says; nothing is left of it then.
    pub async fn install(
        &self,
        release: &Release,
        progress: &dyn Progress,
    ) -> Result<InstalledRelease, ReleaseError> {
        let tag = match release {
            Release::Latest => self.latest().await?,
            Release::Pinned(tag) => tag.clone(),
        };
        if let Some(release) = self.installed(&tag)? {
            return Ok(release);
        }
        if self.offline {
            return Err(ReleaseError::Offline(tag.to_string()));
        }
        fs::create_dir_all(&self.dir).map_err(failed("make", &self.dir))?;
        let _turn = self.lock(&tag).await?;
        // Whoever had the turn before has done it, or failed.
        if let Some(release) = self.installed(&tag)? {
            return Ok(release);
        }
        self.fetch(&tag, progress).await?;
        self.installed(&tag)?.ok_or(ReleaseError::Archive {
            tag,
            problem: "it vanished while it was installed".to_owned(),
        })
    }

    async fn fetch(&self, tag: &ReleaseTag, progress: &dyn Progress) -> Result<(), ReleaseError> {
        let archive = format!("firecracker-{tag}-{}.tgz", self.architecture);
        let url = format!("{}/download/{tag}/{archive}", self.releases);
        let digest_url = format!("{url}.sha256.txt");
        let text = fetch_text(&digest_url, MAX_DIGEST_FILE_BYTES, self.stall).await?;
        let sha256 = tag::digest_of(&text, &archive).ok_or(ReleaseError::NoDigest {
            url: digest_url,
            archive,
        })?;
        let work = tempfile::Builder::new()
            .prefix(".partial-")
            .tempdir_in(&self.dir)
            .map_err(failed("work in", &self.dir))?;
        let target = work.path().join("archive.tgz");
        let download = Download {
            max_size: MAX_ARCHIVE_BYTES,
            stall: self.stall,
            ..Download::new(&url, &sha256)
        };
        fetch(&download, &target, progress).await?;
        progress.report(ProgressEvent::Step(format!("Unpacking Firecracker {tag}")));
        let (store, tag) = (self.clone(), tag.clone());
        // Unpacks and hashes. A runtime that shuts down drops the job with its directory.
        let unpacked =
            tokio::task::spawn_blocking(move || store.unpack(&tag, &target, &sha256, work)).await;
        unpacked.unwrap_or_else(|error| Err(failed("unpack", &self.dir)(io::Error::other(error))))
    }

    fn unpack(
        &self,
        tag: &ReleaseTag,
        archive: &Path,
        sha256: &str,
        work: tempfile::TempDir,
    ) -> Result<(), ReleaseError> {
        let ready = work.path().join("ready");
        fs::create_dir(&ready).map_err(failed("make", &ready))?;
        let programs = archive::unpack(tag, self.architecture, archive, &ready)?;
        let record = Record {
            archive_sha256: sha256.to_owned(),
            firecracker_sha256: programs.firecracker_sha256,
            jailer_sha256: programs.jailer_sha256,
        };
        let path = ready.join(RECORD);
        let text = serde_json::to_vec_pretty(&record)
            .map_err(|error| failed("write", &path)(error.into()))?;
        write_atomically(&path, &text).map_err(failed("write", &path))?;
        fs::set_permissions(&ready, Permissions::from_mode(0o755))
            .map_err(failed("open up", &ready))?;
        let target = self.dir_of(tag);
        if target.exists() {
            // Without a record it is no release: the rest of one that somebody took apart.
            fs::remove_dir_all(&target).map_err(failed("replace", &target))?;
        }
        fs::rename(&ready, &target).map_err(failed("publish", &target))?;
        sync_directory(&self.dir).map_err(failed("write out", &self.dir))
    }

    /// Programs keep their plain names: the jailer names directories after them.
    fn dir_of(&self, tag: &ReleaseTag) -> PathBuf {
        self.dir.join(format!("{tag}-{}", self.architecture))
    }

    async fn lock(&self, tag: &ReleaseTag) -> Result<File, ReleaseError> {
        let path = self.dir.join(format!(".lock-{tag}"));
        let lock = move || {
            let file = File::options().create(true).append(true).open(&path);
            let file = file.map_err(failed("open", &path))?;
            flock(&file, FlockOperation::LockExclusive)
                .map_err(|errno| failed("lock", &path)(errno.into()))?;
            Ok(file)
        };
        let locked = tokio::task::spawn_blocking(lock).await;
        locked.unwrap_or_else(|error| Err(failed("lock", &self.dir)(io::Error::other(error))))
    }
}

fn failed(step: &'static str, path: &Path) -> impl Fn(io::Error) -> ReleaseError {
    let path = path.to_owned();
    move |source| ReleaseError::File {
        step,
        path: path.clone(),
        source,
    }
}
