//! What the engine tests share: a machine's directories, and waiting for what a guest prints.
#![allow(dead_code, reason = "each test program uses a part")]

pub(crate) mod stub;

use std::path::{Path, PathBuf};
use std::time::Duration;

use kiln_vmm::console::ConsoleLog;
use kiln_vmm::{Boot, Disk, Machine, MachineSpec};

/// A generous deadline: the machine may be busy.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Directories of one machine, removed afterwards.
pub(crate) struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    pub(crate) fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("kv").tempdir().unwrap();
        std::fs::create_dir(dir.path().join("run")).unwrap();
        Self { dir }
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn runtime_dir(&self) -> PathBuf {
        self.dir.path().join("run")
    }

    pub(crate) fn cache(&self) -> PathBuf {
        self.dir.path().join("cache")
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
            console_log: self.dir.path().join("console.log"),
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

/// Sends a signal to a process of this test.
pub(crate) fn kill(pid: u32, signal: rustix::process::Signal) {
    let pid = rustix::process::Pid::from_raw(pid.cast_signed()).unwrap();
    rustix::process::kill_process(pid, signal).unwrap();
}

/// Ends a machine and says what it left.
pub(crate) async fn close(machine: &dyn Machine, place: &Place) {
    machine.close(Duration::ZERO).await.unwrap();
    assert_eq!(place.left(), Vec::<String>::new());
}
