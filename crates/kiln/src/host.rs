//! A host: one data directory, everything in it, and the way to all of it.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use kiln_image::Progress;
use kiln_image::kernel::KernelBundle;
use kiln_vmm::{Acceleration, EngineKind, EnginePreference};
use serde::{Deserialize, Serialize};
use tokio::sync::{broadcast, oneshot};

use crate::config::{Directories, HostConfig, KVM_BOOT_DEADLINE, TCG_BOOT_DEADLINE};
use crate::console::ConsoleReader;
use crate::engines::{Chosen, Engines};
use crate::error::{Error, ErrorCode};
use crate::events::{Event, EventKind, Events};
use crate::exec::{ExecSpec, SessionInfo};
use crate::failpoint;
use crate::guest::{ExecSession, GuestLink};
use crate::hooks::{self, Hook, HookCall, HookPoint, Hooks};
use crate::lock::DataLock;
use crate::material::Materials;
use crate::metrics::Counters;
use crate::network::{NetworkInfo, Networks, Proof};
use crate::process;
use crate::recover;
use crate::sandbox::command;
use crate::sandbox::driver::{self, Command, DriverHandle, Start, View};
use crate::sandbox::turns::{Turn, Turns};
use crate::sandbox::{
    Filter, SandboxInfo, SandboxSpec, SandboxState, SandboxUpdate, WaitFor, random_id, wait,
};
use crate::store::{Created, Idempotency, SandboxRow, Sandboxes, Store};
use crate::usage::{SandboxStats, VmmUsage};
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
    pub(crate) networks: Arc<Networks>,
    pub(crate) events: Events,
    pub(crate) counters: Counters,
    pub(crate) hooks: Hooks,
    drivers: RwLock<HashMap<String, DriverHandle>>,
    boots: Turns,
    /// Held by who creates with an idempotency key: what the store says is made has a driver.
    creating: tokio::sync::Mutex<()>,
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
            Some(dir) => hooks::in_directory(dir)?,
            None => Vec::new(),
        };
        hooks.extend(own);
        let directories = Directories::new(&config);
        directories.create()?;
        let lock = DataLock::take(&directories.lock())?;
        let store = Store::open(&directories.database())?;
        let shared = Arc::new(Shared {
            engines,
            materials: Materials::open(&directories)?,
            volumes: Volumes::open(directories.volumes())?,
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

    /// Creates a sandbox; it does not run yet.
    ///
    /// # Errors
    /// [`ErrorCode::InvalidSpec`] with every fault, [`ErrorCode::NameTaken`],
    /// [`ErrorCode::ImageFailed`] when the image does not exist.
    pub async fn create(&self, spec: SandboxSpec) -> Result<SandboxInfo, Error> {
        let row = self.new_row(spec)?;
        self.ask_hooks(&row).await?;
        let stored = row.clone();
        self.shared
            .store
            .write(move |tx| Sandboxes(tx).insert(&stored))
            .await?;
        failpoint::reach("create.stored");
        Ok(self.begin(row).await)
    }

    /// As [`Host::create`], once: repeated with the same key and spec, it answers the sandbox that
    /// was made, until that is removed.
    ///
    /// # Errors
    /// As [`Host::create`], and [`ErrorCode::IdempotencyKeyReused`] when the key was used with
    /// another spec.
    pub async fn create_once(&self, key: &str, spec: SandboxSpec) -> Result<SandboxInfo, Error> {
        check_idempotency_key(key)?;
        let row = self.new_row(spec)?;
        self.ask_hooks(&row).await?;
        let _turn = self.shared.creating.lock().await;
        let (stored, owned) = (row.clone(), key.to_owned());
        let created = self
            .shared
            .store
            .write(move |tx| Idempotency(tx).create(&owned, &stored));
        match created.await? {
            Created::Now => Ok(self.begin(row).await),
            Created::Before(id) => self.get(&id).await,
            Created::KeyOfAnother => Err(Error::new(
                ErrorCode::IdempotencyKeyReused,
                format!("the idempotency key {key:?} was used for another request"),
            )
            .with_hint("use a new key for each sandbox")),
        }
    }

    fn new_row(&self, spec: SandboxSpec) -> Result<SandboxRow, Error> {
        spec.check()?;
        let image = self.shared.materials.check_sources(&spec)?;
        Ok(SandboxRow::new(random_id()?, spec, image))
    }

    /// Gives a row that is stored its driver.
    async fn begin(&self, row: SandboxRow) -> SandboxInfo {
        let info = SandboxInfo::from(&row);
        self.shared.events.publish(&row, EventKind::Created);
        self.shared
            .adopt_driver(driver::spawn(Arc::clone(&self.shared), row, None));
        let call = HookCall::new(HookPoint::AfterCreate, info.clone());
        self.shared.hooks.tell(&call).await;
        info
    }

    async fn ask_hooks(&self, row: &SandboxRow) -> Result<(), Error> {
        let call = HookCall::new(HookPoint::BeforeCreate, SandboxInfo::from(row));
        self.shared.hooks.ask(&call).await
    }

    /// Boots a sandbox, waits until its agent answers and runs its main command, if it has one.
    /// Goes on when the caller leaves. One that runs already is a success.
    ///
    /// # Errors
    /// [`ErrorCode::InvalidState`] when it is paused or on its way down, and whatever kept it from
    /// coming up; nothing of the attempt is left then.
    pub async fn start(
        &self,
        key: &str,
        progress: Arc<dyn Progress>,
    ) -> Result<SandboxInfo, Error> {
        let how = Start {
            progress,
            run_command: true,
        };
        let started = self.ask(key, |reply| Command::Start { how, reply }).await?;
        // It may have fetched an image, which is in use now.
        self.shared.keep_to_quota(Vec::new());
        Ok(started)
    }

    /// As [`Host::start`], but leaves the main command to the caller, who wants to be attached to it
    /// from its first byte on.
    ///
    /// # Errors
    /// As [`Host::start`].
    pub async fn start_without_command(
        &self,
        key: &str,
        progress: Arc<dyn Progress>,
    ) -> Result<SandboxInfo, Error> {
        let how = Start {
            progress,
            run_command: false,
        };
        let started = self.ask(key, |reply| Command::Start { how, reply }).await?;
        self.shared.keep_to_quota(Vec::new());
        Ok(started)
    }

    /// Stops a sandbox, if it runs, and starts it.
    ///
    /// # Errors
    /// As [`Host::stop`] and [`Host::start`].
    pub async fn restart(
        &self,
        key: &str,
        grace: Duration,
        progress: Arc<dyn Progress>,
    ) -> Result<SandboxInfo, Error> {
        let how = Start {
            progress,
            run_command: true,
        };
        self.ask(key, |reply| Command::Restart { grace, how, reply })
            .await
    }

    /// Halts a running sandbox's processors. One that is paused is a success.
    ///
    /// # Errors
    /// [`ErrorCode::InvalidState`] when it does not run.
    pub async fn pause(&self, key: &str) -> Result<SandboxInfo, Error> {
        self.ask(key, |reply| Command::Pause { reply }).await
    }

    /// Lets a paused sandbox go on. One that runs is a success.
    ///
    /// # Errors
    /// [`ErrorCode::InvalidState`] when it has no machine.
    pub async fn resume(&self, key: &str) -> Result<SandboxInfo, Error> {
        self.ask(key, |reply| Command::Resume { reply }).await
    }

    /// Changes what was asked of a sandbox: all of it, or on failure nothing.
    ///
    /// # Errors
    /// [`ErrorCode::InvalidSpec`] with every fault, [`ErrorCode::NameTaken`],
    /// [`ErrorCode::InvalidState`] for a change that a running machine cannot take.
    pub async fn update(&self, key: &str, update: SandboxUpdate) -> Result<SandboxInfo, Error> {
        let update = Box::new(update);
        self.ask(key, |reply| Command::Update { update, reply })
            .await
    }

    /// Waits until a sandbox has come to this; the sandbox as it is then, or was last.
    ///
    /// # Errors
    /// [`ErrorCode::NotFound`]; [`ErrorCode::Host`] when the host closes meanwhile.
    pub async fn wait(&self, key: &str, what: WaitFor) -> Result<SandboxInfo, Error> {
        wait(self.shared.driver(key)?, what).await
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

    /// Every sandbox that meets all of these conditions, newest first.
    ///
    /// # Errors
    /// None at present.
    pub async fn list(&self, filters: &[Filter]) -> Result<Vec<SandboxInfo>, Error> {
        let mut views = self.shared.views();
        views.sort_by(|a, b| {
            (b.row.created_at_ms, &a.row.id).cmp(&(a.row.created_at_ms, &b.row.id))
        });
        Ok(views
            .iter()
            .map(|view| SandboxInfo::of(&view.row, view.machine.as_deref()))
            .filter(|sandbox| filters.iter().all(|filter| filter.fits(sandbox)))
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
        let view = self.view(key)?;
        let completed = process::complete(view.row.image_config.as_ref(), spec)?;
        self.shared.counters.command();
        let held = view
            .activity
            .begin(spec.tty.is_some() && !spec.keep_timeout);
        Ok(link.exec_completed(&completed).await?.counting_as(held))
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
        let config = command::own_command(&view.row);
        Ok(process::main_command(config, entrypoint, words))
    }

    /// Attaches to a session of a sandbox; what its ring still holds comes first.
    ///
    /// # Errors
    /// As [`Host::exec`], and [`ErrorCode::SessionNotFound`].
    pub async fn attach(&self, key: &str, session: u64) -> Result<ExecSession, Error> {
        let link = self.link(key, "attach to")?;
        let activity = self.view(key)?.activity;
        let attached = link.attach(session, 0).await?;
        let held = activity.begin(attached.tty);
        Ok(attached.counting_as(held))
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

    /// Figures of a running sandbox: of its guest, as the guest itself tells them, and of its VMM, as
    /// this host's kernel does.
    ///
    /// # Errors
    /// [`ErrorCode::InvalidState`] when it does not run, [`ErrorCode::AgentUnreachable`].
    pub async fn stats(&self, key: &str) -> Result<SandboxStats, Error> {
        let link = self.link(key, "ask")?;
        let pid = SandboxInfo::from(self.view(key)?.row.as_ref()).pid;
        Ok(SandboxStats {
            guest: link.stats().await?,
            vmm: pid.and_then(VmmUsage::of),
        })
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

/// Longest idempotency key.
const MAX_KEY: usize = 255;

fn check_idempotency_key(key: &str) -> Result<(), Error> {
    let fits = (1..=MAX_KEY).contains(&key.len()) && key.bytes().all(|it| it.is_ascii_graphic());
    if fits {
        return Ok(());
    }
    let message = format!("the idempotency key is not 1 to {MAX_KEY} printable characters");
    Err(Error::new(ErrorCode::InvalidSpec, message))
}

fn parallel_boots(config: &HostConfig) -> usize {
    let processors = || std::thread::available_parallelism().map_or(1, usize::from);
    config.parallel_boots.map_or_else(processors, usize::from)
}
