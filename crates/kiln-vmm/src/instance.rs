//! One VMM process with its outputs, files and state: what both engines have in common.
//!
//! Knows nothing of control protocols.

use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time::timeout;

use crate::console::ConsoleLog;
use crate::error::{Diagnostics, MachineError, SpawnError};
use crate::jail::{Confinement, JailRecord, Promise};
use crate::machine::{Exit, MachineRecord, MachineState};
use crate::output::OutputTail;
use crate::process::VmmProcess;

/// Longest wait for the last output of a VMM that is gone already: it is in kernel buffers, so
/// this only ends early what would be a bug.
const SETTLE: Duration = Duration::from_secs(2);
/// A VMM that closes its socket is usually dying; this long it may take to be dead.
const LAST_BREATH: Duration = Duration::from_secs(1);

/// What a VMM is asked first: whether it is there.
pub(crate) const FIRST_CALL: &str = "answer";

/// Why a call to a control socket failed, before it is known whether the VMM is still there.
#[derive(Debug)]
pub(crate) enum CallError {
    /// The VMM answered with an error.
    Refused {
        status: Option<u16>,
        message: String,
    },
    /// It did not answer in time.
    Deadline(Duration),
    /// The socket broke.
    Broken(std::io::Error),
}

#[derive(Debug)]
pub(crate) struct Instance {
    record: MachineRecord,
    process: VmmProcess,
    output: OutputTail,
    console: ConsoleLog,
    drains: Drains,
    state: Mutex<MachineState>,
}

impl Instance {
    pub(crate) fn new(
        record: MachineRecord,
        process: VmmProcess,
        console: ConsoleLog,
        state: MachineState,
    ) -> Self {
        Self {
            record,
            process,
            output: OutputTail::new(),
            console,
            drains: Drains::default(),
            state: Mutex::new(state),
        }
    }

    pub(crate) fn record(&self) -> &MachineRecord {
        &self.record
    }

    pub(crate) fn process(&self) -> &VmmProcess {
        &self.process
    }

    pub(crate) fn output(&self) -> &OutputTail {
        &self.output
    }

    pub(crate) fn console(&self) -> &ConsoleLog {
        &self.console
    }

    /// Runs `drain` as long as this instance is held.
    pub(crate) fn drain(&self, drain: impl Future<Output = ()> + Send + 'static) {
        self.drains.add(drain);
    }

