//! Executables as hooks: the point as argument, the call as JSON on standard input.

use std::fs::{self, Metadata};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};
use tokio::time::timeout;

use super::{Hook, HookCall, HookError, OnFailure};
use crate::error::{Error, ErrorCode};

/// What is read of its output.
const MAX_OUTPUT: u64 = 16 * 1024;
/// Executables whose names begin so abort what they fail before.
const REQUIRED: &str = "required-";

/// One executable.
#[derive(Debug)]
struct Executable {
    path: PathBuf,
    name: String,
    /// How long it may take; then it is killed with its process group.
    time: Duration,
}

/// The executables of a directory, by name; none when it does not exist.
///
/// They run with this process's rights: a directory or file that others can write to is refused.
pub(crate) fn in_directory(dir: &Path, time: Duration) -> Result<Vec<Arc<dyn Hook>>, Error> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(unusable(dir, "cannot be read").with_source(error)),
    };
    check(dir)?;
    let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    paths.sort();
    let mut hooks: Vec<Arc<dyn Hook>> = Vec::new();
    for path in paths {
        let metadata = check(&path)?;
        if metadata.is_file() && metadata.mode() & 0o100 != 0 {
            let name = path.file_name().unwrap_or_default();
            hooks.push(Arc::new(Executable {
                name: name.to_string_lossy().into_owned(),
                path,
                time,
            }));
        }
    }
    Ok(hooks)
}

fn check(path: &Path) -> Result<Metadata, Error> {
    let metadata =
        fs::metadata(path).map_err(|error| unusable(path, "cannot be read").with_source(error))?;
    let own = rustix::process::geteuid().as_raw();
    let ours = metadata.uid() == own || metadata.uid() == 0;
    if !ours || metadata.mode() & 0o022 != 0 {
        return Err(unusable(path, "could be replaced by others")
            .with_hint("it must belong to this user or root, and nobody else may write to it"));
    }
    Ok(metadata)
}

fn unusable(path: &Path, why: &str) -> Error {
    let message = format!("the hook {} {why}", path.display());
    Error::new(ErrorCode::InvalidConfig, message)
}

#[async_trait]
impl Hook for Executable {
    fn name(&self) -> &str {
        &self.name
    }

    fn on_failure(&self) -> OnFailure {
        if self.name.starts_with(REQUIRED) {
            OnFailure::Abort
        } else {
            OnFailure::Warn
        }
    }

    async fn call(&self, call: &HookCall) -> Result<(), HookError> {
        let json = serde_json::to_vec(call).map_err(failed("be told"))?;
        let mut child = self.spawn(call).map_err(failed("be started"))?;
        match timeout(self.time, drive(&mut child, &json)).await {
            Ok(outcome) => outcome,
            Err(_) => {
                kill(&child);
                let _ = child.wait().await;
                Err(HookError(format!("it took longer than {:?}", self.time)))
            }
        }
    }
}

impl Executable {
    fn spawn(&self, call: &HookCall) -> std::io::Result<Child> {
        Command::new(&self.path)
            .arg(call.point.as_str())
            .env_clear()
            .env(
                "PATH",
                "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            )
            .env("KILN_HOOK", call.point.as_str())
            .env("KILN_SANDBOX", &call.sandbox.id)
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
    }
}

async fn drive(child: &mut Child, json: &[u8]) -> Result<(), HookError> {
    let (stdin, stderr) = (child.stdin.take(), child.stderr.take());
    let tell = async {
        if let Some(mut stdin) = stdin {
            // One that does not read is told all it wants to know.
            let _ = stdin.write_all(json).await;
        }
    };
    let listen = async {
        let mut words = Vec::new();
        if let Some(stderr) = stderr {
            let _ = stderr.take(MAX_OUTPUT).read_to_end(&mut words).await;
        }
        words
    };
    let ((), words) = tokio::join!(tell, listen);
    // Not before: as long as nobody has waited for it, its number stands for its process group,
    // which others may still be in.
    let status = child.wait().await.map_err(failed("be waited for"))?;
    if status.success() {
        return Ok(());
    }
    let words = String::from_utf8_lossy(&words);
    let last = words.trim_end().lines().next_back().unwrap_or_default();
    Err(HookError(format!("{status}: {last}")))
}

/// With its process group: what it started must not go on either.
fn kill(child: &Child) {
    let pid = child.id().and_then(|pid| i32::try_from(pid).ok());
    if let Some(pid) = pid.and_then(rustix::process::Pid::from_raw) {
        let _ = rustix::process::kill_process_group(pid, rustix::process::Signal::KILL);
    }
}

fn failed<E: std::error::Error>(what: &'static str) -> impl FnOnce(E) -> HookError {
    move |error| HookError(format!("it could not {what}: {error}"))
}
