//! What the engine tests share: a machine's directories, and waiting for what a guest prints.
#![allow(dead_code, reason = "each test program uses a part")]

pub(crate) mod netns;
pub(crate) mod stub;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use kiln_vmm::console::ConsoleLog;
use kiln_vmm::{Boot, Disk, Engine, Machine, MachineRecord, MachineSpec, SpawnError};
use rustix::process::{Pid, Signal};

/// A generous deadline: the machine may be busy.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Directories of one machine, removed afterwards.
pub(crate) struct Place {
    dir: PathBuf,
    /// Removes it; not held by a process that only visits.
    _owned: Option<tempfile::TempDir>,
}

impl Place {
    pub(crate) fn new() -> Self {
        let owned = tempfile::Builder::new().prefix("kv").tempdir().unwrap();
        std::fs::create_dir(owned.path().join("run")).unwrap();
        Self {
            dir: owned.path().to_owned(),
            _owned: Some(owned),
        }
    }

    /// The place of another process.
    pub(crate) fn at(dir: PathBuf) -> Self {
        Self { dir, _owned: None }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.dir
    }

    pub(crate) fn runtime_dir(&self) -> PathBuf {
        self.dir.join("run")
    }

    pub(crate) fn cache(&self) -> PathBuf {
        self.dir.join("cache")
    }

    pub(crate) fn spec(&self, then: stub::Then) -> MachineSpec {
        MachineSpec {
            id: "m-1".into(),
            runtime_dir: self.runtime_dir(),
            vcpus: 1,
            mem_mib: 64,
            boot: Boot {
                kernel: stub::write(self.path(), then),
                initramfs: None,
                args: vec![],
            },
            disks: vec![],
            agent: true,
            restore: None,
            nics: vec![],
            netns: None,
            jail: None,
            allow_insecure: true,
            options: kiln_vmm::MachineOptions::default(),
            console_log: self.dir.join("console.log"),
        }
    }

    /// A sparse disk of 1 MiB.
    pub(crate) fn disk(&self, id: &str, file_name: &str, read_only: bool) -> Disk {
        let path = self.path().join(file_name);
        let file = std::fs::File::create(&path).unwrap();
        file.set_len(1 << 20).unwrap();
        Disk {
            id: id.into(),
            path,
            read_only,
            options: kiln_vmm::DiskOptions::default(),
        }
    }

    /// What is left in the runtime directory.
    pub(crate) fn left(&self) -> Vec<String> {
        std::fs::read_dir(self.runtime_dir())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect()
    }
}

/// Waits until the console contains `text`.
pub(crate) async fn printed(log: &ConsoleLog, text: &str) {
    let mut follower = log.follow();
    let waiting = async {
        loop {
            let end = *follower.borrow_and_update();
            let tail = String::from_utf8_lossy(&log.tail()).into_owned();
            if tail.contains(text) {
                return;
            }
            assert!(!end.closed, "the console ended with {tail:?}");
            follower.changed().await.unwrap();
        }
    };
    if tokio::time::timeout(PATIENCE, waiting).await.is_err() {
        let tail = String::from_utf8_lossy(&log.tail()).into_owned();
        panic!("{text:?} was not printed; the console ends with {tail:?}");
    }
}

/// Waits until the console has grown beyond `offset`.
pub(crate) async fn grown(log: &ConsoleLog, offset: u64) -> u64 {
    let mut follower = log.follow();
    tokio::time::timeout(PATIENCE, follower.wait_for(|end| end.offset > offset))
        .await
        .expect("the console grows")
        .expect("the log is open")
        .offset
}

/// Whether a process of that number exists and is no zombie.
pub(crate) fn alive(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !stat.rsplit_once(')').unwrap().1.starts_with(" Z"))
}

/// A machine that does not outlive a test that fails: when it is dropped, its VMM is killed.
pub(crate) struct Owned(Option<Arc<dyn Machine>>);

impl Owned {
    pub(crate) fn new(machine: Box<dyn Machine>) -> Self {
        Self(Some(machine.into()))
    }

    /// For a task of the test.
    pub(crate) fn share(&self) -> Arc<dyn Machine> {
        Arc::clone(self.0.as_ref().unwrap())
    }

    /// Lets go of the machine, as a daemon does that ends: the VMM runs on.
    pub(crate) fn leave(mut self) -> MachineRecord {
        let machine = self.0.take().unwrap();
        machine.record().clone()
    }
}

impl std::ops::Deref for Owned {
    type Target = dyn Machine;

    fn deref(&self) -> &Self::Target {
        &**self.0.as_ref().unwrap()
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        let Some(machine) = self.0.take() else {
            return;
        };
        let process = &machine.record().process;
        let pid = Pid::from_raw(process.pid.cast_signed()).unwrap();
        if kiln_vmm::process::identify(pid).is_ok_and(|identity| identity == *process) {
            let _ = rustix::process::kill_process(pid, Signal::KILL);
        }
    }
}

/// Why `engine` does not spawn the machine. One that is spawned all the same does not outlive the
/// test that it fails.
pub(crate) async fn refused(engine: &dyn Engine, spec: &MachineSpec) -> SpawnError {
    match engine.spawn(spec).await.map(Owned::new) {
        Ok(machine) => panic!("spawned: {:?}", machine.record()),
        Err(error) => error,
    }
}

/// Sends a signal to a process of this test.
pub(crate) fn kill(pid: u32, signal: Signal) {
    let pid = Pid::from_raw(pid.cast_signed()).unwrap();
    rustix::process::kill_process(pid, signal).unwrap();
}

/// Ends a machine and says what it left.
pub(crate) async fn close(machine: &Owned, place: &Place) {
    machine.close(Duration::ZERO).await.unwrap();
    assert_eq!(place.left(), Vec::<String>::new());
}
