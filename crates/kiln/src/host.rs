//! A host: one data directory, everything in it, and the way to all of it.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use kiln_image::kernel::KernelBundle;
use kiln_vmm::jail::cgroup::remove_empty_parent;
use kiln_vmm::{Acceleration, EngineKind, EnginePreference};
use serde::{Deserialize, Serialize};
use tokio::sync::{broadcast, oneshot};

use crate::config::{Directories, HOOK_TIMEOUT, HostConfig, KVM_BOOT_DEADLINE, TCG_BOOT_DEADLINE};
use crate::engines::{Chosen, Engines};
use crate::error::{Error, ErrorCode};
use crate::events::{Event, Events};
use crate::guest::GuestLink;
use crate::hooks::{self, Hook, Hooks};
use crate::lock::DataLock;
use crate::material::Materials;
use crate::metrics::Counters;
use crate::network::Networks;
use crate::recover;
use crate::sandbox::SandboxState;
use crate::sandbox::confine::cgroup_parent;
use crate::sandbox::driver::{Command, DriverHandle, View};
use crate::sandbox::turns::{Turn, Turns};
use crate::snapshot::Snapshots;
use crate::store::{SandboxRow, Store};
use crate::volumes::Volumes;

/// The owner of a data directory. Clones share it; see [`HostConfig`] for an example.
#[derive(Clone)]
pub struct Host {
    pub(crate) shared: Arc<Shared>,
}

impl std::fmt::Debug for Host {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Host")
            .field("directories", &self.shared.directories)
            .finish()
    }
}

/// What every driver of the host needs.
pub(crate) struct Shared {
    pub(crate) config: HostConfig,
    pub(crate) directories: Directories,
    pub(crate) store: Store,
    pub(crate) engines: Engines,
    pub(crate) materials: Materials,
    pub(crate) volumes: Volumes,
    pub(crate) snapshots: Snapshots,
    pub(crate) networks: Arc<Networks>,
    pub(crate) events: Events,
    pub(crate) counters: Counters,
    pub(crate) hooks: Hooks,
    drivers: RwLock<HashMap<String, DriverHandle>>,
    boots: Turns,
    /// Held by who creates with an idempotency key: what the store says is made has a driver.
    pub(crate) creating: tokio::sync::Mutex<()>,
    _lock: DataLock,
}

/// What a host is and runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostInfo {
    /// Version of Kiln.
    pub version: String,
    /// Its data directory.
    pub data_dir: String,
    /// Its runtime directory.
    pub runtime_dir: String,
    /// The engine that `auto` chooses here; `None` when there is none.
    pub engine: Option<EngineKind>,
    /// Its version.
    pub engine_version: Option<String>,
    /// What executes the guests' instructions.
    pub acceleration: Option<Acceleration>,
    /// Why that engine, or why none.
    pub engine_reason: String,
    /// What was found out about each engine on the way.
    pub findings: Vec<String>,
    /// What an owner should know.
    pub warnings: Vec<String>,
    /// Sandboxes in all.
    pub sandboxes: usize,
    /// Sandboxes with a machine.
    pub running: usize,
    /// This process.
    pub pid: u32,
}

impl Host {
    /// Opens a data directory: takes its lock, brings its store up to date, adopts the machines
    /// that still run and undoes or finishes what an earlier owner left half-done.
    ///
    /// # Errors
    /// [`ErrorCode::DataDirInUse`] when another process owns it, [`ErrorCode::InvalidConfig`],
    /// [`ErrorCode::DataDirTooNew`], [`ErrorCode::Host`].
    pub async fn open(config: HostConfig) -> Result<Self, Error> {
        config.check()?;
        let engines = Engines::new(&config, &Directories::new(&config));
        Self::open_with(config, engines, Vec::new()).await
    }

    /// As [`Host::open`], with hooks of the embedder's behind those of [`HostConfig::hooks_dir`].
    ///
    /// # Errors
    /// As [`Host::open`].
    pub async fn open_with_hooks(
        config: HostConfig,
        hooks: Vec<Arc<dyn Hook>>,
    ) -> Result<Self, Error> {
        config.check()?;
        let engines = Engines::new(&config, &Directories::new(&config));
        Self::open_with(config, engines, hooks).await
    }

