//! Which Firecracker a host uses where none is installed: one of its releases, fetched when a
//! machine first needs it.

use std::fmt;
use std::str::FromStr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use kiln_image::Progress;
use kiln_image::firecracker::{
    FirecrackerStore, InstalledRelease, Release, ReleaseError, ReleaseTag,
};

use crate::config::{Directories, HostConfig};
use crate::error::{Error, ErrorCode};

/// The newest release that this Kiln was held against.
const KNOWN_GOOD: &str = "v1.16.1";
/// How long a failed download is not tried again where there is another engine: every start would
/// wait for it.
const PAUSE: Duration = Duration::from_secs(600);

/// Which release of Firecracker is fetched where none is found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum FirecrackerRelease {
    /// The one that this Kiln was held against.
    #[default]
    KnownGood,
    /// The newest that is published; without a network the newest that was fetched before.
    Latest,
    /// This one.
    Pinned(ReleaseTag),
    /// None: nothing is ever fetched.
    Never,
}

/// A word that names no release.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no release of Firecracker: known-good, latest, never, or one such as v1.16.1")]
pub struct FirecrackerReleaseError(String);

impl FromStr for FirecrackerRelease {
    type Err = FirecrackerReleaseError;

    fn from_str(word: &str) -> Result<Self, Self::Err> {
        match word {
            "known-good" => Ok(Self::KnownGood),
            "latest" => Ok(Self::Latest),
            "never" => Ok(Self::Never),
            tag => {
                let refused = |_| FirecrackerReleaseError(tag.chars().take(40).collect());
                tag.parse().map(Self::Pinned).map_err(refused)
            }
        }
    }
}

impl fmt::Display for FirecrackerRelease {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::KnownGood => formatter.write_str(KNOWN_GOOD),
            Self::Latest => formatter.write_str("the latest release"),
            Self::Pinned(tag) => tag.fmt(formatter),
            Self::Never => formatter.write_str("none"),
        }
    }
}

/// The releases of a host.
#[derive(Debug)]
pub(crate) struct Releases {
    store: FirecrackerStore,
    wanted: FirecrackerRelease,
    /// When a download failed last.
    failed: Mutex<Option<Instant>>,
}

impl Releases {
    pub(crate) fn new(config: &HostConfig, directories: &Directories) -> Self {
        let mut store = FirecrackerStore::new(directories.firecracker());
        if let Some(url) = &config.firecracker_releases {
            store = store.with_releases(url.trim_end_matches('/'));
        }
        Self {
            store,
            wanted: config.firecracker_release.clone(),
            failed: Mutex::default(),
        }
    }

    /// Gives transfers up sooner.
    #[cfg(test)]
    pub(crate) fn impatient(mut self, stall: Duration) -> Self {
        self.store = self.store.with_stall(stall);
        self
    }

    /// Which one there would be.
    pub(crate) fn wanted(&self) -> &FirecrackerRelease {
        &self.wanted
    }

    fn release(&self) -> Option<Release> {
        match &self.wanted {
            FirecrackerRelease::KnownGood => KNOWN_GOOD.parse().ok().map(Release::Pinned),
            FirecrackerRelease::Latest => Some(Release::Latest),
            FirecrackerRelease::Pinned(tag) => Some(Release::Pinned(tag.clone())),
            FirecrackerRelease::Never => None,
        }
    }

    /// The release that is wanted, if it is here already; of the latest, the newest that is here.
    pub(crate) async fn installed(&self) -> Option<InstalledRelease> {
        let (store, release) = (self.store.clone(), self.release()?);
        // Reads and hashes what is there.
        let found = tokio::task::spawn_blocking(move || match release {
            Release::Latest => store.newest_installed(),
            Release::Pinned(tag) => store.installed(&tag).ok().flatten(),
        });
        found.await.ok().flatten()
    }

    /// Whether a release of whatever version is here, for machines that run already.
    pub(crate) async fn any_installed(&self) -> Option<InstalledRelease> {
        let store = self.store.clone();
        let found = tokio::task::spawn_blocking(move || store.newest_installed());
        match self.installed().await {
            Some(release) => Some(release),
            None => found.await.ok().flatten(),
        }
    }

    /// Whether it is worth asking the network where there is another engine.
    pub(crate) fn is_worth_a_try(&self) -> bool {
        let failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        failed.is_none_or(|at| at.elapsed() > PAUSE)
    }

    /// The release that is wanted, fetched unless it is here. `None`: nothing is to be fetched.
    pub(crate) async fn fetch(
        &self,
        progress: &dyn Progress,
    ) -> Result<Option<InstalledRelease>, ReleaseError> {
        let Some(release) = self.release() else {
            return Ok(None);
        };
        let outcome = match (self.store.install(&release, progress).await, &release) {
            // What was the latest at some time is better than none.
            (Err(failure), Release::Latest) => self.installed().await.ok_or(failure),
            (outcome, _) => outcome,
        };
        let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        *failed = outcome.is_err().then(Instant::now);
        outcome.map(Some)
    }
}

impl From<ReleaseError> for Error {
    fn from(error: ReleaseError) -> Self {
        let code = match &error {
            ReleaseError::Latest(_) | ReleaseError::NoLatest { .. } => {
                ErrorCode::VersionFetchFailed
            }
            ReleaseError::Download(_)
            | ReleaseError::NoDigest { .. }
            | ReleaseError::Archive { .. } => ErrorCode::DownloadFailed,
            ReleaseError::Offline(_) => ErrorCode::BinaryNotFound,
            ReleaseError::File { source, .. }
                if source.kind() == std::io::ErrorKind::StorageFull =>
            {
                ErrorCode::DiskFull
            }
            ReleaseError::File { .. } => ErrorCode::Host,
        };
        Self::new(code, "there is no Firecracker, and none can be fetched")
            .with_source(error)
            .with_hint(
                "name a binary with KILN_FIRECRACKER, pin another release with \
                 KILN_FIRECRACKER_VERSION, or name a mirror with KILN_FIRECRACKER_RELEASES",
            )
    }
}
