//! One QEMU and what can be asked of it.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use serde_json::Value;
use tokio::net::UnixStream;

use super::args::CONSOLE_CHARDEV;
use super::qmp::{Qmp, QmpError};
use super::{AGENT_SOCKET, ANSWER, QMP_SOCKET, devices, snapshot};
use crate::console::ConsoleLog;
use crate::error::{Diagnostics, MachineError};
use crate::instance::{CallError, FIRST_CALL, Instance, RuntimeFiles};
use crate::jail::{Confinement, Filtered, Promise};
use crate::machine::{
    AgentEndpoint, BootTimings, Exit, Machine, MachineInfo, MachineRecord, MachineSpec,
    MachineState,
};
use crate::metrics::Metrics;
use crate::options::{BalloonState, DiskChange, HotplugState, NicChange};
use crate::snapshot::{
    FileFacts, HostFacts, MEMORY, Manifest, Partial, STATE, SnapshotError, SnapshotKind,
    SnapshotTarget, blocking, clone_file,
};

/// QEMU needs libraries and firmware of the host: it has no root directory of its own, but is a
/// user who can open next to nothing there.
const PROMISE: Promise = Promise {
    own_root: false,
    filtered: Filtered::All,
};

#[derive(Debug)]
pub(super) struct QemuMachine {
    instance: Instance,
    files: RuntimeFiles,
    agent: bool,
    control: Mutex<Control>,
    /// Held by whoever changes the state.
    lifecycle: tokio::sync::Mutex<()>,
    spawned_in: Duration,
    host: HostFacts,
}

/// What a boot needs.
#[derive(Debug)]
pub(super) struct Fresh {
    /// Connected; QEMU has not been spoken to yet.
    pub(super) stream: UnixStream,
    pub(super) spec: MachineSpec,
}

#[derive(Debug)]
enum Control {
    Fresh(Box<Fresh>),
    /// A boot was begun.
    Taken,
    Ready(Arc<Qmp>),
}

impl QemuMachine {
    pub(super) fn spawned(
        instance: Instance,
        files: RuntimeFiles,
        fresh: Fresh,
        host: HostFacts,
        spawned_in: Duration,
    ) -> Self {
        Self {
            instance,
            files,
            agent: fresh.spec.agent,
            control: Mutex::new(Control::Fresh(Box::new(fresh))),
            lifecycle: tokio::sync::Mutex::default(),
            spawned_in,
            host,
        }
    }

    /// Connects to a QEMU that runs already and asks for its state.
    pub(super) async fn adopted(
        instance: Instance,
        files: RuntimeFiles,
        host: HostFacts,
    ) -> std::io::Result<Self> {
        let stream = UnixStream::connect(files.path(QMP_SOCKET)).await?;
        let qmp = Qmp::start(stream, ANSWER).await.map_err(io_error)?;
        let status = qmp
            .command("query-status", Value::Null, ANSWER)
            .await
            .map_err(io_error)?;
        instance.set_state(match status["status"].as_str() {
            Some("running") => MachineState::Running,
            Some("prelaunch") => MachineState::Spawned,
            _ => MachineState::Paused,
        });
        let agent = files.path(AGENT_SOCKET).exists();
        Ok(Self {
            instance,
            files,
            agent,
            control: Mutex::new(Control::Ready(Arc::new(qmp))),
            lifecycle: tokio::sync::Mutex::default(),
            spawned_in: Duration::ZERO,
            host,
        })
    }

    fn control(&self) -> std::sync::MutexGuard<'_, Control> {
        self.control.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The connection made when QEMU was spawned, for the one boot that there is.
    fn take_fresh(&self) -> Option<Fresh> {
        let mut control = self.control();
        match std::mem::replace(&mut *control, Control::Taken) {
            Control::Fresh(fresh) => Some(*fresh),
            other => {
                *control = other;
                None
            }
        }
    }

    fn qmp(&self, call: &'static str) -> Result<Arc<Qmp>, MachineError> {
        match &*self.control() {
            Control::Ready(qmp) => Ok(Arc::clone(qmp)),
            Control::Fresh(_) | Control::Taken => Err(MachineError::State {
                call,
                state: self.instance.state(),
            }),
        }
    }

