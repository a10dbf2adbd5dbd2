//! One Firecracker and what can be asked of it.

mod snapshots;

use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::time::timeout;

use super::VSOCK_SOCKET;
use super::api::{ApiError, Client};
use super::config::{
    Action, Balloon, BalloonChange, BalloonStats, CONFIGURE, GuestCid, InstanceInfo, InstanceState,
    MemoryHotplugChange, MemoryHotplugStatus, Metadata, MetadataPatch, Request, VmState, Vsock,
};
use super::metrics::Counted;
use super::place::Place;
use super::ready::SocketWatch;
use super::requests::{
    balloon, boot_source, drive, drive_change, entropy, interface_change, machine_config,
    memory_hotplug, mmds_config, network_interface,
};
use super::snapshot::Load;
use super::version::{Version, resume_wedges};
use crate::console::ConsoleLog;
use crate::error::{Diagnostics, MachineError};
use crate::instance::{CallError, FIRST_CALL, Instance};
use crate::jail::{Access, Confinement, Filtered, Promise};
use crate::machine::{
    AgentEndpoint, BootTimings, Exit, Machine, MachineInfo, MachineRecord, MachineSpec,
    MachineState,
};
use crate::metrics::Metrics;
use crate::options::{BalloonState, DiskChange, HotplugState, NicChange};
use crate::snapshot::{HostFacts, Manifest, SnapshotTarget};

/// The host side of Firecracker's vsock is a file, so all can be alike.
const GUEST_CID: GuestCid = GuestCid::FIRST;

fn promise(filtered: Filtered) -> Promise {
    Promise {
        own_root: true,
        filtered,
    }
}

#[derive(Debug)]
pub(super) struct FirecrackerMachine {
    instance: Instance,
    place: Place,
    agent: bool,
    control: Mutex<Control>,
    /// Held by whoever changes the state.
    lifecycle: tokio::sync::Mutex<()>,
    spawned_in: Duration,
    known: Known,
    /// The last snapshot, which a difference can be to. `None` as soon as that is doubtful.
    last_snapshot: Mutex<Option<PathBuf>>,
}

/// What was found out about a Firecracker.
#[derive(Debug)]
pub(super) struct Known {
    pub(super) counted: Counted,
    pub(super) version: Version,
    pub(super) host: HostFacts,
}

/// How a machine begins.
#[derive(Debug)]
pub(super) enum Start {
    Boot,
    Load(Box<Load>),
}

#[derive(Debug)]
enum Control {
    /// Firecracker has not been spoken to yet.
    Fresh(Box<(MachineSpec, SocketWatch, Start)>),
    /// A boot was begun.
    Taken,
    Ready(Arc<Client>),
}

impl FirecrackerMachine {
    pub(super) fn spawned(
        instance: Instance,
        place: Place,
        spec: MachineSpec,
        (ready, start): (SocketWatch, Start),
        spawned_in: Duration,
        known: Known,
    ) -> Self {
        Self {
            instance,
            place,
            agent: spec.agent,
            control: Mutex::new(Control::Fresh(Box::new((spec, ready, start)))),
            lifecycle: tokio::sync::Mutex::default(),
            spawned_in,
            known,
            last_snapshot: Mutex::default(),
        }
    }

    /// Connects to a Firecracker that runs already and asks for its state.
    pub(super) async fn adopted(
        instance: Instance,
        place: Place,
        counted: Counted,
        host: HostFacts,
    ) -> std::io::Result<Self> {
        let client = Client::connect(&place.api_socket()).await?;
        let info: InstanceInfo = client.get("/", CONFIGURE).await.map_err(io_error)?;
        // The one that runs, which may be older than the one that is installed by now.
        let version: Version = info.vmm_version.parse().map_err(std::io::Error::other)?;
        let client = client.for_version(version);
        instance.set_state(state_of(&info.state));
        let agent = place.vsock_socket().exists();
        Ok(Self {
            instance,
            place,
            agent,
            control: Mutex::new(Control::Ready(Arc::new(client))),
            lifecycle: tokio::sync::Mutex::default(),
            spawned_in: Duration::ZERO,
            known: Known {
                counted,
                version,
                host,
            },
            last_snapshot: Mutex::default(),
        })
    }