    /// As [`Host::open`], with these engines and hooks.
    pub(crate) async fn open_with(
        config: HostConfig,
        engines: Engines,
        own: Vec<Arc<dyn Hook>>,
    ) -> Result<Self, Error> {
        let mut hooks = match &config.hooks_dir {
            Some(dir) => hooks::in_directory(dir, config.hook_timeout.unwrap_or(HOOK_TIMEOUT))?,
            None => Vec::new(),
        };
        hooks.extend(own);
        let directories = Directories::new(&config);
        directories.create()?;
        let lock = DataLock::take(&directories.lock())?;
        let store = Store::open(&directories.database())?;
        let shared = Arc::new(Shared {
            engines,
            materials: Materials::open(&config, &directories)?,
            volumes: Volumes::open(directories.volumes())?,
            snapshots: Snapshots::new(store.clone()),
            networks: Arc::new(Networks::new(&config.data_dir, store.clone())),
            events: Events::new(),
            counters: Counters::default(),
            hooks: Hooks::new(hooks),
            drivers: RwLock::default(),
            boots: Turns::new(parallel_boots(&config)),
            creating: tokio::sync::Mutex::default(),
            _lock: lock,
            config,
            directories,
            store,
        });
        recover::recover(&shared).await?;
        shared.keep_to_quota(Vec::new());
        Ok(Self { shared })
    }

    /// What this host is and runs.
    ///
    /// # Errors
    /// None at present; a host without an engine says so in the answer.
    pub async fn info(&self) -> Result<HostInfo, Error> {
        let views = self.shared.views();
        let chosen = self
            .shared
            .engines
            .choose(EnginePreference::Auto, None)
            .await;
        let (engine, reason, findings, warnings) = match chosen {
            Ok(chosen) => {
                let warnings = chosen.warning.clone().into_iter().collect();
                (
                    Some(chosen.engine),
                    chosen.reason,
                    chosen.findings,
                    warnings,
                )
            }
            Err(error) => (None, error.message(), Vec::new(), Vec::new()),
        };
        let mut findings = findings;
        findings.extend(self.shared.networks.findings().await);
        let capabilities = engine.as_ref().map(|engine| engine.capabilities().clone());
        Ok(HostInfo {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            data_dir: self.shared.config.data_dir.display().to_string(),
            runtime_dir: self.shared.config.runtime_dir.display().to_string(),
            engine: engine.as_ref().map(|engine| engine.kind()),
            engine_version: capabilities.as_ref().map(|it| it.version.clone()),
            acceleration: capabilities.as_ref().map(|it| it.acceleration),
            engine_reason: reason,
            findings,
            warnings,
            sandboxes: views.len(),
            running: views.iter().filter(|view| view.row.state.is_live()).count(),
            pid: std::process::id(),
        })
    }

    /// What happens from now on.
    #[must_use]
    pub fn events(&self) -> broadcast::Receiver<Event> {
        self.shared.events.subscribe()
    }

    /// What has happened since the event of this number, as far as it is kept, and what happens
    /// from now on: none twice, none lost in between.
    #[must_use]
    pub fn events_since(&self, number: u64) -> (Vec<Event>, broadcast::Receiver<Event>) {
        self.shared.events.since(number)
    }

    /// The guest kernels that are here.
    ///
    /// # Errors
    /// [`ErrorCode::KernelFailed`] when their store cannot be read.
    pub async fn kernels(&self) -> Result<Vec<KernelBundle>, Error> {
        self.shared.materials.kernels().await
    }

    /// Number of sandboxes with a machine.
    #[must_use]
    pub fn live_sandboxes(&self) -> usize {
        self.shared
            .views()
            .iter()
            .filter(|view| view.row.state.is_live())
            .count()
    }

    /// Lets go of the data directory. Machines run on; the next owner adopts them.
    pub async fn close(self) {
        let drivers = std::mem::take(
            &mut *self
                .shared
                .drivers
                .write()
                .unwrap_or_else(PoisonError::into_inner),
        );
        for (_, driver) in drivers {
            let mut view = driver.view.clone();
            drop(driver.commands);
            // The driver ends when nobody can ask it any more, and its view with it.
            while view.changed().await.is_ok() {}
        }
        self.shared.networks.close().await;
        remove_empty_parent(&cgroup_parent(&self.shared.config.data_dir));
    }