    fn memory_file(&self, kind: SnapshotKind) -> Result<PathBuf, SnapshotError> {
        if kind == SnapshotKind::Diff {
            return Err(SnapshotError::Unsupported(
                "QEMU makes no diff snapshots: make a full one",
            ));
        }
        let record = self.instance.record();
        let file = match record.shape.memory_fd {
            Some(_) if kind == SnapshotKind::Template => {
                return Err(SnapshotError::Unsupported(
                    "the memory of this machine has no name that could be taken over: make a full \
                     snapshot",
                ));
            }
            Some(fd) => Some(format!("/proc/{}/fd/{fd}", record.process.pid).into()),
            None => record.shape.memory_file.clone(),
        };
        file.ok_or(SnapshotError::Unsupported(
            "the memory of this machine is no file: it was not made for snapshots",
        ))
    }

    fn qmp_of_guest(&self, call: &'static str) -> Result<Arc<Qmp>, MachineError> {
        match self.instance.state() {
            MachineState::Running | MachineState::Paused => self.qmp(call),
            state => Err(MachineError::State { call, state }),
        }
    }

    async fn change(
        &self,
        call: &'static str,
        during: &'static str,
        command: &'static str,
        from: MachineState,
        to: MachineState,
    ) -> Result<(), MachineError> {
        let _one_at_a_time = self.lifecycle.lock().await;
        self.instance.require(from, call)?;
        let qmp = self.qmp(call)?;
        self.instance.call(call, during, run(&qmp, command)).await?;
        self.instance.set_state(to);
        Ok(())
    }
}

#[async_trait]
impl Machine for QemuMachine {
    fn record(&self) -> &MachineRecord {
        self.instance.record()
    }

    fn state(&self) -> MachineState {
        self.instance.state()
    }

    fn console(&self) -> ConsoleLog {
        self.instance.console().clone()
    }

    fn confinement(&self) -> std::io::Result<Confinement> {
        Confinement::of(self.instance.record())
    }

    fn agent_endpoint(&self) -> Option<AgentEndpoint> {
        self.agent
            .then(|| AgentEndpoint::Connect(self.files.path(AGENT_SOCKET)))
    }

    async fn boot(&self) -> Result<BootTimings, MachineError> {
        let _one_at_a_time = self.lifecycle.lock().await;
        // A VMM that died in the meantime is told as such, with its last words.
        if self.instance.process().exited().is_none() {
            self.instance.require(MachineState::Spawned, "boot")?;
        }
        let Some(Fresh { stream, spec }) = self.take_fresh() else {
            let state = self.instance.state();
            return Err(MachineError::State {
                call: "boot",
                state,
            });
        };
        let begin = Instant::now();
        let qmp = self
            .instance
            .call(FIRST_CALL, "starting", start(stream))
            .await?;
        let qmp = Arc::new(qmp);
        let control = begin.elapsed();

        let state = spec.restore.as_ref();
        let state = state.map(|restore| open_file(&restore.dir.join(STATE)));
        let state = state.transpose()?;
        // QEMU filters itself before it opens its sockets for business.
        self.instance.verify(PROMISE).await?;
        self.instance
            .call("boot", "booting", async {
                console_connected(&qmp).await?;
                let begun = begin_guest(&qmp, &spec, state.as_ref()).await;
                begun.map_err(call_error)
            })
            .await?;
        *self.control() = Control::Ready(qmp);
        let paused = spec.restore.as_ref().is_some_and(|restore| restore.paused);
        self.instance.set_state(if paused {
            MachineState::Paused
        } else {
            MachineState::Running
        });
        Ok(BootTimings {
            spawn: self.spawned_in,
            control,
            configure: begin.elapsed() - control,
        })
    }

    async fn pause(&self) -> Result<(), MachineError> {
        let (from, to) = (MachineState::Running, MachineState::Paused);
        self.change("pause", "pausing", "stop", from, to).await
    }

    async fn resume(&self) -> Result<(), MachineError> {
        let (from, to) = (MachineState::Paused, MachineState::Running);
        self.change("resume", "resuming", "cont", from, to).await
    }

