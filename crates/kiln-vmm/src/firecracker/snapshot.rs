//! Firecracker's side of snapshots: what goes into a jail, what is asked, who serves pages.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use super::config::{
    MemoryBackend, MemoryBackendType, NetworkOverride, SnapshotLoad, VsockOverride,
};
use super::place::Place;
use super::version::{Feature, Version, restore_hangs};
use super::{UFFD_SOCKET, VSOCK_SOCKET};
use crate::error::{JailError, SpawnError};
use crate::jail::{Access, Jail, give_to};
use crate::machine::{MachineRecord, MachineSpec};
use crate::process::{Surroundings, User, VmmCommand, VmmProcess};
use crate::snapshot::{MEMORY, Manifest, Restore, STATE, SnapshotError, UffdHandler};
use crate::uffd;

/// What a load needs, as Firecracker sees it.
#[derive(Clone, Debug)]
pub(super) struct Load {
    pub(super) request: SnapshotLoad,
    pub(super) paused: bool,
}

/// Names in the jail.
const JAILED_STATE: &str = "snapshot-state";
const JAILED_MEMORY: &str = "snapshot-memory";

/// Whether this version can restore at all, and this machine.
pub(super) fn fit(
    spec: &MachineSpec,
    restore: &Restore,
    manifest: &Manifest,
    version: Version,
) -> Result<(), SnapshotError> {
    if restore_hangs(version) {
        return Err(SnapshotError::Unsupported(
            "a machine that Firecracker 1.16.0 restores cannot be reached: use another version",
        ));
    }
    if spec.jail.is_none() {
        let moved =
            |(then, now): (&crate::snapshot::DiskFacts, &crate::Disk)| then.path != now.path;
        if manifest.disks.iter().zip(&spec.disks).any(moved) {
            return Err(SnapshotError::Unsupported(
                "without a jail, disks have to be where they were when the snapshot was made",
            ));
        }
        if spec.agent && !Feature::VsockOverride.is_in(version) {
            return Err(SnapshotError::Unsupported(
                "without a jail, this version of Firecracker cannot move the agent's socket",
            ));
        }
    }
    if restore.step_clock && !Feature::ClockRealtime.is_in(version) {
        return Err(SnapshotError::Unsupported(
            "this version of Firecracker cannot step a guest's clock",
        ));
    }
    Ok(())
}

/// Brings state, memory and disks into the jail, under the names that the snapshot has for them;
/// `spec` then says how Firecracker sees it.
pub(super) fn bring_in(
    jail: &mut Jail,
    spec: &mut MachineSpec,
    manifest: &Manifest,
) -> Result<(), JailError> {
    let Some(restore) = &spec.restore else {
        return Ok(());
    };
    jail.bring_in(&restore.dir.join(STATE), JAILED_STATE, Access::Read)?;
    if restore.uffd.is_none() {
        jail.bring_in(&restore.dir.join(MEMORY), JAILED_MEMORY, Access::Read)?;
    }
    for (then, disk) in manifest.disks.iter().zip(&mut spec.disks) {
        // Only a name: a manifest is no reason to write elsewhere.
        let name = then.path.file_name().unwrap_or_default().to_string_lossy();
        disk.path = jail.bring_in(&disk.path, &name, Access::to(disk))?;
    }
    Ok(())
}

/// The request that loads.
pub(super) fn load(
    spec: &MachineSpec,
    restore: &Restore,
    manifest: &Manifest,
    place: &Place,
    version: Version,
) -> Load {
    let file = |name: &str, jailed: &str| match &spec.jail {
        Some(_) => Path::new("/").join(jailed),
        None => restore.dir.join(name),
    };
    let mem_backend = match &restore.uffd {
        Some(_) => MemoryBackend {
            backend_type: MemoryBackendType::Uffd,
            backend_path: place.inside(UFFD_SOCKET),
        },
        None => MemoryBackend {
            backend_type: MemoryBackendType::File,
            backend_path: file(MEMORY, JAILED_MEMORY),
        },
    };
    let mut request = SnapshotLoad::of(file(STATE, JAILED_STATE), mem_backend);
    if spec.options.track_dirty_pages {
        if Feature::TrackDirtyPagesOnLoad.is_in(version) {
            request.track_dirty_pages = Some(true);
        } else {
            request.enable_diff_snapshots = Some(true);
        }
    }
    request.resume_vm = Some(!restore.paused);
    request.network_overrides = manifest
        .nics
        .iter()
        .zip(&spec.nics)
        .filter(|(then, now)| then.tap != now.tap)
        .map(|(_, now)| NetworkOverride {
            iface_id: now.id.clone(),
            host_dev_name: now.tap.clone(),
        })
        .collect();
    if spec.agent && spec.jail.is_none() {
        request.vsock_override = Some(VsockOverride {
            uds_path: place.inside(VSOCK_SOCKET),
        });
    }
    request.clock_realtime = restore.step_clock.then_some(true);
    Load {
        request,
        paused: restore.paused,
    }
}