    /// Asks the driver of a sandbox.
    pub(crate) async fn ask<T>(
        &self,
        key: &str,
        command: impl FnOnce(oneshot::Sender<Result<T, Error>>) -> Command,
    ) -> Result<T, Error> {
        let driver = self.shared.driver(key)?;
        let (reply, answer) = oneshot::channel();
        let sent = driver.commands.send(command(reply)).await;
        match (sent, answer.await) {
            (Ok(()), Ok(outcome)) => outcome,
            _ => Err(not_found(key)),
        }
    }

    /// Counts as a use of the sandbox while it is held.
    pub(crate) fn use_of(&self, key: &str) -> Result<crate::sandbox::activity::Use, Error> {
        Ok(self.view(key)?.activity.begin(false))
    }

    pub(crate) fn view(&self, key: &str) -> Result<View, Error> {
        Ok(self.shared.driver(key)?.view.borrow().clone())
    }

    pub(crate) fn link(&self, key: &str, call: &str) -> Result<GuestLink, Error> {
        let view = self.view(key)?;
        view.link
            .filter(|_| view.row.state == SandboxState::Running)
            .ok_or_else(|| {
                let (id, state) = (&view.row.id, view.row.state);
                Error::new(
                    ErrorCode::InvalidState,
                    format!("cannot {call} sandbox {id}: it is {state}"),
                )
                .with_hint("only a running sandbox can do that")
            })
    }
}

impl Shared {
    /// Waits for a turn to boot: more boots than processors only make each slower.
    pub(crate) async fn boot_turn(&self, row: &SandboxRow) -> Turn {
        let project = row.spec.project.as_deref().unwrap_or_default();
        self.boots.take(project).await
    }

    pub(crate) fn boot_deadline(&self, chosen: &Chosen) -> Duration {
        self.config
            .boot_deadline
            .unwrap_or(match chosen.engine.capabilities().acceleration {
                Acceleration::Kvm => KVM_BOOT_DEADLINE,
                Acceleration::Tcg => TCG_BOOT_DEADLINE,
            })
    }

    /// Deletes every file of a sandbox and lets go of its image.
    pub(crate) async fn delete_files(&self, id: &str) -> Result<(), Error> {
        for dir in [self.directories.machine(id), self.directories.sandbox(id)] {
            match tokio::fs::remove_dir_all(&dir).await {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    let message = format!("cannot remove {}", dir.display());
                    return Err(Error::new(ErrorCode::Host, message).with_source(error));
                }
                _ => {}
            }
        }
        self.materials.unpin(id).await
    }

    pub(crate) fn adopt_driver(&self, driver: DriverHandle) {
        let id = driver.view.borrow().row.id.clone();
        self.drivers
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(id, driver);
    }

    pub(crate) fn forget(&self, id: &str) {
        self.drivers
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(id);
    }

    pub(crate) fn views(&self) -> Vec<View> {
        let drivers = self.drivers.read().unwrap_or_else(PoisonError::into_inner);
        drivers
            .values()
            .map(|driver| driver.view.borrow().clone())
            .collect()
    }

    /// By id, by name, then by unique prefix of an id.
    pub(crate) fn driver(&self, key: &str) -> Result<DriverHandle, Error> {
        let drivers = self.drivers.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(driver) = drivers.get(key) {
            return Ok(driver.clone());
        }
        let named =
            |driver: &&DriverHandle| driver.view.borrow().row.spec.name.as_deref() == Some(key);
        if let Some(driver) = drivers.values().find(named) {
            return Ok(driver.clone());
        }
        let mut fitting = drivers
            .iter()
            .filter(|(id, _)| !key.is_empty() && id.starts_with(key));
        match (fitting.next(), fitting.next()) {
            (Some((_, driver)), None) => Ok(driver.clone()),
            (Some(_), Some(_)) => Err(Error::new(
                ErrorCode::Ambiguous,
                format!("several sandboxes begin with {key:?}"),
            )
            .with_hint("give more characters of the id")),
            (None, _) => Err(not_found(key)),
        }
    }
}

fn not_found(key: &str) -> Error {
    Error::new(
        ErrorCode::NotFound,
        format!("no sandbox has the id or name {key:?}"),
    )
    .with_hint("`kiln ps` lists them")
}

fn parallel_boots(config: &HostConfig) -> usize {
    let processors = || std::thread::available_parallelism().map_or(1, usize::from);
    config.parallel_boots.map_or_else(processors, usize::from)
}
