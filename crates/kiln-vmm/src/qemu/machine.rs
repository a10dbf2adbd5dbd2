//! One QEMU and what can be asked of it.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use serde_json::Value;
use tokio::net::UnixStream;

use super::args::CONSOLE_CHARDEV;
use super::qmp::{Qmp, QmpError};
use super::{AGENT_SOCKET, ANSWER, QMP_SOCKET};
use crate::console::ConsoleLog;
use crate::error::{Diagnostics, MachineError};
use crate::instance::{CallError, Instance, RuntimeFiles};
use crate::jail::{Confinement, Filtered, Promise};
use crate::machine::{AgentEndpoint, BootTimings, Exit, Machine, MachineRecord, MachineState};

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
}

#[derive(Debug)]
enum Control {
    /// Connected, QEMU has not been spoken to yet.
    Fresh(UnixStream),
    /// A boot was begun.
    Taken,
    Ready(Arc<Qmp>),
}

impl QemuMachine {
    pub(super) fn spawned(
        instance: Instance,
        files: RuntimeFiles,
        agent: bool,
        qmp: UnixStream,
        spawned_in: Duration,
    ) -> Self {
        Self {
            instance,
            files,
            agent,
            control: Mutex::new(Control::Fresh(qmp)),
            lifecycle: tokio::sync::Mutex::default(),
            spawned_in,
        }
    }

    /// Connects to a QEMU that runs already and asks for its state.
    pub(super) async fn adopted(instance: Instance, files: RuntimeFiles) -> std::io::Result<Self> {
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
        })
    }

    fn control(&self) -> std::sync::MutexGuard<'_, Control> {
        self.control.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The connection made when QEMU was spawned, for the one boot that there is.
    fn take_fresh(&self) -> Option<UnixStream> {
        let mut control = self.control();
        match std::mem::replace(&mut *control, Control::Taken) {
            Control::Fresh(stream) => Some(stream),
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
        let Some(stream) = self.take_fresh() else {
            let state = self.instance.state();
            return Err(MachineError::State {
                call: "boot",
                state,
            });
        };
        let begin = Instant::now();
        let qmp = self
            .instance
            .call("answer", "starting", start(stream))
            .await?;
        let qmp = Arc::new(qmp);
        let control = begin.elapsed();

        // QEMU filters itself before it opens its sockets for business.
        self.instance.verify(PROMISE).await?;
        self.instance
            .call("boot", "booting", async {
                console_connected(&qmp).await?;
                run(&qmp, "cont").await
            })
            .await?;
        *self.control() = Control::Ready(qmp);
        self.instance.set_state(MachineState::Running);
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

    async fn press_ctrl_alt_del(&self) -> Result<(), MachineError> {
        Err(MachineError::Unsupported("press Ctrl-Alt-Del"))
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