    async fn info(&self) -> Result<MachineInfo, MachineError> {
        let call = "tell its version";
        let _one_at_a_time = self.lifecycle.lock().await;
        let qmp = self.qmp_of_guest(call)?;
        let asked = async {
            let version = qmp.command("query-version", Value::Null, ANSWER).await;
            version.map_err(call_error)
        };
        let told = self.instance.call(call, "answering", asked).await?;
        let number = |part: &str| told["qemu"][part].as_u64().unwrap_or(0);
        Ok(MachineInfo {
            id: self.instance.record().id.clone(),
            state: self.instance.state(),
            vmm_version: format!(
                "{}.{}.{}",
                number("major"),
                number("minor"),
                number("micro")
            ),
        })
    }

    async fn press_ctrl_alt_del(&self) -> Result<(), MachineError> {
        Err(MachineError::Unsupported("press Ctrl-Alt-Del"))
    }

    async fn set_metadata(&self, _content: &Value) -> Result<(), MachineError> {
        Err(MachineError::Unsupported("hold metadata"))
    }

    async fn patch_metadata(&self, _patch: &Value) -> Result<(), MachineError> {
        Err(MachineError::Unsupported("hold metadata"))
    }

    async fn metadata(&self) -> Result<Value, MachineError> {
        Err(MachineError::Unsupported("hold metadata"))
    }

    async fn update_disk(&self, change: &DiskChange) -> Result<(), MachineError> {
        let call = "change a disk";
        let _one_at_a_time = self.lifecycle.lock().await;
        let qmp = self.qmp_of_guest(call)?;
        let known = async {
            devices::disk_is_read_only(&qmp, &change.id)
                .await
                .map_err(call_error)
        };
        let read_only = self.instance.call(call, "answering", known).await?;
        let read_only = read_only.ok_or_else(|| MachineError::NoDevice(change.id.clone()))?;
        let file = change.path.as_deref().map(|path| open(path, read_only));
        let file = file.transpose()?;
        let changed = async {
            if let Some(file) = file {
                devices::replace_disk(&qmp, &change.id, file, read_only).await?;
            }
            if let Some(limit) = change.limit {
                devices::limit_disk(&qmp, &change.id, limit).await?;
            }
            Ok(())
        };
        let changed = async { changed.await.map_err(call_error) };
        self.instance.call(call, "changing a disk", changed).await
    }

    async fn update_nic(&self, _change: &NicChange) -> Result<(), MachineError> {
        Err(MachineError::Unsupported("limit an interface"))
    }

    async fn set_balloon(&self, amount_mib: u32) -> Result<(), MachineError> {
        let call = "take memory back";
        let _one_at_a_time = self.lifecycle.lock().await;
        let qmp = self.qmp_of_guest(call)?;
        let set = async {
            let set = devices::set_balloon(&qmp, amount_mib).await;
            set.map_err(call_error)
        };
        self.instance.call(call, "taking memory back", set).await
    }

    async fn balloon(&self) -> Result<BalloonState, MachineError> {
        let call = "read the balloon";
        let _one_at_a_time = self.lifecycle.lock().await;
        let qmp = self.qmp_of_guest(call)?;
        let state = async { devices::balloon(&qmp).await.map_err(call_error) };
        self.instance.call(call, "answering", state).await
    }

    async fn set_hotplug_memory(&self, _mib: u32) -> Result<(), MachineError> {
        Err(MachineError::Unsupported("add memory"))
    }

    async fn hotplug_memory(&self) -> Result<HotplugState, MachineError> {
        Err(MachineError::Unsupported("add memory"))
    }

    async fn metrics(&self) -> Result<Metrics, MachineError> {
        let call = "read its metrics";
        let _one_at_a_time = self.lifecycle.lock().await;
        let qmp = self.qmp_of_guest(call)?;
        let metrics = async { devices::metrics(&qmp).await.map_err(call_error) };
        self.instance.call(call, "answering", metrics).await
    }

