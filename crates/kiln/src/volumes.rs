//! The volumes of a host: kept by the store of volumes, held by the sandboxes that have them or by
//! whoever changes them. One that is written to has one holder; one that is only read has many.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use kiln_image::{Volume, VolumeError, VolumeName, VolumeStore};
use kiln_vmm::{Disk, DiskOptions};

use crate::error::{Error, ErrorCode};
use crate::host::Host;
use crate::material::blocking;
use crate::sandbox::SandboxSpec;
use crate::store::SandboxRow;

/// A volume to make.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewVolume {
    /// Its name.
    pub name: String,
    /// What it holds at first.
    pub source: VolumeSource,
}

/// What a volume holds at first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VolumeSource {
    /// An empty filesystem of this many bytes.
    Blank(u64),
    /// What another volume holds now.
    CloneOf(String),
    /// What an ext4 image file holds, grown to so many bytes where that is more.
    File(PathBuf, Option<u64>),
}

/// The volumes, and who has which.
#[derive(Debug)]
pub(crate) struct Volumes {
    store: VolumeStore,
    held: Arc<Mutex<Held>>,
}

type Held = BTreeMap<VolumeName, Vec<Holder>>;

#[derive(Clone, Debug, PartialEq, Eq)]
struct Holder {
    who: String,
    read_only: bool,
}

/// Volumes that are held until the last clone of this is dropped.
#[derive(Clone, Debug)]
#[must_use = "dropped, the volumes are anybody's"]
pub(crate) struct VolumeClaims(#[allow(dead_code, reason = "held for its drop")] Arc<Claims>);

#[derive(Debug)]
struct Claims {
    held: Arc<Mutex<Held>>,
    mine: Vec<(VolumeName, Holder)>,
}

impl Drop for Claims {
    fn drop(&mut self) {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        for (name, mine) in &self.mine {
            if let Some(holders) = held.get_mut(name)
                && let Some(place) = holders.iter().position(|holder| holder == mine)
            {
                holders.swap_remove(place);
            }
        }
        held.retain(|_, holders| !holders.is_empty());
    }
}

impl Volumes {
    pub(crate) fn open(root: PathBuf) -> Result<Self, Error> {
        Ok(Self {
            store: VolumeStore::open(root)?,
            held: Arc::default(),
        })
    }

    /// Takes all volumes of a sandbox, or none.
    pub(crate) fn claim(&self, row: &SandboxRow) -> Result<VolumeClaims, Error> {
        let mounts = row.spec.volumes.iter();
        let wanted: Result<Vec<_>, Error> = mounts
            .map(|mount| Ok((named(&mount.volume)?, mount.read_only)))
            .collect();
        self.take(&format!("sandbox {}", row.id), wanted?)
    }

    fn take(&self, who: &str, wanted: Vec<(VolumeName, bool)>) -> Result<VolumeClaims, Error> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        for (name, read_only) in &wanted {
            let holders = held.get(name).into_iter().flatten();
            let mut in_the_way = holders.filter(|holder| !(holder.read_only && *read_only));
            if let Some(holder) = in_the_way.next() {
                return Err(in_use(name, &holder.who));
            }
        }
        let mine = wanted.into_iter().map(|(name, read_only)| {
            let who = who.to_owned();
            (name, Holder { who, read_only })
        });
        let mine: Vec<_> = mine.collect();
        for (name, holder) in &mine {
            held.entry(name.clone()).or_default().push(holder.clone());
        }
        drop(held);
        Ok(VolumeClaims(Arc::new(Claims {
            held: Arc::clone(&self.held),
            mine,
        })))
    }

    /// The block devices of a sandbox's volumes, in the order of its spec.
    pub(crate) async fn disks(&self, spec: &SandboxSpec) -> Result<Vec<Disk>, Error> {
        let (store, mounts) = (self.store.clone(), spec.volumes.clone());
        blocking(move || {
            let disk = |(place, mount): (usize, &crate::VolumeMount)| {
                let name = named(&mount.volume)?;
                let volume = if mount.read_only {
                    store.open_to_readers(&name)?
                } else {
                    existing(&store, &name)?
                };
                Ok(Disk {
                    id: format!("volume{place}"),
                    path: volume.path,
                    read_only: mount.read_only,
                    options: DiskOptions {
                        // It outlives the machine: what the guest flushed must outlive the host.
                        writeback: true,
                        ..DiskOptions::default()
                    },
                })
            };
            mounts.iter().enumerate().map(disk).collect()
        })
        .await
    }

    /// Changes volumes that nobody else has, where blocking is allowed.
    async fn change<T, F>(&self, names: Vec<(VolumeName, bool)>, work: F) -> Result<T, Error>
    where
        T: Send + 'static,
        F: FnOnce(&VolumeStore) -> Result<T, VolumeError> + Send + 'static,
    {
        let claims = self.take("another command", names)?;
        let store = self.store.clone();
        blocking(move || {
            // Held to the end also when the caller leaves.
            let _claims = claims;
            Ok(work(&store)?)
        })
        .await
    }
}

