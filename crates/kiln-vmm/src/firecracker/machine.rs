//! One Firecracker and what can be asked of it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use tokio::time::timeout;

use super::api::{ApiError, Client};
use super::config::{
    Action, BootSource, Drive, Entropy, InstanceInfo, InstanceState, MachineConfig,
    NetworkInterface, VmState, Vsock,
};
use super::place::Place;
use super::ready::SocketWatch;
use super::{CHANGE, CONFIGURE, KERNEL_ARGS, VSOCK_SOCKET};
use crate::console::ConsoleLog;
use crate::error::{Diagnostics, MachineError};
use crate::instance::{CallError, Instance};
use crate::jail::{Confinement, Filtered, Promise};
use crate::machine::{
    AgentEndpoint, BootTimings, Disk, Exit, Machine, MachineRecord, MachineSpec, MachineState,
};
use crate::nic::Nic;
use crate::validate::command_line;

/// Any number from 3 on; the host side of Firecracker's vsock is a file, so all can be alike.
const GUEST_CID: u32 = 3;

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
}

#[derive(Debug)]
enum Control {
    /// Firecracker has not been spoken to yet.
    Fresh(Box<(MachineSpec, SocketWatch)>),
    /// A boot was begun.
    Taken,
    Ready(Arc<Client>),
}

impl FirecrackerMachine {
    pub(super) fn spawned(
        instance: Instance,
        place: Place,
        spec: MachineSpec,
        ready: SocketWatch,
        spawned_in: Duration,
    ) -> Self {
        Self {
            instance,
            place,
            agent: spec.agent,
            control: Mutex::new(Control::Fresh(Box::new((spec, ready)))),
            lifecycle: tokio::sync::Mutex::default(),
            spawned_in,
        }
    }

    /// Connects to a Firecracker that runs already and asks for its state.
    pub(super) async fn adopted(instance: Instance, place: Place) -> std::io::Result<Self> {
        let client = Client::connect(&place.api_socket()).await?;
        let info: InstanceInfo = client.get("/", CONFIGURE).await.map_err(io_error)?;
        instance.set_state(match info.state {
            InstanceState::NotStarted => MachineState::Spawned,
            InstanceState::Running => MachineState::Running,
            InstanceState::Paused | InstanceState::Other(_) => MachineState::Paused,
        });
        let agent = place.vsock_socket().exists();
        Ok(Self {
            instance,
            place,
            agent,
            control: Mutex::new(Control::Ready(Arc::new(client))),
            lifecycle: tokio::sync::Mutex::default(),
            spawned_in: Duration::ZERO,
        })
    }

    fn control(&self) -> MutexGuard<'_, Control> {
        self.control.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the one boot that there is needs.
    fn take_fresh(&self) -> Option<Box<(MachineSpec, SocketWatch)>> {
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
        let patch = async {
            client
                .patch("/vm", &wanted, CHANGE)
                .await
                .map_err(call_error)
        };
        self.instance.call(call, during, patch).await?;
        self.instance.set_state(to);
        Ok(())
    }

    /// The rest before the start, in an order that makes `/dev/vda` the first disk.
    async fn configure(&self, client: &Client, spec: &MachineSpec) -> Result<(), CallError> {
        put(client, "/boot-source", &boot_source(spec)).await?;
        for disk in &spec.disks {
            put(client, &format!("/drives/{}", disk.id), &drive(disk)).await?;
        }
        for nic in &spec.nics {
            let path = format!("/network-interfaces/{}", nic.id);
            put(client, &path, &network_interface(nic)).await?;
        }
        if spec.agent {
            let vsock = Vsock {
                guest_cid: GUEST_CID,
                uds_path: self.place.inside(VSOCK_SOCKET),
            };
            put(client, "/vsock", &vsock).await?;
        }
        put(client, "/entropy", &Entropy {}).await
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
        let (spec, ready) = *fresh;
        let begin = Instant::now();
        let client = self
            .instance
            .call("answer", "starting", connect(&ready))
            .await?;
        let control = begin.elapsed();

        self.instance
            .call("configure", "configuring", size(&client, &spec))
            .await?;
        // It has answered, so the thread that answers is filtered, or none ever will be: nothing
        // is shown to a Firecracker that is not confined, and no guest runs in it.
        self.instance.verify(promise(Filtered::One)).await?;
        self.instance
            .call("configure", "configuring", self.configure(&client, &spec))
            .await?;
        self.instance
            .call("boot", "booting", act(&client, Action::InstanceStart))
            .await?;
        self.instance.verify(promise(Filtered::All)).await?;
        *self.control() = Control::Ready(Arc::new(client));
        self.instance.set_state(MachineState::Running);
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
        let (from, to) = (MachineState::Paused, MachineState::Running);
        self.change("resume", "resuming", VmState::Resumed, from, to)
            .await
    }

    async fn press_ctrl_alt_del(&self) -> Result<(), MachineError> {
        if !cfg!(target_arch = "x86_64") {
            return Err(MachineError::Unsupported("press Ctrl-Alt-Del"));
        }
        let _one_at_a_time = self.lifecycle.lock().await;
        let call = "press Ctrl-Alt-Del";
        self.instance.require(MachineState::Running, call)?;
        let client = self.client(call)?;
        let press = act(&client, Action::SendCtrlAltDel);
        self.instance
            .call(call, "pressing Ctrl-Alt-Del", press)
            .await
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

async fn size(client: &Client, spec: &MachineSpec) -> Result<(), CallError> {
    let machine = MachineConfig {
        vcpu_count: spec.vcpus,
        mem_size_mib: spec.mem_mib,
    };
    put(client, "/machine-config", &machine).await
}

fn boot_source(spec: &MachineSpec) -> BootSource {
    BootSource {
        kernel_image_path: spec.boot.kernel.clone(),
        initrd_path: spec.boot.initramfs.clone(),
        boot_args: Some(command_line(KERNEL_ARGS, &spec.boot.args)),
    }
}

fn drive(disk: &Disk) -> Drive {
    Drive {
        drive_id: disk.id.clone(),
        path_on_host: disk.path.clone(),
        // The agent mounts the root: the kernel is told of none.
        is_root_device: false,
        is_read_only: disk.read_only,
    }
}

fn network_interface(nic: &Nic) -> NetworkInterface {
    NetworkInterface {
        iface_id: nic.id.clone(),
        host_dev_name: nic.tap.clone(),
        guest_mac: Some(nic.mac),
        rx_rate_limiter: nic.rx_limit,
        tx_rate_limiter: nic.tx_limit,
    }
}

async fn connect(ready: &SocketWatch) -> Result<Client, CallError> {
    let stream = timeout(CONFIGURE, ready.connect())
        .await
        .map_err(|_| CallError::Deadline(CONFIGURE))?
        .map_err(CallError::Broken)?;
    Client::over(stream).await.map_err(CallError::Broken)
}

async fn put<T: serde::Serialize + Sync>(
    client: &Client,
    path: &str,
    body: &T,
) -> Result<(), CallError> {
    client.put(path, body, CONFIGURE).await.map_err(call_error)
}

async fn act(client: &Client, action: Action) -> Result<(), CallError> {
    client
        .put("/actions", &action, CHANGE)
        .await
        .map_err(call_error)
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
        error @ (ApiError::TooLong(_) | ApiError::Answer(_)) => CallError::Refused {
            status: None,
            message: error.to_string(),
        },
    }
}

fn io_error(error: ApiError) -> std::io::Error {
    match error {
        ApiError::Broken(source) => source,
        other => std::io::Error::other(other),
    }
}
