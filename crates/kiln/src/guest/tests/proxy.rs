//! What an engine puts between agent and host, as a task: it can cut, block, and lose edges.

use std::path::PathBuf;
use std::sync::Arc;

use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Notify;
use tokio_util::task::AbortOnDropHandle;

/// The engine's part.
pub(crate) struct Proxy {
    dir: TempDir,
    cut: Arc<Notify>,
    task: AbortOnDropHandle<()>,
}

impl Proxy {
    /// Firecracker's: each dial of the agent is one dial of the host's socket.
    pub(crate) fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let cut = Arc::new(Notify::new());
        let agents = UnixListener::bind(dir.path().join("agent")).unwrap();
        let (host, cutting) = (dir.path().join("host"), Arc::clone(&cut));
        let task = tokio::spawn(async move {
            loop {
                let (mut agent, _) = agents.accept().await.unwrap();
                let Ok(mut host) = UnixStream::connect(&host).await else {
                    continue;
                };
                tokio::select! {
                    _ = tokio::io::copy_bidirectional(&mut agent, &mut host) => {}
                    () = cutting.notified() => {}
                }
            }
        });
        Self {
            dir,
            cut,
            task: AbortOnDropHandle::new(task),
        }
    }

    /// QEMU's virtio-serial port: the agent's end stays open whatever the host's does, and what
    /// one host left is read by the next.
    pub(crate) fn without_edges() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let agents = UnixListener::bind(dir.path().join("agent")).unwrap();
        let hosts = UnixListener::bind(dir.path().join("host")).unwrap();
        let task = tokio::spawn(async move {
            let (mut agent, _) = agents.accept().await.unwrap();
            loop {
                let (mut host, _) = hosts.accept().await.unwrap();
                if !copy_until_host_leaves(&mut agent, &mut host).await {
                    (agent, _) = agents.accept().await.unwrap();
                }
            }
        });
        Self {
            dir,
            cut: Arc::default(),
            task: AbortOnDropHandle::new(task),
        }
    }

    pub(crate) fn agent_socket(&self) -> PathBuf {
        self.dir.path().join("agent")
    }

    pub(crate) fn host_socket(&self) -> PathBuf {
        self.dir.path().join("host")
    }

    /// Breaks the present connection.
    pub(crate) fn cut(&self) {
        self.cut.notify_one();
    }

    /// Breaks it and lets none come again.
    pub(crate) fn block(&self) {
        self.task.abort();
    }
}

/// `true` when it was the host who left. A port that its guest closes and opens again, as the
/// agent does when a session dies, keeps its host.
async fn copy_until_host_leaves(agent: &mut UnixStream, host: &mut UnixStream) -> bool {
    let (mut up, mut down) = (vec![0; 4096], vec![0; 4096]);
    loop {
        tokio::select! {
            n = agent.read(&mut up) => match n {
                Ok(n) if n > 0 => {
                    if host.write_all(&up[..n]).await.is_err() {
                        return true;
                    }
                }
                _ => return false,
            },
            n = host.read(&mut down) => match n {
                Ok(n) if n > 0 => {
                    if agent.write_all(&down[..n]).await.is_err() {
                        return false;
                    }
                }
                _ => return true,
            },
        }
    }
}
