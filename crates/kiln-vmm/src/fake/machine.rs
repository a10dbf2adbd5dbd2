//! One machine of the scripted engine.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use serde_json::Value;

use super::booted_mark;
use super::script::{Outcome, Script, Step};
use crate::console::ConsoleLog;
use crate::error::{Diagnostics, MachineError};
use crate::instance::{CallError, Instance, RuntimeFiles};
use crate::jail::Confinement;
use crate::machine::{
    AgentEndpoint, BootTimings, Exit, Machine, MachineInfo, MachineRecord, MachineState,
};
use crate::metrics::Metrics;
use crate::options::{BalloonState, DiskChange, HotplugState, NicChange};
use crate::snapshot::{
    FileFacts, HostFacts, MEMORY, Manifest, Partial, STATE, SnapshotTarget, blocking,
};

#[derive(Debug)]
pub(super) struct FakeMachine {
    instance: Instance,
    files: RuntimeFiles,
    agent: Option<AgentEndpoint>,
    script: Arc<Script>,
    host: HostFacts,
    spawned_in: Duration,
    /// Held by whoever changes the state.
    lifecycle: tokio::sync::Mutex<()>,
}

impl FakeMachine {
    pub(super) fn new(
        instance: Instance,
        files: RuntimeFiles,
        agent: Option<AgentEndpoint>,
        (script, host): (Arc<Script>, HostFacts),
        spawned_in: Duration,
    ) -> Self {
        Self {
            instance,
            files,
            agent,
            script,
            host,
            spawned_in,
            lifecycle: tokio::sync::Mutex::default(),
        }
    }

    /// One scripted call; a process that dies meanwhile is noticed as with the real engines.
    async fn act(
        &self,
        step: Step,
        call: &'static str,
        during: &'static str,
    ) -> Result<(), MachineError> {
        let scripted = async {
            match self.script.act(&self.instance.record().id, step).await {
                Outcome::Succeed => Ok(()),
                Outcome::Fail => Err(CallError::Refused {
                    status: None,
                    message: "scripted failure".to_owned(),
                }),
                Outcome::Die => {
                    let ended = self.instance.process().end(Duration::ZERO).await;
                    Err(CallError::Broken(
                        ended.err().unwrap_or_else(|| std::io::Error::other("died")),
                    ))
                }
            }
        };
        self.instance.call(call, during, scripted).await
    }

    async fn change(
        &self,
        step: Step,
        call: &'static str,
        during: &'static str,
        (from, to): (MachineState, MachineState),
    ) -> Result<(), MachineError> {
        let _one_at_a_time = self.lifecycle.lock().await;
        self.instance.require(from, call)?;
        self.act(step, call, during).await?;
        self.instance.set_state(to);
        Ok(())
    }
}

#[async_trait]
impl Machine for FakeMachine {
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
        self.agent.clone()
    }

    async fn boot(&self) -> Result<BootTimings, MachineError> {
        let _one_at_a_time = self.lifecycle.lock().await;
        if self.instance.process().exited().is_none() {
            self.instance.require(MachineState::Spawned, "boot")?;
        }
        self.act(Step::Boot, "boot", "booting").await?;
        let mark = booted_mark(&self.files);
        std::fs::write(&mark, b"").map_err(|source| MachineError::Control {
            call: "boot".to_owned(),
            source,
        })?;
        self.instance.set_state(MachineState::Running);
        Ok(BootTimings {
            spawn: self.spawned_in,
            ..BootTimings::default()
        })
    }

    async fn pause(&self) -> Result<(), MachineError> {
        let states = (MachineState::Running, MachineState::Paused);
        self.change(Step::Pause, "pause", "pausing", states).await
    }

    async fn resume(&self) -> Result<(), MachineError> {
        let states = (MachineState::Paused, MachineState::Running);
        self.change(Step::Resume, "resume", "resuming", states)
            .await
    }

    async fn info(&self) -> Result<MachineInfo, MachineError> {
        match self.instance.state() {
            state @ (MachineState::Running | MachineState::Paused) => Ok(MachineInfo {
                id: self.instance.record().id.clone(),
                state,
                vmm_version: super::VERSION.to_owned(),
            }),
            state => Err(MachineError::State {
                call: "tell its version",
                state,
            }),
        }
    }

    async fn press_ctrl_alt_del(&self) -> Result<(), MachineError> {
        let call = "press Ctrl-Alt-Del";
        let _one_at_a_time = self.lifecycle.lock().await;
        self.instance.require(MachineState::Running, call)?;
        self.act(Step::CtrlAltDel, call, "pressing Ctrl-Alt-Del")
            .await?;
        self.instance
            .process()
            .end(Duration::ZERO)
            .await
            .map(drop)
            .map_err(|source| MachineError::Control {
                call: call.to_owned(),
                source,
            })
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

    async fn update_disk(&self, _change: &DiskChange) -> Result<(), MachineError> {
        Err(MachineError::Unsupported("change a disk"))
    }

    async fn update_nic(&self, _change: &NicChange) -> Result<(), MachineError> {
        Err(MachineError::Unsupported("change an interface"))
    }

    async fn set_balloon(&self, _amount_mib: u32) -> Result<(), MachineError> {
        Err(MachineError::Unsupported("take memory back"))
    }

    async fn balloon(&self) -> Result<BalloonState, MachineError> {
        Err(MachineError::Unsupported("take memory back"))
    }

    async fn set_hotplug_memory(&self, _mib: u32) -> Result<(), MachineError> {
        Err(MachineError::Unsupported("add memory"))
    }

    async fn hotplug_memory(&self) -> Result<HotplugState, MachineError> {
        Err(MachineError::Unsupported("add memory"))
    }

    async fn metrics(&self) -> Result<Metrics, MachineError> {
        Ok(Metrics::default())
    }

    async fn snapshot(&self, target: &SnapshotTarget) -> Result<Manifest, MachineError> {
        let call = "make a snapshot";
        let _one_at_a_time = self.lifecycle.lock().await;
        self.instance.require(MachineState::Paused, call)?;
        self.act(Step::Snapshot, call, "making a snapshot").await?;
        let (record, host, target) = (
            self.instance.record().clone(),
            self.host.clone(),
            target.clone(),
        );
        blocking(move || {
            let partial = Partial::begin(&target.dir)?;
            partial.write(MEMORY, record.id.as_bytes())?;
            partial.write(STATE, b"state")?;
            let memory = FileFacts::sized(&partial.memory())?;
            let state = FileFacts::digested(&partial.state())?;
            let disks = record.shape.disks.clone();
            let manifest = Manifest::of(&record, target.kind, disks, host, (memory, state));
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
        let id = &self.instance.record().id;
        let outcome = self.script.act(id, Step::Close).await;
        let exit = self.instance.close(grace, &self.files).await?;
        match outcome {
            Outcome::Succeed | Outcome::Die => Ok(exit),
            Outcome::Fail => Err(MachineError::Cleanup {
                path: self.instance.record().runtime_dir.clone(),
                source: std::io::Error::other("scripted failure"),
            }),
        }
    }
}
