//! A host of its own for each test.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use kiln_image::Silent;
use kiln_vmm::fake::{AgentSide, FakeEngine, Program};
use tempfile::TempDir;

use crate::engines::Engines;
use crate::guest::tests::support::agent_program;
use crate::network::{NetworkMode, NetworkSpec};
use crate::{Error, Host, HostConfig, SandboxInfo, SandboxSpec, SandboxState, scripted};

/// No test waits longer than this for anything.
const PATIENCE: Duration = Duration::from_secs(60);

/// Directories, an engine, and the host on them.
pub(super) struct Stage {
    dir: TempDir,
    pub(super) engine: FakeEngine,
    host: Option<Host>,
}

impl Stage {
    pub(super) async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("image")).unwrap();
        std::fs::write(dir.path().join("image/hello"), "hello").unwrap();
        std::fs::write(dir.path().join("vmlinux"), scripted::kernel()).unwrap();
        let program = Program {
            path: agent_program().to_owned(),
            args: vec![
                "--connect-unix".to_owned(),
                "{runtime_dir}/agent.sock".to_owned(),
            ],
        };
        let engine = FakeEngine::new().with_program(program, AgentSide::Host);
        let host = Some(open(dir.path(), &engine).await);
        Self { dir, engine, host }
    }

    pub(super) fn host(&self) -> &Host {
        self.host.as_ref().unwrap()
    }

    /// Another owner of the same directories, as after a restart of the daemon.
    pub(super) async fn reopened(self) -> Self {
        self.reopened_when(|| ()).await
    }

    /// As [`Stage::reopened`], with no owner for a while.
    pub(super) async fn reopened_after(self, pause: Duration) -> Self {
        self.reopened_when(|| std::thread::sleep(pause)).await
    }

    /// As [`Stage::reopened`], with something that happens while there is no owner.
    pub(super) async fn reopened_when(mut self, meanwhile: impl FnOnce()) -> Self {
        let host = self.host.take().unwrap();
        within(host.close()).await;
        meanwhile();
        self.host = Some(open(self.dir.path(), &self.engine).await);
        self
    }

    /// As [`Stage::reopened_when`], with something that takes its time.
    pub(super) async fn reopened_when_async(mut self, meanwhile: impl AsyncFnOnce(&Self)) -> Self {
        let host = self.host.take().unwrap();
        within(host.close()).await;
        meanwhile(&self).await;
        self.host = Some(open(self.dir.path(), &self.engine).await);
        self
    }

    /// As [`Stage::reopened`], by an owner who wants something else.
    pub(super) async fn reopened_as(mut self, change: impl FnOnce(&mut HostConfig)) -> Self {
        let host = self.host.take().unwrap();
        within(host.close()).await;
        let mut config = config(self.dir.path());
        change(&mut config);
        self.host = Some(open_as(config, &self.engine).await);
        self
    }

    pub(super) fn pid(&self, key: &str) -> u32 {
        let views = self.host().shared.views();
        let view = views.iter().find(|view| view.row.id == key).unwrap();
        view.row.machine.as_ref().unwrap().process.pid
    }

    /// Has the machine of a sandbox die.
    pub(super) async fn kill_machine(&self, key: &str) {
        Self::kill(self.pid(key));
    }

    /// Waits until it is dead: before that, the next owner of the directory could adopt it.
    pub(super) fn kill(pid: u32) {
        use rustix::event::{PollFd, PollFlags, poll};
        let pid = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
        let process =
            rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
        let mut dead = [PollFd::new(&process, PollFlags::IN)];
        rustix::io::retry_on_intr(|| poll(&mut dead, None)).unwrap();
    }

    /// A small sandbox; what a test does not name is as usual.
    pub(super) fn spec(&self) -> SandboxSpec {
        let path = |name: &str| self.dir.path().join(name);
        SandboxSpec {
            image: Some(path("image").display().to_string()),
            kernel: Some(path("vmlinux")),
            tmpfs: true,
            network: NetworkSpec {
                mode: NetworkMode::None,
                ..NetworkSpec::default()
            },
            ..SandboxSpec::default()
        }
    }

    /// Creates and starts one; its id.
    pub(super) async fn started(&self, spec: SandboxSpec) -> String {
        let id = within(self.host().create(spec)).await.unwrap().id;
        self.start(&id).await.unwrap();
        id
    }

    pub(super) async fn start(&self, key: &str) -> Result<SandboxInfo, Error> {
        within(self.host().start(key, Arc::new(Silent))).await
    }

    pub(super) async fn stop(&self, key: &str) -> SandboxInfo {
        within(self.host().stop(key, Duration::ZERO)).await.unwrap()
    }

    pub(super) async fn state(&self, key: &str) -> SandboxState {
        self.host().get(key).await.unwrap().state
    }

    /// Waits until it has come to a state, by what the host tells.
    pub(super) async fn until(&self, key: &str, state: SandboxState) -> SandboxInfo {
        let mut events = self.host().events();
        within(async {
            loop {
                let info = self.host().get(key).await.unwrap();
                if info.state == state {
                    return info;
                }
                let _ = events.recv().await;
            }
        })
        .await
    }

    pub(super) fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub(super) fn data(&self) -> std::path::PathBuf {
        self.dir.path().join("data")
    }

    /// Files of sandboxes that are left.
    pub(super) fn left(&self) -> Vec<String> {
        let names = |dir: &Path| {
            let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
            entries
                .map(|it| it.path().display().to_string())
                .collect::<Vec<_>>()
        };
        let base = self.dir.path();
        let mut left = names(&base.join("data/sandboxes"));
        left.extend(names(&base.join("run/vm")));
        left
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        // Machines outlive their host: those of a test that failed half way are ended here.
        let Some(host) = &self.host else { return };
        for view in host.shared.views() {
            if let Some(pid) = view.row.machine.as_ref().map(|machine| machine.process.pid)
                && let Ok(pid) = i32::try_from(pid)
                && let Some(pid) = rustix::process::Pid::from_raw(pid)
            {
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
        }
    }
}

fn config(dir: &Path) -> HostConfig {
    HostConfig {
        hooks_dir: Some(dir.join("hooks")),
        ..HostConfig::new(dir.join("data"), dir.join("run"))
    }
}

async fn open(dir: &Path, engine: &FakeEngine) -> Host {
    open_as(config(dir), engine).await
}

async fn open_as(config: HostConfig, engine: &FakeEngine) -> Host {
    let engines = Engines::only(Arc::new(engine.clone()), &config);
    within(Box::pin(Host::open_with(config, engines, Vec::new())))
        .await
        .unwrap()
}

pub(super) async fn within<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, work)
        .await
        .expect("too slow")
}