/// Who holds what is known here, and claimed before the store is asked.
fn nobody_else(_: &VolumeName) -> bool {
    false
}

/// What the agent is told: which device goes where. Devices are named in the order of the disks.
pub(crate) fn boot_args(spec: &SandboxSpec) -> Vec<String> {
    let first = if spec.tmpfs { b'b' } else { b'c' };
    let devices = (first..=b'z').map(char::from);
    let mounts = devices.zip(&spec.volumes);
    mounts
        .map(|(letter, mount)| {
            let mode = if mount.read_only { ":ro" } else { "" };
            format!("kiln.volume=/dev/vd{letter}:{}{mode}", mount.path)
        })
        .collect()
}

impl Host {
    /// All volumes, by name.
    ///
    /// # Errors
    /// [`ErrorCode::Host`] when they cannot be read.
    pub async fn volumes(&self) -> Result<Vec<Volume>, Error> {
        self.shared
            .volumes
            .change(Vec::new(), VolumeStore::list)
            .await
    }

    /// One volume.
    ///
    /// # Errors
    /// [`ErrorCode::VolumeNotFound`].
    pub async fn volume(&self, name: &str) -> Result<Volume, Error> {
        let (store, name) = (self.shared.volumes.store.clone(), named(name)?);
        blocking(move || existing(&store, &name)).await
    }

    /// Makes a volume.
    ///
    /// # Errors
    /// [`ErrorCode::NameTaken`], [`ErrorCode::InvalidSpec`], [`ErrorCode::VolumeInUse`] when the one
    /// to clone is being written to, [`ErrorCode::VolumeFailed`].
    pub async fn create_volume(&self, volume: NewVolume) -> Result<Volume, Error> {
        let name = named(&volume.name)?;
        let volumes = &self.shared.volumes;
        match volume.source {
            VolumeSource::Blank(size) => {
                let create = move |store: &VolumeStore| store.create(&name, size);
                volumes.change(Vec::new(), create).await
            }
            VolumeSource::CloneOf(from) => {
                let from = named(&from)?;
                let clone = {
                    let from = from.clone();
                    move |store: &VolumeStore| store.clone_volume(&from, &name, &nobody_else)
                };
                volumes.change(vec![(from, true)], clone).await
            }
            VolumeSource::File(path, size) => {
                let import = move |store: &VolumeStore| store.import(&name, &path, size);
                volumes.change(Vec::new(), import).await
            }
        }
    }

    /// Grows a volume.
    ///
    /// # Errors
    /// [`ErrorCode::VolumeNotFound`], [`ErrorCode::VolumeInUse`], [`ErrorCode::InvalidSpec`].
    pub async fn resize_volume(&self, name: &str, size_bytes: u64) -> Result<Volume, Error> {
        let name = named(name)?;
        let claimed = vec![(name.clone(), false)];
        let resize = move |store: &VolumeStore| store.resize(&name, size_bytes, &nobody_else);
        self.shared.volumes.change(claimed, resize).await
    }

    /// Copies a volume into a new file.
    ///
    /// # Errors
    /// [`ErrorCode::VolumeNotFound`], [`ErrorCode::VolumeInUse`] when it is being written to.
    pub async fn export_volume(&self, name: &str, to: PathBuf) -> Result<(), Error> {
        let name = named(name)?;
        let claimed = vec![(name.clone(), true)];
        let export = move |store: &VolumeStore| store.export(&name, &to, &nobody_else);
        self.shared.volumes.change(claimed, export).await
    }

    /// Removes a volume and all it holds.
    ///
    /// # Errors
    /// [`ErrorCode::VolumeNotFound`]; [`ErrorCode::VolumeInUse`] when a sandbox names it, running or
    /// not.
    pub async fn remove_volume(&self, name: &str) -> Result<(), Error> {
        let name = named(name)?;
        let claims = |row: &SandboxRow| {
            let mut mounts = row.spec.volumes.iter();
            mounts.any(|mount| mount.volume == name.as_str())
        };
        let views = self.shared.views();
        if let Some(view) = views.iter().find(|view| claims(&view.row)) {
            return Err(in_use(&name, &format!("sandbox {}", view.row.id)));
        }
        let claimed = vec![(name.clone(), false)];
        let remove = move |store: &VolumeStore| store.remove(&name, &nobody_else);
        self.shared.volumes.change(claimed, remove).await
    }
}

fn named(name: &str) -> Result<VolumeName, Error> {
    name.parse().map_err(|source: kiln_image::VolumeNameError| {
        Error::new(ErrorCode::InvalidSpec, format!("{name:?}: {source}"))
    })
}