/// Starts the process that serves the guest's pages, in the control group of the machine: it ends
/// with its VMM, and its VMM with it.
pub(super) async fn start_handler(
    restore: &Restore,
    handler: &UffdHandler,
    place: &Place,
    record: &MachineRecord,
    vmm: &VmmProcess,
) -> Result<(), SpawnError> {
    let socket = place.opened(UFFD_SOCKET);
    let prepared = |path: &Path| {
        let path = path.to_owned();
        move |source| SpawnError::Runtime { path, source }
    };
    let listener = UnixListener::bind(&socket).map_err(prepared(&socket))?;
    let memory = restore.dir.join(MEMORY);
    let opened = std::fs::File::open(&memory).map_err(prepared(&memory))?;
    let null = |write| {
        let null = std::fs::File::options()
            .write(write)
            .read(!write)
            .open("/dev/null");
        null.map(OwnedFd::from)
            .map_err(prepared(Path::new("/dev/null")))
    };
    let mut command = VmmCommand::new(handler.program.clone(), null(true)?, null(true)?);
    command.args(handler.args.clone());
    let listener = command.inherit(listener.into());
    let memory = command.inherit(opened.into());
    let pidfd = vmm.pidfd().map_err(prepared(&socket))?;
    let vmm = command.inherit(pidfd);
    command.env(
        uffd::VARIABLE,
        format!("listener={listener},memory={memory},vmm={vmm}"),
    );
    let mut surroundings = Surroundings {
        no_new_privs: true,
        ..Surroundings::default()
    };
    if let Some(jail) = &record.jail {
        give_to(&socket, jail.uid, jail.gid)?;
        surroundings.cgroups = jail.group().doors()?;
        surroundings.user = Some(User {
            uid: rustix::fs::Uid::from_raw(jail.uid),
            gid: rustix::fs::Gid::from_raw(jail.gid),
            groups: Vec::new(),
        });
    }
    command.surround(surroundings);
    VmmProcess::spawn(command)
        .await
        .map(drop)
        .map_err(|source| SpawnError::Program {
            program: handler.program.clone(),
            source,
        })
}

/// Where a snapshot is written: in the jail, or where it is wanted at once.
pub(super) struct Written {
    /// On the host.
    pub(super) state: PathBuf,
    pub(super) memory: PathBuf,
    /// As Firecracker sees them.
    pub(super) inside_state: PathBuf,
    pub(super) inside_memory: PathBuf,
}

/// Names of a snapshot that is being written in a jail.
const NEW_STATE: &str = "new-state";
const NEW_MEMORY: &str = "new-memory";

impl Written {
    pub(super) fn new(place: &Place, jailed: bool, partial: &crate::snapshot::Partial) -> Self {
        if jailed {
            Self {
                state: place.opened(NEW_STATE),
                memory: place.opened(NEW_MEMORY),
                inside_state: place.inside(NEW_STATE),
                inside_memory: place.inside(NEW_MEMORY),
            }
        } else {
            Self {
                state: partial.state(),
                memory: partial.memory(),
                inside_state: partial.state(),
                inside_memory: partial.memory(),
            }
        }
    }

    /// Removes what an attempt that failed has left.
    pub(super) fn remove(&self) {
        for path in [&self.state, &self.memory] {
            let _ = std::fs::remove_file(path);
        }
    }
}