    fn control(&self) -> MutexGuard<'_, Control> {
        self.control.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the one boot that there is needs.
    fn take_fresh(&self) -> Option<Box<(MachineSpec, SocketWatch, Start)>> {
        let mut control = self.control();
        match std::mem::replace(&mut *control, Control::Taken) {
            Control::Fresh(fresh) => Some(fresh),
            other => {
                *control = other;
                None
            }
        }
    }

    fn client(&self, call: &'static str) -> Result<Arc<Client>, MachineError> {
        match &*self.control() {
            Control::Ready(client) => Ok(Arc::clone(client)),
            Control::Fresh(_) | Control::Taken => Err(MachineError::State {
                call,
                state: self.instance.state(),
            }),
        }
    }

    async fn change(
        &self,
        call: &'static str,
        during: &'static str,
        wanted: VmState,
        from: MachineState,
        to: MachineState,
    ) -> Result<(), MachineError> {
        let _one_at_a_time = self.lifecycle.lock().await;
        self.instance.require(from, call)?;
        let client = self.client(call)?;
        let change = send(&client, &wanted);
        self.instance.call(call, during, change).await?;
        self.instance.set_state(to);
        Ok(())
    }

    /// The rest before the start, in an order that makes `/dev/vda` the first disk.
    async fn configure(&self, client: &Client, spec: &MachineSpec) -> Result<(), CallError> {
        send(client, &boot_source(spec)).await?;
        for disk in &spec.disks {
            send(client, &drive(disk)).await?;
        }
        for nic in &spec.nics {
            send(client, &network_interface(nic)).await?;
        }
        if spec.agent {
            let vsock = Vsock {
                guest_cid: GUEST_CID,
                uds_path: self.place.inside(VSOCK_SOCKET),
            };
            send(client, &vsock).await?;
        }
        if let Some(balloon) = balloon(spec) {
            send(client, &balloon).await?;
        }
        if let Some(memory) = memory_hotplug(spec) {
            send(client, &memory).await?;
        }
        if let Some(options) = &spec.options.metadata {
            send(client, &mmds_config(options)).await?;
            if let Some(content) = &options.content {
                send(client, &Metadata(content.clone())).await?;
            }
        }
        send(client, &entropy(spec)).await
    }

    async fn boot_guest(
        &self,
        client: &Client,
        spec: &MachineSpec,
    ) -> Result<MachineState, MachineError> {
        let config = machine_config(spec);
        let size = send(client, &config);
        self.instance
            .call("configure", "configuring", boxed(size))
            .await?;
        // It has answered, so the thread that answers is filtered, or none ever will be: nothing
        // is shown to a Firecracker that is not confined, and no guest runs in it.
        self.instance.verify(promise(Filtered::One)).await?;
        let rest = self.configure(client, spec);
        self.instance
            .call("configure", "configuring", boxed(rest))
            .await?;
        let start = send(client, &Action::InstanceStart);
        self.instance.call("boot", "booting", boxed(start)).await?;
        Ok(MachineState::Running)
    }

    /// Sends what may be asked of a machine whose guest runs or is paused.
    async fn request<R: Request>(
        &self,
        call: &'static str,
        during: &'static str,
        request: &R,
    ) -> Result<(), MachineError> {
        let _one_at_a_time = self.lifecycle.lock().await;
        let client = self.client_of_guest(call)?;
        let sent = send(&client, request);
        self.instance.call(call, during, sent).await
    }

    async fn read<T: DeserializeOwned>(
        &self,
        call: &'static str,
        path: &str,
    ) -> Result<T, MachineError> {
        let _one_at_a_time = self.lifecycle.lock().await;
        let client = self.client_of_guest(call)?;
        let read = async { client.get(path, CONFIGURE).await.map_err(call_error) };
        self.instance.call(call, "answering", read).await
    }

    fn client_of_guest(&self, call: &'static str) -> Result<Arc<Client>, MachineError> {
        match self.instance.state() {
            MachineState::Running | MachineState::Paused => self.client(call),
            state => Err(MachineError::State { call, state }),
        }
    }

