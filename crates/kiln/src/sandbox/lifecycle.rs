//! What a host's owner asks of sandboxes: to be made, started, changed, ended, told.

use std::sync::Arc;
use std::time::Duration;

use kiln_image::Progress;

use super::driver::{self, Command, Start};
use super::{Filter, SandboxInfo, SandboxSpec, SandboxUpdate, WaitFor, random_id, wait};
use crate::error::{Error, ErrorCode};
use crate::events::EventKind;
use crate::failpoint;
use crate::hooks::{HookCall, HookPoint};
use crate::host::Host;
use crate::snapshot;
use crate::store::{Created, Idempotency, SandboxRow, Sandboxes, SnapshotRow};

/// Longest idempotency key.
const MAX_KEY: usize = 255;

impl Host {
    /// Creates a sandbox; it does not run yet.
    ///
    /// # Errors
    /// [`ErrorCode::InvalidSpec`] with every fault, [`ErrorCode::NameTaken`],
    /// [`ErrorCode::ImageFailed`] when the image does not exist, [`ErrorCode::SnapshotNotFound`].
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
        if let Some(key) = &spec.snapshot {
            let snapshot = self.shared.snapshots.find(key)?;
            return restored_row(&snapshot, spec);
        }
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
        self.start_so(key, progress, true).await
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
        self.start_so(key, progress, false).await
    }

    async fn start_so(
        &self,
        key: &str,
        progress: Arc<dyn Progress>,
        run_command: bool,
    ) -> Result<SandboxInfo, Error> {
        let how = Start {
            progress,
            run_command,
        };
        let started = self.ask(key, |reply| Command::Start { how, reply }).await?;
        // It may have fetched an image, which is in use now.
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
            .map(SandboxInfo::from)
            .filter(|sandbox| filters.iter().all(|filter| filter.fits(sandbox)))
            .collect())
    }
}

/// The row of one that begins where a snapshot ends.
fn restored_row(snapshot: &SnapshotRow, asked: SandboxSpec) -> Result<SandboxRow, Error> {
    let spec = snapshot::resolved(snapshot, asked)?;
    spec.check()?;
    let record = &snapshot.record;
    Ok(SandboxRow {
        snapshot: Some(snapshot.id.clone()),
        image_id: record.image_id.clone(),
        image_config: record.image_config.clone(),
        ..SandboxRow::new(random_id()?, spec, record.image.clone())
    })
}

fn check_idempotency_key(key: &str) -> Result<(), Error> {
    let fits = (1..=MAX_KEY).contains(&key.len()) && key.bytes().all(|it| it.is_ascii_graphic());
    if fits {
        return Ok(());
    }
    let message = format!("the idempotency key is not 1 to {MAX_KEY} printable characters");
    Err(Error::new(ErrorCode::InvalidSpec, message))
}
