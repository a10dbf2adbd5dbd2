//! A host: one data directory, everything in it, and the way to all of it.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use kiln_image::Progress;
use kiln_vmm::{Acceleration, EngineKind, EnginePreference};
use serde::{Deserialize, Serialize};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, broadcast, oneshot};

use crate::config::{Directories, HostConfig, KVM_BOOT_DEADLINE, TCG_BOOT_DEADLINE};
use crate::console::ConsoleReader;
use crate::engines::{Chosen, Engines};
use crate::error::{Error, ErrorCode};
use crate::events::{Event, Events};
use crate::exec::{ExecSpec, SessionInfo};
use crate::guest::{ExecSession, GuestLink, GuestStats};
use crate::lock::DataLock;
use crate::material::Materials;
use crate::network::{NetworkInfo, Networks, Proof};
use crate::process;
use crate::recover;
use crate::sandbox::driver::{self, Command, DriverHandle, View};
use crate::sandbox::{InitSystem, SandboxInfo, SandboxSpec, SandboxState, random_id};
use crate::store::{SandboxRow, Sandboxes, Store};
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
    pub(crate) networks: Networks,
    pub(crate) events: Events,
    drivers: RwLock<HashMap<String, DriverHandle>>,
    boots: Arc<Semaphore>,
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
        let directories = Directories::new(&config);
        directories.create()?;
        let lock = DataLock::take(&directories.lock())?;
        let store = Store::open(&directories.database())?;
        let shared = Arc::new(Shared {
            engines: Engines::new(&config, directories.cache()),
            materials: Materials::open(&directories)?,
            volumes: Volumes::open(directories.volumes())?,
            networks: Networks::new(&config.data_dir, store.clone()),
            events: Events::new(),
            drivers: RwLock::default(),
            boots: Arc::new(Semaphore::new(parallel_boots(&config))),
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
        let chosen = self.shared.engines.choose(EnginePreference::Auto).await;
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
        findings.push(match self.shared.networks.obstacle() {
            Some(reason) => format!("network: not usable: {reason}"),
            None => "network: usable".to_owned(),
        });
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

    /// Creates a sandbox; it does not run yet.
    ///
    /// # Errors
    /// [`ErrorCode::InvalidSpec`] with every fault, [`ErrorCode::NameTaken`],
    /// [`ErrorCode::ImageFailed`] when the image does not exist.
    pub async fn create(&self, spec: SandboxSpec) -> Result<SandboxInfo, Error> {
        spec.check()?;
        let image = self.shared.materials.check_sources(&spec)?;
        let row = SandboxRow {
            id: random_id()?,
            spec,
            image,
            image_id: None,
            image_config: None,
            state: SandboxState::Created,
            intent: None,
            engine: None,
            machine: None,
            reason: None,
            warnings: Vec::new(),
            timings: None,
            created_at_ms: crate::clock::now_ms(),
            started_at_ms: None,
        };
        let stored = row.clone();
        self.shared
            .store
            .write(move |tx| Sandboxes(tx).insert(&stored))
            .await?;
        let info = SandboxInfo::from(&row);
        self.shared.events.publish(&row.id, Some(row.state));
        self.shared
            .adopt_driver(driver::spawn(Arc::clone(&self.shared), row, None));
        Ok(info)
    }

    /// Boots a sandbox and waits until its agent answers. Goes on when the caller leaves.
    ///
    /// # Errors
    /// [`ErrorCode::InvalidState`] when it runs already, and whatever kept it from coming up;
    /// nothing of the attempt is left then.
    pub async fn start(
        &self,
        key: &str,
        progress: Arc<dyn Progress>,
    ) -> Result<SandboxInfo, Error> {
        let started = self
            .ask(key, |reply| Command::Start { progress, reply })
            .await?;
        // It may have fetched an image, which is in use now.
        self.shared.keep_to_quota(Vec::new());
        Ok(started)
    }

    /// Ends a sandbox's machine; its scratch disk stays. One that is not running is a success.
    /// The guest has `grace` to power itself off; with none it is killed.
    ///
    /// # Errors
    /// [`ErrorCode::NotFound`], or what could not be cleaned up.
    pub async fn stop(&self, key: &str, grace: Duration) -> Result<SandboxInfo, Error> {
        self.ask(key, |reply| Command::Stop { grace, reply }).await
    }

    /// Removes a sandbox and all that is its.
    ///
    /// # Errors
    /// [`ErrorCode::InvalidState`] when it runs and `force` is not set.
    pub async fn remove(&self, key: &str, force: bool) -> Result<(), Error> {
        self.ask(key, |reply| Command::Remove { force, reply })
            .await
    }

    /// One sandbox, by id, unique prefix of an id, or name.
    ///
    /// # Errors
    /// [`ErrorCode::NotFound`], [`ErrorCode::Ambiguous`].
    pub async fn get(&self, key: &str) -> Result<SandboxInfo, Error> {
        let view = self.view(key)?;
        Ok(SandboxInfo::of(&view.row, view.machine.as_deref()))
    }

    /// Every sandbox, newest first.
    ///
    /// # Errors
    /// None at present.
    pub async fn list(&self) -> Result<Vec<SandboxInfo>, Error> {
        let mut views = self.shared.views();
        views.sort_by(|a, b| {
            (b.row.created_at_ms, &a.row.id).cmp(&(a.row.created_at_ms, &b.row.id))
        });
        Ok(views
            .iter()
            .map(|view| SandboxInfo::of(&view.row, view.machine.as_deref()))
            .collect())
    }

    /// Runs a command in a sandbox; environment, user and directory that it does not name are those
    /// of the sandbox's image.
    ///
    /// # Errors
    /// [`ErrorCode::InvalidState`] when it does not run, [`ErrorCode::CommandNotFound`],
    /// [`ErrorCode::CommandNotExecutable`], [`ErrorCode::ExecFailed`],
    /// [`ErrorCode::AgentUnreachable`].
    pub async fn exec(&self, key: &str, spec: &ExecSpec) -> Result<ExecSession, Error> {
        let link = self.link(key, "exec in")?;
        let config = self.view(key)?.row.image_config.clone();
        let completed = process::complete(config.as_ref(), spec)?;
        Ok(link.exec_completed(&completed).await?)
    }

    /// What the main process of a sandbox is, when these words were given for it: the image's
    /// entrypoint, or `entrypoint` in its place, with the words or the image's own command. `None`
    /// when neither image nor caller says anything.
    ///
    /// # Errors
    /// [`ErrorCode::NotFound`], [`ErrorCode::Ambiguous`].
    pub async fn main_command(
        &self,
        key: &str,
        entrypoint: Option<&[String]>,
        words: &[String],
    ) -> Result<Option<Vec<String>>, Error> {
        let view = self.view(key)?;
        let config = view.row.image_config.as_ref();
        // An image that brings its own init says with its command how to start that.
        let config = config.filter(|_| view.row.spec.init == InitSystem::Kiln);
        Ok(process::main_command(config, entrypoint, words))
    }

    /// Attaches to a session of a sandbox; what its ring still holds comes first.
    ///
    /// # Errors
    /// As [`Host::exec`], and [`ErrorCode::SessionNotFound`].
    pub async fn attach(&self, key: &str, session: u64) -> Result<ExecSession, Error> {
        Ok(self.link(key, "attach to")?.attach(session, 0).await?)
    }

    /// The sessions of a sandbox.
    ///
    /// # Errors
    /// [`ErrorCode::InvalidState`] when it does not run, [`ErrorCode::AgentUnreachable`].
    pub async fn sessions(&self, key: &str) -> Result<Vec<SessionInfo>, Error> {
        Ok(self.link(key, "list the sessions of")?.sessions().await?)
    }

    /// Ends a session of a sandbox with all its processes.
    ///
    /// # Errors
    /// As [`Host::sessions`], and [`ErrorCode::SessionNotFound`].
    pub async fn kill(&self, key: &str, session: u64) -> Result<(), Error> {
        Ok(self.link(key, "end a session of")?.kill(session).await?)
    }

    /// Figures of a sandbox's guest, as the guest itself tells them.
    ///
    /// # Errors
    /// [`ErrorCode::InvalidState`] when it does not run, [`ErrorCode::AgentUnreachable`].
    pub async fn stats(&self, key: &str) -> Result<GuestStats, Error> {
        Ok(self.link(key, "ask")?.stats().await?)
    }

    /// The console of a sandbox, from the oldest byte that is kept.
    ///
    /// # Errors
    /// [`ErrorCode::NotFound`]; a console that cannot be read.
    pub async fn console(&self, key: &str, follow: bool) -> Result<ConsoleReader, Error> {
        let view = self.view(key)?;
        let path = self.shared.directories.console(&view.row.id);
        ConsoleReader::open(&path, view.machine.as_deref(), follow)
    }

    /// The network of a sandbox.
    ///
    /// # Errors
    /// [`ErrorCode::NotFound`], [`ErrorCode::Ambiguous`].
    pub async fn network(&self, key: &str) -> Result<NetworkInfo, Error> {
        let view = self.view(key)?;
        NetworkInfo::of(&view.row, view.network.as_ref()).await
    }

    /// Exchanges the policy of a sandbox: of a running one at once and whole, else for its next
    /// start. On failure the old policy is in force as before.
    ///
    /// # Errors
    /// [`ErrorCode::InvalidNetworkPolicy`] with every fault, [`ErrorCode::PortTaken`],
    /// [`ErrorCode::NetworkSetupFailed`].
    pub async fn update_network(
        &self,
        key: &str,
        policy: kiln_net::policy::PolicySpec,
    ) -> Result<NetworkInfo, Error> {
        self.ask(key, |reply| Command::UpdateNetwork { policy, reply })
            .await?;
        self.network(key).await
    }

    /// Proves that the policy of a running sandbox is enforced, by asking from both sides.
    ///
    /// # Errors
    /// [`ErrorCode::InvalidState`] when it does not run or has no network.
    pub async fn verify_network(&self, key: &str) -> Result<Vec<Proof>, Error> {
        let link = self.link(key, "verify the network of")?;
        let view = self.view(key)?;
        crate::network::verify(&view.row.id, view.network.as_ref(), &link).await
    }

    /// What happens from now on.
    #[must_use]
    pub fn events(&self) -> broadcast::Receiver<Event> {
        self.shared.events.subscribe()
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
    }

    async fn ask<T>(
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

    fn view(&self, key: &str) -> Result<View, Error> {
        Ok(self.shared.driver(key)?.view.borrow().clone())
    }

    fn link(&self, key: &str, call: &str) -> Result<GuestLink, Error> {
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
    pub(crate) async fn boot_turn(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.boots).acquire_owned().await.ok()
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
    fn driver(&self, key: &str) -> Result<DriverHandle, Error> {
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