    /// Brings the new file of a disk into the jail, if there is one, with the rights of the old.
    async fn disk_file(&self, change: &DiskChange) -> Result<DiskChange, MachineError> {
        let mut change = change.clone();
        let (Some(jail), Some(path)) = (&self.instance.record().jail, &change.path) else {
            return Ok(change);
        };
        let config: Value = self.read("change a disk", "/vm/config").await?;
        let drives = config["drives"].as_array();
        let known = drives
            .and_then(|drives| drives.iter().find(|one| one["drive_id"] == *change.id))
            .ok_or_else(|| MachineError::NoDevice(change.id.clone()))?;
        let access = if known["is_read_only"] == true {
            Access::Read
        } else {
            Access::Write
        };
        let (jail, path) = (jail.clone(), path.clone());
        let stem = format!("disk-{}", change.id);
        let brought =
            tokio::task::spawn_blocking(move || jail.bring_in_later(&path, &stem, access)).await;
        let brought = brought.map_err(|error| MachineError::Control {
            call: "change a disk".to_owned(),
            source: error.into(),
        })?;
        change.path = Some(brought?);
        Ok(change)
    }
}

#[async_trait]
impl Machine for FirecrackerMachine {
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
            .then(|| AgentEndpoint::Listen(self.place.agent_socket()))
    }

    async fn boot(&self) -> Result<BootTimings, MachineError> {
        let _one_at_a_time = self.lifecycle.lock().await;
        // A VMM that died in the meantime is told as such, with its last words.
        if self.instance.process().exited().is_none() {
            self.instance.require(MachineState::Spawned, "boot")?;
        }
        let Some(fresh) = self.take_fresh() else {
            let state = self.instance.state();
            return Err(MachineError::State {
                call: "boot",
                state,
            });
        };
        let (spec, ready, start) = *fresh;
        let begin = Instant::now();
        let client = self
            .instance
            .call(FIRST_CALL, "starting", connect(&ready))
            .await?
            .for_version(self.known.version);
        let control = begin.elapsed();

        let state = match &start {
            Start::Boot => self.boot_guest(&client, &spec).await?,
            Start::Load(load) => self.load_guest(&client, &spec, load).await?,
        };
        self.instance.verify(promise(Filtered::All)).await?;
        *self.control() = Control::Ready(Arc::new(client));
        self.instance.set_state(state);
        Ok(BootTimings {
            spawn: self.spawned_in,
            control,
            configure: begin.elapsed() - control,
        })
    }

    async fn pause(&self) -> Result<(), MachineError> {
        let (from, to) = (MachineState::Running, MachineState::Paused);
        self.change("pause", "pausing", VmState::Paused, from, to)
            .await
    }

    async fn resume(&self) -> Result<(), MachineError> {
        if self.agent && resume_wedges(self.known.version) {
            self.reset_connections().await?;
        }
        let (from, to) = (MachineState::Paused, MachineState::Running);
        self.change("resume", "resuming", VmState::Resumed, from, to)
            .await
    }

    async fn info(&self) -> Result<MachineInfo, MachineError> {
        let info: InstanceInfo = self.read("tell its version", "/").await?;
        Ok(MachineInfo {
            state: state_of(&info.state),
            id: info.id,
            vmm_version: info.vmm_version,
        })
    }

    async fn press_ctrl_alt_del(&self) -> Result<(), MachineError> {
        if !cfg!(target_arch = "x86_64") {
            return Err(MachineError::Unsupported("press Ctrl-Alt-Del"));
        }
        let _one_at_a_time = self.lifecycle.lock().await;
        let call = "press Ctrl-Alt-Del";
        self.instance.require(MachineState::Running, call)?;
        let client = self.client(call)?;
        let press = send(&client, &Action::SendCtrlAltDel);
        self.instance
            .call(call, "pressing Ctrl-Alt-Del", press)
            .await
    }

    async fn set_metadata(&self, content: &Value) -> Result<(), MachineError> {
        let content = Metadata(content.clone());
        self.request("set metadata", "setting metadata", &content)
            .await
    }

    async fn patch_metadata(&self, patch: &Value) -> Result<(), MachineError> {
        let patch = MetadataPatch(patch.clone());
        self.request("change metadata", "changing metadata", &patch)
            .await
    }

    async fn metadata(&self) -> Result<Value, MachineError> {
        self.read("read metadata", "/mmds").await
    }

    async fn update_disk(&self, change: &DiskChange) -> Result<(), MachineError> {
        let change = self.disk_file(change).await?;
        self.request("change a disk", "changing a disk", &drive_change(&change))
            .await
    }

    async fn update_nic(&self, change: &NicChange) -> Result<(), MachineError> {
        let change = interface_change(change);
        self.request("change an interface", "changing an interface", &change)
            .await
    }

    async fn set_balloon(&self, amount_mib: u32) -> Result<(), MachineError> {
        let change = BalloonChange { amount_mib };
        self.request("take memory back", "taking memory back", &change)
            .await
    }

    async fn balloon(&self) -> Result<BalloonState, MachineError> {
        let call = "read the balloon";
        let config: Balloon = self.read(call, "/balloon").await?;
        if config.stats_polling_interval_s.unwrap_or(0) == 0 {
            return Ok(BalloonState {
                target_mib: config.amount_mib.into(),
                ..BalloonState::default()
            });
        }
        let stats: BalloonStats = self.read(call, "/balloon/statistics").await?;
        Ok(BalloonState {
            target_mib: stats.target_mib,
            actual_mib: stats.actual_mib,
            free_bytes: stats.free_memory,
            available_bytes: stats.available_memory,
            total_bytes: stats.total_memory,
        })
    }

    async fn set_hotplug_memory(&self, mib: u32) -> Result<(), MachineError> {
        let change = MemoryHotplugChange {
            requested_size_mib: mib,
        };
        self.request("add memory", "adding memory", &change).await
    }

    async fn hotplug_memory(&self) -> Result<HotplugState, MachineError> {
        let status: MemoryHotplugStatus = self.read("read the memory", "/hotplug/memory").await?;
        Ok(HotplugState {
            total_mib: status.total_size_mib,
            requested_mib: status.requested_size_mib,
            plugged_mib: status.plugged_size_mib,
        })
    }

    async fn metrics(&self) -> Result<Metrics, MachineError> {
        let call = "write its metrics";
        let before = self.known.counted.lines();
        self.request(call, "writing its metrics", &Action::FlushMetrics)
            .await?;
        let counted = async {
            // Answered when it is written; it only has to come through the FIFO.
            timeout(CONFIGURE, self.known.counted.beyond(before))
                .await
                .map_err(|_| CallError::Refused {
                    status: None,
                    message: "no metrics came".to_owned(),
                })
        };
        self.instance
            .call(call, "writing its metrics", counted)
            .await?;
        Ok(self.known.counted.metrics())
    }

    async fn snapshot(&self, target: &SnapshotTarget) -> Result<Manifest, MachineError> {
        self.make_snapshot(target).await
    }

    async fn wait(&self) -> Exit {
        self.instance.wait().await
    }

    fn diagnostics(&self) -> Diagnostics {
        self.instance.diagnostics()
    }

    async fn close(&self, grace: Duration) -> Result<Exit, MachineError> {
        // The first process of a PID namespace gets no signal that it does not handle, but SIGKILL;
        // Firecracker handles none, so nothing is lost.
        let grace = match self.instance.record().jail {
            Some(_) => Duration::ZERO,
            None => grace,
        };
        self.instance.close(grace, self.place.files()).await
    }
}

