//! A real agent process, met over Unix sockets as engines provide them.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use crate::exec::{ExecExit, ExecOutput, ExecSpec};
use crate::guest::{ExecOutputReceiver, ExecSession, GuestIdentity, GuestLink};
use kiln_vmm::AgentEndpoint;
use tempfile::TempDir;

/// No test waits longer than this for anything.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// The agent, built by the cargo that runs this test.
pub(crate) fn agent_program() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        let built = Command::new(env!("CARGO"))
            .args(["build", "--quiet", "--package", "kiln-agent"])
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .status()
            .unwrap();
        assert!(built.success(), "the agent does not build");
        let test = std::env::current_exe().unwrap();
        test.ancestors().nth(2).unwrap().join("kiln-agent")
    })
}

/// An agent without a machine.
pub(crate) struct Agent {
    process: Child,
    pub(crate) dir: TempDir,
}

impl Agent {
    /// Starts one that dials `agent.sock` of its directory.
    pub(crate) fn start(options: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("agent.sock");
        let mut agent = Self::dialling(socket, options);
        agent.dir = dir;
        agent
    }

    /// Starts one that dials `socket`.
    pub(crate) fn dialling(socket: PathBuf, options: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let process = Command::new(agent_program())
            .arg("--connect-unix")
            .arg(socket)
            .args(options)
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        Self { process, dir }
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.path().join("agent.sock")
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.id()
    }

    /// A link that listens where the agent dials.
    pub(crate) fn link(&self) -> GuestLink {
        GuestLink::open(
            AgentEndpoint::Listen(self.socket()),
            GuestIdentity::default(),
        )
    }

    pub(crate) fn kill(&mut self) {
        self.process.kill().unwrap();
    }

    /// Waits until it has ended by itself.
    pub(crate) async fn ended(&mut self) -> std::process::ExitStatus {
        within(async {
            loop {
                if let Some(status) = self.process.try_wait().unwrap() {
                    return status;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A link with its agent, connected.
pub(crate) async fn connected(options: &[&str]) -> (Agent, GuestLink) {
    let agent = Agent::start(options);
    let link = agent.link();
    within(link.ready()).await.unwrap();
    (agent, link)
}

pub(crate) async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future)
        .await
        .expect("it takes too long")
}

pub(crate) fn spec(argv: &[&str]) -> ExecSpec {
    ExecSpec {
        argv: argv.iter().map(|&arg| arg.to_owned()).collect(),
        ..ExecSpec::default()
    }
}

pub(crate) fn shell(script: &str) -> ExecSpec {
    spec(&["sh", "-c", script])
}

/// Everything that a session says until its end.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Outcome {
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: Vec<u8>,
    pub(crate) lost: u64,
    pub(crate) exit: Option<ExecExit>,
}

impl Outcome {
    pub(crate) fn stdout(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    pub(crate) fn stderr(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }

    fn take(&mut self, output: ExecOutput) {
        match output {
            ExecOutput::Stdout(bytes) => self.stdout.extend_from_slice(&bytes),
            ExecOutput::Stderr(bytes) => self.stderr.extend_from_slice(&bytes),
            ExecOutput::Lost(count) => self.lost += count,
            ExecOutput::Exited(exit) => self.exit = Some(exit),
        }
    }
}

pub(crate) async fn collect(output: &mut ExecOutputReceiver) -> Outcome {
    let mut outcome = Outcome::default();
    while let Some(output) = within(output.next()).await.unwrap() {
        outcome.take(output);
    }
    outcome
}

/// Reads until standard output has `wanted` in it.
pub(crate) async fn until(output: &mut ExecOutputReceiver, wanted: &str) -> Outcome {
    let mut outcome = Outcome::default();
    while !outcome.stdout().contains(wanted) {
        match within(output.next()).await.unwrap() {
            Some(output) => outcome.take(output),
            None => panic!("it ended with {outcome:?}, without {wanted:?}"),
        }
    }
    outcome
}

pub(crate) async fn run(link: &GuestLink, spec: &ExecSpec) -> Outcome {
    let mut session: ExecSession = within(link.exec(spec)).await.unwrap();
    collect(&mut session.output).await
}

pub(crate) fn is_alive(pid: u32) -> bool {
    // A zombie is dead: only its parent has not heard of it.
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

/// Waits until the process is gone.
pub(crate) async fn gone(pid: u32) {
    within(async {
        while is_alive(pid) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}