    pub(crate) fn state(&self) -> MachineState {
        if self.process.exited().is_some() {
            return MachineState::Exited;
        }
        *self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn set_state(&self, state: MachineState) {
        *self.state.lock().unwrap_or_else(PoisonError::into_inner) = state;
    }

    /// Refuses `call` outside `wanted`.
    pub(crate) fn require(
        &self,
        wanted: MachineState,
        call: &'static str,
    ) -> Result<(), MachineError> {
        match self.state() {
            state if state == wanted => Ok(()),
            state => Err(MachineError::State { call, state }),
        }
    }

    /// Runs one call to the VMM and notices at once when the VMM dies instead of answering.
    pub(crate) async fn call<T>(
        &self,
        call: &'static str,
        during: &'static str,
        work: impl Future<Output = Result<T, CallError>>,
    ) -> Result<T, MachineError> {
        let outcome = tokio::select! {
            // An answer that is there already counts, even if the VMM died right after it.
            biased;
            outcome = work => outcome,
            exit = self.process.wait() => return Err(self.exited(during, exit).await),
        };
        match outcome {
            Ok(value) => Ok(value),
            Err(CallError::Refused { status, message }) => Err(MachineError::Refused {
                call: call.to_owned(),
                status,
                message,
            }),
            Err(CallError::Deadline(deadline)) => {
                // Nobody knows what it has done or will do yet: asking again would be guessing.
                let killed = self.process.end(Duration::ZERO).await;
                tracing::warn!(id = %self.record.id, call, ?killed, "a VMM did not answer");
                Err(MachineError::Deadline {
                    call: call.to_owned(),
                    deadline_ms: u64::try_from(deadline.as_millis()).unwrap_or(u64::MAX),
                    diagnostics: Box::new(self.diagnostics()),
                })
            }
            Err(CallError::Broken(source)) => match timeout(LAST_BREATH, self.wait()).await {
                Ok(exit) => Err(self.exited(during, exit).await),
                Err(_) => Err(MachineError::Control {
                    call: call.to_owned(),
                    source,
                }),
            },
        }
    }

    async fn exited(&self, during: &'static str, exit: Exit) -> MachineError {
        self.settle().await;
        MachineError::Exited {
            during,
            exit,
            diagnostics: Box::new(self.diagnostics()),
        }
    }

    pub(crate) async fn wait(&self) -> Exit {
        let exit = self.process.wait().await;
        self.settle().await;
        exit
    }

    /// Waits until everything that the dead VMM printed has been taken.
    async fn settle(&self) {
        let _ = timeout(SETTLE, self.drains.done()).await;
        self.console.close();
    }

    pub(crate) fn diagnostics(&self) -> Diagnostics {
        Diagnostics {
            vmm_output: self.output.text(),
            console: String::from_utf8_lossy(&self.console.tail()).into_owned(),
        }
    }

    /// Ends the VMM and removes `files` of its runtime directory.
    pub(crate) async fn close(
        &self,
        grace: Duration,
        files: &RuntimeFiles,
    ) -> Result<Exit, MachineError> {
        self.process
            .end(grace)
            .await
            .map_err(|source| MachineError::Control {
                call: "end".to_owned(),
                source,
            })?;
        let exit = self.wait().await;
        let removed = files.remove().and(remove_memory(&self.record));
        sweep(self.record.jail.clone()).await?;
        removed?;
        Ok(exit)
    }

    /// Holds what is around the VMM against what was promised; a VMM that breaks a promise is
    /// killed.
    pub(crate) async fn verify(&self, promise: Promise) -> Result<(), MachineError> {
        let insecure = self.record.allow_insecure;
        if insecure && self.record.jail.is_none() {
            return Ok(());
        }
        let breaches = match Confinement::verify(&self.record, promise) {
            Ok(breaches) if breaches.is_empty() => return Ok(()),
            Ok(breaches) => breaches,
            Err(source) => {
                return match timeout(LAST_BREATH, self.process.wait()).await {
                    Ok(exit) => Err(self.exited("starting", exit).await),
                    Err(_) => Err(MachineError::Control {
                        call: "examine".to_owned(),
                        source,
                    }),
                };
            }
        };
        if insecure {
            tracing::warn!(id = %self.record.id, ?breaches, "the VMM is not confined");
            return Ok(());
        }
        // The error that counts is the breach; who closes the machine hears of the other.
        let _ = self.process.end(Duration::ZERO).await;
        Err(MachineError::Unconfined(breaches))
    }
}

/// Removes the file that was a machine's memory, unless a snapshot has taken it over.
pub(crate) fn remove_memory(record: &MachineRecord) -> Result<(), MachineError> {
    let Some(path) = &record.shape.memory_file else {
        return Ok(());
    };
    match std::fs::remove_file(path) {
        Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
            Err(MachineError::Cleanup {
                path: path.clone(),
                source,
            })
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Removes what a jail leaves behind.
pub(crate) async fn sweep(jail: Option<JailRecord>) -> Result<(), MachineError> {
    let Some(jail) = jail else {
        return Ok(());
    };
    // A runtime that shuts down drops the job; the next owner sweeps by the record.
    let swept = tokio::task::spawn_blocking(move || jail.sweep()).await;
    match swept {
        Ok(Err(error)) => Err(MachineError::Cleanup {
            path: error.path,
            source: error.source,
        }),
        Ok(Ok(())) | Err(_) => Ok(()),
    }
}

/// The files that a machine has in its runtime directory.
#[derive(Clone, Debug)]
pub(crate) struct RuntimeFiles {
    dir: PathBuf,
    names: &'static [&'static str],
}

impl RuntimeFiles {
    pub(crate) fn new(dir: &Path, names: &'static [&'static str]) -> Self {
        Self {
            dir: dir.to_owned(),
            names,
        }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Removes what is there of them: all that can be, then the first failure.
    pub(crate) fn remove(&self) -> Result<(), MachineError> {
        let mut outcome = Ok(());
        for name in self.names {
            let path = self.path(name);
            match std::fs::remove_file(&path) {
                Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
                    outcome = outcome.and(Err(MachineError::Cleanup { path, source }));
                }
                Ok(()) | Err(_) => {}
            }
        }
        outcome
    }
}

/// What a machine that is being spawned has made so far: removed when this is dropped, unless
/// the machine came to be. Files that were there before are another machine's.
#[derive(Debug, Default)]
#[must_use]
pub(crate) struct MadeFiles(Vec<PathBuf>);

impl MadeFiles {
    /// Makes something at `path` by `make`, which must fail when something is there.
    pub(crate) fn make<T>(
        &mut self,
        path: PathBuf,
        make: impl FnOnce(&Path) -> std::io::Result<T>,
    ) -> Result<T, SpawnError> {
        match make(&path) {
            Ok(made) => {
                self.0.push(path);
                Ok(made)
            }
            Err(source) => Err(SpawnError::Runtime { path, source }),
        }
    }

    pub(crate) fn keep(mut self) {
        self.0.clear();
    }
}

impl Drop for MadeFiles {
    fn drop(&mut self) {
        for path in &self.0 {
            if let Err(error) = std::fs::remove_file(path) {
                tracing::warn!(path = %path.display(), %error, "cannot undo a spawn");
            }
        }
    }
}

/// Tasks that end with their VMM, or with whoever owns this.
#[derive(Debug)]
struct Drains {
    tasks: Mutex<Vec<AbortHandle>>,
    running: watch::Sender<usize>,
}

impl Default for Drains {
    fn default() -> Self {
        Self {
            tasks: Mutex::default(),
            running: watch::channel(0).0,
        }
    }
}

impl Drains {
    fn add(&self, drain: impl Future<Output = ()> + Send + 'static) {
        self.running.send_modify(|count| *count += 1);
        let running = Running(self.running.clone());
        let task = tokio::spawn(async move {
            drain.await;
            drop(running);
        });
        self.tasks
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(task.abort_handle());
    }

    async fn done(&self) {
        // The sender is ours: it cannot go away while we wait.
        let _ = self.running.subscribe().wait_for(|count| *count == 0).await;
    }
}

impl Drop for Drains {
    fn drop(&mut self) {
        // Another owner may adopt the VMM: two readers of one FIFO would tear its output apart.
        for task in self
            .tasks
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .drain(..)
        {
            task.abort();
        }
    }
}

struct Running(watch::Sender<usize>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count -= 1);
    }
}