fn existing(store: &VolumeStore, name: &VolumeName) -> Result<Volume, Error> {
    let missing = || VolumeError::NotFound(name.clone());
    Ok(store.get(name)?.ok_or_else(missing)?)
}

fn in_use(name: &VolumeName, who: &str) -> Error {
    Error::new(
        ErrorCode::VolumeInUse,
        format!("volume {name} is in use by {who}"),
    )
    .with_hint("stop or remove that first; many may have a volume when all only read it (`:ro`)")
}

impl From<VolumeError> for Error {
    fn from(error: VolumeError) -> Self {
        let (code, hint) = match &error {
            VolumeError::Exists(_) => (ErrorCode::NameTaken, Some("`kiln volume ls` lists them")),
            VolumeError::NotFound(_) => (
                ErrorCode::VolumeNotFound,
                Some("`kiln volume create` makes one, `kiln volume ls` lists them"),
            ),
            VolumeError::InUse(_) => (ErrorCode::VolumeInUse, None),
            VolumeError::Size { .. } | VolumeError::Shrink { .. } => (ErrorCode::InvalidSpec, None),
            VolumeError::Io { .. } => (ErrorCode::Host, None),
            _ => (ErrorCode::VolumeFailed, None),
        };
        let told = Self::new(code, error.to_string()).with_source(error);
        match hint {
            Some(hint) => told.with_hint(hint),
            None => told,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sandbox::VolumeMount;

    fn volumes() -> (tempfile::TempDir, Volumes) {
        let dir = tempfile::tempdir().expect("dir");
        let volumes = Volumes::open(dir.path().join("volumes")).expect("open");
        (dir, volumes)
    }

    fn wanted(name: &str, read_only: bool) -> Vec<(VolumeName, bool)> {
        vec![(name.parse().expect("name"), read_only)]
    }

    #[test]
    fn one_writes_or_many_read_until_the_last_clone_is_dropped() {
        let (_dir, volumes) = volumes();
        let writer = volumes.take("a", wanted("data", false)).expect("writer");
        let held = writer.clone();
        for read_only in [true, false] {
            let error = volumes
                .take("b", wanted("data", read_only))
                .expect_err("held");
            assert_eq!(error.code(), ErrorCode::VolumeInUse);
            assert!(error.message().ends_with("in use by a"), "{error}");
        }
        drop(writer);
        volumes.take("b", wanted("data", true)).expect_err("held");
        drop(held);
        let one = volumes.take("a", wanted("data", true)).expect("reader");
        let two = volumes.take("b", wanted("data", true)).expect("reader");
        volumes.take("c", wanted("data", false)).expect_err("read");
        drop((one, two));
        drop(volumes.take("c", wanted("data", false)).expect("free"));
        assert!(volumes.held.lock().expect("held").is_empty());
    }

    #[test]
    fn all_volumes_are_taken_or_none() {
        let (_dir, volumes) = volumes();
        let _writer = volumes.take("a", wanted("two", false)).expect("writer");
        let both = [wanted("one", false), wanted("two", false)].concat();
        volumes.take("b", both).expect_err("two is held");
        drop(volumes.take("c", wanted("one", false)).expect("free"));
    }

    /// A jailed VMM is another user: what it may not read would be copied for it, holes and all.
    #[tokio::test]
    async fn what_is_only_read_can_be_linked_into_a_jail_and_reached_by_nobody_else() {
        use std::os::unix::fs::PermissionsExt;
        let (_dir, volumes) = volumes();
        let name = "data".parse().expect("name");
        volumes.store.create(&name, 64 << 20).expect("create");
        let disk = async |read_only| {
            let mount = VolumeMount {
                volume: "data".into(),
                path: "/data".into(),
                read_only,
            };
            let spec = SandboxSpec {
                volumes: vec![mount],
                ..SandboxSpec::default()
            };
            volumes.disks(&spec).await.expect("disks").remove(0)
        };
        let mode = |path: &std::path::Path| {
            std::fs::metadata(path).expect("there").permissions().mode() & 0o777
        };
        let written = disk(false).await;
        assert_eq!(mode(&written.path), 0o600);
        let read = disk(true).await;
        assert!(read.read_only);
        assert_eq!(mode(&read.path), 0o644);
        assert_eq!(mode(read.path.parent().expect("directory")), 0o700);
    }

    #[test]
    fn devices_follow_the_systems_own() {
        let mount = |path: &str, read_only| VolumeMount {
            volume: "v".into(),
            path: path.into(),
            read_only,
        };
        let mut spec = SandboxSpec {
            volumes: vec![mount("/a", false), mount("/b", true)],
            ..SandboxSpec::default()
        };
        let args = ["kiln.volume=/dev/vdc:/a", "kiln.volume=/dev/vdd:/b:ro"];
        assert_eq!(boot_args(&spec), args);
        spec.tmpfs = true;
        assert_eq!(boot_args(&spec)[0], "kiln.volume=/dev/vdb:/a");
    }
}