fn state_of(told: &InstanceState) -> MachineState {
    match told {
        InstanceState::NotStarted => MachineState::Spawned,
        InstanceState::Running => MachineState::Running,
        InstanceState::Paused | InstanceState::Other(_) => MachineState::Paused,
    }
}

/// Large futures go to the heap: there are many machines.
fn boxed<'a, T>(
    work: impl Future<Output = Result<T, CallError>> + Send + 'a,
) -> Pin<Box<dyn Future<Output = Result<T, CallError>> + Send + 'a>> {
    Box::pin(work)
}

async fn connect(ready: &SocketWatch) -> Result<Client, CallError> {
    let stream = timeout(CONFIGURE, ready.connect())
        .await
        .map_err(|_| CallError::Deadline(CONFIGURE))?
        .map_err(CallError::Broken)?;
    Client::over(stream).await.map_err(CallError::Broken)
}

async fn send<R: Request>(client: &Client, request: &R) -> Result<(), CallError> {
    client.send(request).await.map_err(call_error)
}

fn call_error(error: ApiError) -> CallError {
    match error {
        ApiError::Refused { status, message } => CallError::Refused {
            status: Some(status),
            message,
        },
        ApiError::Deadline(deadline) => CallError::Deadline(deadline),
        ApiError::Broken(source) => CallError::Broken(source),
        // Refused on this side, before it was sent.
        error @ (ApiError::TooLong(_) | ApiError::NotInVersion { .. } | ApiError::Answer(_)) => {
            CallError::Refused {
                status: None,
                message: error.to_string(),
            }
        }
    }
}

fn io_error(error: ApiError) -> std::io::Error {
    match error {
        ApiError::Broken(source) => source,
        other => std::io::Error::other(other),
    }
}