    async fn snapshot(&self, target: &SnapshotTarget) -> Result<Manifest, MachineError> {
        let call = "make a snapshot";
        let _one_at_a_time = self.lifecycle.lock().await;
        self.instance.require(MachineState::Paused, call)?;
        let qmp = self.qmp(call)?;
        let memory = self.memory_file(target.kind)?;
        let dir = target.dir.clone();
        let (partial, state) = blocking(move || {
            let partial = Partial::begin(&dir)?;
            let state = partial.create_state()?;
            Ok((partial, state))
        })
        .await?;
        let saved = async { snapshot::save(&qmp, &state).await.map_err(call_error) };
        self.instance.call(call, "making a snapshot", saved).await?;
        if target.kind == SnapshotKind::Template {
            // Nobody may write to the memory any more.
            let ended = self.instance.process().end(Duration::ZERO).await;
            ended.map_err(|source| MachineError::Control {
                call: "end".to_owned(),
                source,
            })?;
        }
        let (record, host) = (self.instance.record().clone(), self.host.clone());
        let kind = target.kind;
        blocking(move || {
            match kind {
                SnapshotKind::Template => partial.take(&memory, MEMORY)?,
                SnapshotKind::Full | SnapshotKind::Diff => {
                    clone_file(&memory, &partial.memory())?;
                }
            }
            let memory = FileFacts::sized(&partial.memory())?;
            let state = FileFacts::digested(&partial.state())?;
            let disks = record.shape.disks.clone();
            let manifest = Manifest::of(&record, kind, disks, host, (memory, state));
            partial.publish(&manifest)?;
            Ok(manifest)
        })
        .await
    }

    async fn wait(&self) -> Exit {
        self.instance.wait().await
    }

    fn diagnostics(&self) -> Diagnostics {
        self.instance.diagnostics()
    }

    async fn close(&self, grace: Duration) -> Result<Exit, MachineError> {
        self.instance.close(grace, &self.files).await
    }
}

/// Lets the guest run, from its kernel or from where the snapshot left it.
async fn begin_guest(qmp: &Qmp, spec: &MachineSpec, state: Option<&File>) -> Result<(), QmpError> {
    if let Some(state) = state {
        snapshot::load(qmp, state).await?;
    }
    apply_options(qmp, spec).await?;
    if spec.restore.as_ref().is_some_and(|restore| restore.paused) {
        return Ok(());
    }
    devices::run(qmp, "cont", Value::Null).await.map(drop)
}

/// What the command line cannot say.
async fn apply_options(qmp: &Qmp, spec: &MachineSpec) -> Result<(), QmpError> {
    for disk in &spec.disks {
        if let Some(limit) = disk.options.limit {
            devices::limit_disk(qmp, &disk.id, limit).await?;
        }
    }
    if let Some(balloon) = spec.options.balloon {
        devices::poll_balloon(qmp, balloon.stats_interval_s).await?;
        if balloon.amount_mib > 0 {
            devices::set_balloon(qmp, balloon.amount_mib).await?;
        }
    }
    Ok(())
}

fn open_file(path: &Path) -> Result<File, MachineError> {
    open(path, true).map(File::from)
}

fn open(path: &Path, read_only: bool) -> Result<OwnedFd, MachineError> {
    std::fs::File::options()
        .read(true)
        .write(!read_only)
        .open(path)
        .map(OwnedFd::from)
        .map_err(|source| MachineError::Control {
            call: format!("open {}", path.display()),
            source,
        })
}

async fn start(stream: UnixStream) -> Result<Qmp, CallError> {
    Qmp::start(stream, ANSWER).await.map_err(call_error)
}

async fn run(qmp: &Qmp, command: &str) -> Result<(), CallError> {
    qmp.command(command, Value::Null, ANSWER)
        .await
        .map(drop)
        .map_err(call_error)
}

/// QEMU accepts the console's connection in the same loop that runs commands, so it takes one
/// command at most until it has; not to depend on that, it is asked.
async fn console_connected(qmp: &Qmp) -> Result<(), CallError> {
    let begin = Instant::now();
    while begin.elapsed() < ANSWER {
        let devices = qmp
            .command("query-chardev", Value::Null, ANSWER)
            .await
            .map_err(call_error)?;
        let connected = devices.as_array().is_some_and(|devices| {
            devices.iter().any(|device| {
                device["label"] == CONSOLE_CHARDEV
                    && device["filename"]
                        .as_str()
                        .is_some_and(|name| !name.starts_with("disconnected:"))
            })
        });
        if connected {
            return Ok(());
        }
    }
    Err(CallError::Deadline(ANSWER))
}

fn call_error(error: QmpError) -> CallError {
    match error {
        QmpError::Refused(message) => CallError::Refused {
            status: None,
            message,
        },
        QmpError::Deadline(deadline) => CallError::Deadline(deadline),
        QmpError::Broken(source) => CallError::Broken(source),
    }
}

fn io_error(error: QmpError) -> std::io::Error {
    match error {
        QmpError::Broken(source) => source,
        other => std::io::Error::other(other),
    }
}
