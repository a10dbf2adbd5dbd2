//! Snapshots on the real engines: made, checked, restored, served page by page.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "tests fail by panicking; the configured exception covers test functions only"
)]

mod support;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use kiln_vmm::firecracker::FirecrackerEngine;
use kiln_vmm::jail::{Breach, JailSpec};
use kiln_vmm::qemu::QemuEngine;
use kiln_vmm::snapshot::{Mismatch, UffdHandler, seal};
use kiln_vmm::{
    Acceleration, Code, Engine, Exit, MachineError, MachineSpec, MachineState, Manifest, Restore,
    SnapshotError, SnapshotKind, SnapshotTarget, SpawnError,
};
use rustix::process::Signal;
use support::stub::{GREETING, Then};
use support::{Owned, PATIENCE, Place, alive, grown, kill, printed, refused};

static NEXT_USER: AtomicU32 = AtomicU32::new(0);

struct Bench {
    engine: Box<dyn Engine>,
    place: Place,
}

impl Bench {
    fn new(engine: impl Engine + 'static) -> Self {
        let place = Place::new();
        for dir in ["j", "snapshots"] {
            std::fs::create_dir(place.path().join(dir)).unwrap();
        }
        Self {
            engine: Box::new(engine),
            place,
        }
    }

    /// A machine of its own: directories, console, and where root makes them a jail.
    fn spec(&self, name: &str, then: Then) -> MachineSpec {
        let number = NEXT_USER.fetch_add(1, Ordering::Relaxed);
        let user = 1_800_000_000 + (std::process::id() % 1000) * 100 + number;
        let root = rustix::process::geteuid().is_root();
        let runtime_dir = self.place.path().join(format!("run-{name}"));
        std::fs::create_dir_all(&runtime_dir).unwrap();
        let mut disk = self.place.disk("scratch", &format!("disk-{name}"), false);
        disk.id = "scratch".into();
        MachineSpec {
            id: format!("s{}-{number}", std::process::id()),
            runtime_dir,
            console_log: self.place.path().join(format!("console-{name}")),
            disks: vec![disk],
            jail: root.then(|| JailSpec {
                uid: user,
                gid: user,
                base_dir: self.place.path().join("j"),
                cgroup_parent: "kiln-test".into(),
            }),
            allow_insecure: !root,
            ..self.place.spec(then)
        }
    }

    fn snapshot(&self, name: &str) -> PathBuf {
        self.place.path().join("snapshots").join(name)
    }

    fn clone_of(&self, name: &str, snapshot: &Path) -> MachineSpec {
        let mut spec = self.spec(name, Then::Tick);
        spec.restore = Some(Restore {
            dir: snapshot.to_owned(),
            paused: false,
            uffd: None,
            step_clock: false,
        });
        spec
    }

    async fn booted(&self, spec: &MachineSpec) -> Owned {
        let machine = Owned::new(self.engine.spawn(spec).await.unwrap());
        machine.boot().await.unwrap();
        printed(&machine.console(), GREETING).await;
        machine
    }

    async fn restored(&self, spec: &MachineSpec) -> Owned {
        let machine = Owned::new(self.engine.spawn(spec).await.unwrap());
        machine.boot().await.unwrap();
        machine
    }

    async fn make(&self, machine: &Owned, name: &str, kind: SnapshotKind) -> Manifest {
        let target = SnapshotTarget {
            dir: self.snapshot(name),
            kind,
        };
        machine.snapshot(&target).await.unwrap()
    }
}

async fn firecracker(test: &str) -> Option<Bench> {
    let Some(program) = std::env::var_os("KILN_FIRECRACKER") else {
        eprintln!("SKIPPED: {test}: KILN_FIRECRACKER is not set");
        return None;
    };
    if std::fs::File::open("/dev/kvm").is_err() {
        eprintln!("SKIPPED: {test}: no /dev/kvm");
        return None;
    }
    let engine = FirecrackerEngine::open(program.as_ref()).await.unwrap();
    Some(Bench::new(engine))
}

async fn qemu(test: &str) -> Option<Bench> {
    let program = std::env::var_os("KILN_QEMU")
        .map_or_else(|| "/usr/bin/qemu-system-x86_64".into(), PathBuf::from);
    let cache = Place::new();
    match QemuEngine::open(&program, Acceleration::Tcg, &cache.cache()).await {
        Ok(engine) => Some(Bench::new(engine)),
        Err(error) => {
            eprintln!("SKIPPED: {test}: {error}");
            None
        }
    }
}

/// The guest prints on: it runs, and its memory is its own.
async fn runs(machine: &Owned) {
    let now = machine.console().follow().borrow().offset;
    grown(&machine.console(), now + 10).await;
    assert!(machine.console().tail().ends_with(b"..."));
}

async fn close(machine: &Owned) {
    machine.close(Duration::ZERO).await.unwrap();
    let record = machine.record();
    assert!(!alive(record.process.pid));
    assert_eq!(std::fs::read_dir(&record.runtime_dir).unwrap().count(), 0);
    if let Some(jail) = &record.jail {
        assert!(jail.cgroups.iter().all(|group| !group.exists()));
        assert!(jail.dir.as_ref().is_none_or(|dir| !dir.exists()));
    }
}

/// A4.8, A4.9: one snapshot, two machines from it at once.
#[tokio::test]
async fn a4_9_a_full_snapshot_becomes_several_machines() {
    let Some(bench) = firecracker("a4_9_a_full_snapshot_becomes_several_machines").await else {
        return;
    };
    let source = bench.booted(&bench.spec("source", Then::Tick)).await;
    let target = SnapshotTarget {
        dir: bench.snapshot("full"),
        kind: SnapshotKind::Full,
    };
    assert!(matches!(
        source.snapshot(&target).await,
        Err(MachineError::State { .. })
    ));
    source.pause().await.unwrap();
    let manifest = source.snapshot(&target).await.unwrap();
    assert_eq!(manifest.memory.bytes, 64 << 20);
    assert_eq!(manifest, Manifest::read(&target.dir).unwrap());
    assert_eq!(manifest.host.state_format, "10.0.0");
    // Never a second one in its place.
    assert!(matches!(
        source.snapshot(&target).await,
        Err(MachineError::Snapshot(SnapshotError::File { .. }))
    ));
    source.resume().await.unwrap();
    runs(&source).await;

    let (one, mut other) = (
        bench.clone_of("one", &target.dir),
        bench.clone_of("other", &target.dir),
    );
    other.restore.as_mut().unwrap().paused = true;
    if one.jail.is_none() {
        eprintln!(
            "SKIPPED: clones beside their source: only jailed machines can have the same paths"
        );
        close(&source).await;
        return;
    }
    let one = bench.restored(&one).await;
    let other = bench.restored(&other).await;
    assert_eq!(one.state(), MachineState::Running);
    assert_eq!(other.state(), MachineState::Paused);
    runs(&one).await;
    other.resume().await.unwrap();
    runs(&other).await;
    assert_eq!(one.confinement().unwrap().breaches(), Vec::<Breach>::new());
    for machine in [source, one, other] {
        close(&machine).await;
    }
    // What the machines mapped is as it was.
    assert_eq!(Manifest::read(&target.dir).unwrap(), manifest);
}

#[tokio::test]
async fn a4_8_a_difference_makes_a_whole_snapshot() {
    let Some(bench) = firecracker("a4_8_a_difference_makes_a_whole_snapshot").await else {
        return;
    };
    let mut spec = bench.spec("source", Then::Tick);
    spec.options.track_dirty_pages = true;
    let source = bench.booted(&spec).await;
    source.pause().await.unwrap();
    let target = SnapshotTarget {
        dir: bench.snapshot("none"),
        kind: SnapshotKind::Diff,
    };
    assert!(matches!(
        source.snapshot(&target).await,
        Err(MachineError::Snapshot(SnapshotError::NoBase))
    ));
    bench.make(&source, "full", SnapshotKind::Full).await;
    source.resume().await.unwrap();
    runs(&source).await;
    source.pause().await.unwrap();
    bench.make(&source, "diff", SnapshotKind::Diff).await;
    // The machine stood still: a whole snapshot now is what the difference has made.
    bench.make(&source, "again", SnapshotKind::Full).await;
    let memory = |name: &str| std::fs::read(bench.snapshot(name).join("memory")).unwrap();
    assert_eq!(memory("diff"), memory("again"));
    close(&source).await;
    let machine = bench
        .restored(&bench.clone_of("clone", &bench.snapshot("diff")))
        .await;
    runs(&machine).await;
    close(&machine).await;
}

/// B6 on the engine's level: a snapshot that does not fit is refused before anything is started.
#[tokio::test]
async fn a4_9_a_snapshot_that_does_not_fit_is_refused_by_name() {
    let Some(bench) = firecracker("a4_9_a_snapshot_that_does_not_fit_is_refused_by_name").await
    else {
        return;
    };
    let source = bench.booted(&bench.spec("source", Then::Tick)).await;
    source.pause().await.unwrap();
    bench.make(&source, "full", SnapshotKind::Full).await;
    close(&source).await;
    let dir = bench.snapshot("full");
    let mut spec = bench.clone_of("clone", &dir);
    spec.vcpus = 2;
    spec.mem_mib = 128;
    let error = refused(&*bench.engine, &spec).await;
    let SpawnError::Snapshot(SnapshotError::Mismatch(mismatches)) = error else {
        panic!("{error:?}");
    };
    assert_eq!(mismatches.len(), 2, "{mismatches:?}");

    let spec = bench.clone_of("clone", &dir);
    let path = dir.join("manifest.json");
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, text.replace("\"10.0.0\"", "\"9.0.0\"")).unwrap();
    let error = refused(&*bench.engine, &spec).await;
    assert!(
        error
            .to_string()
            .contains("form of the engine's snapshots: 9.0.0 in the snapshot"),
        "{error}"
    );
    std::fs::write(&path, text).unwrap();
    let state = dir.join("vmstate");
    let mut bytes = std::fs::read(&state).unwrap();
    bytes[100] ^= 1;
    std::fs::remove_file(&state).unwrap();
    std::fs::write(&state, bytes).unwrap();
    let error = refused(&*bench.engine, &spec).await;
    let SpawnError::Snapshot(SnapshotError::Mismatch(mismatches)) = error else {
        panic!("{error:?}");
    };
    assert!(matches!(
        mismatches[0],
        Mismatch::File {
            name: "vmstate",
            ..
        }
    ));
    assert_eq!(std::fs::read_dir(&spec.runtime_dir).unwrap().count(), 0);
}

fn mismatches(error: SpawnError) -> Vec<Mismatch> {
    assert_eq!(error.code(), Code::SnapshotMismatch);
    match error {
        SpawnError::Snapshot(SnapshotError::Mismatch(mismatches)) => mismatches,
        other => panic!("{other:?}"),
    }
}

/// The kernel that was booted and, once it is sealed, the memory: by their digests.
#[tokio::test]
async fn a4_9_another_kernel_or_memory_is_refused_by_name() {
    let Some(bench) = firecracker("a4_9_another_kernel_or_memory_is_refused_by_name").await else {
        return;
    };
    let source = bench.booted(&bench.spec("source", Then::Tick)).await;
    source.pause().await.unwrap();
    let made = bench.make(&source, "full", SnapshotKind::Full).await;
    assert!(made.kernel_sha256.is_some() && made.memory.sha256.is_none());
    close(&source).await;
    let dir = bench.snapshot("full");
    let mut spec = bench.clone_of("clone", &dir);
    spec.boot.kernel = support::stub::write(bench.place.path(), Then::Stay);
    let error = refused(&*bench.engine, &spec).await;
    assert!(matches!(
        mismatches(error)[..],
        [Mismatch::Differs {
            what: "kernel of the guest",
            ..
        }]
    ));

    let sealed = seal(&dir).unwrap();
    assert!(sealed.memory.sha256.is_some());
    let spec = bench.clone_of("sealed", &dir);
    let machine = bench.restored(&spec).await;
    runs(&machine).await;
    close(&machine).await;
    let memory = dir.join("memory");
    let mut bytes = std::fs::read(&memory).unwrap();
    bytes[5 << 20] ^= 1;
    std::fs::remove_file(&memory).unwrap();
    std::fs::write(&memory, bytes).unwrap();
    let error = refused(&*bench.engine, &spec).await;
    assert!(matches!(
        mismatches(error)[..],
        [Mismatch::File { name: "memory", .. }]
    ));
}

/// What is started as the page server of the tests below.
#[test]
#[ignore = "runs inside the tests of the page server"]
fn page_server() {
    let _ = kiln_vmm::uffd::serve();
}

fn handler() -> UffdHandler {
    UffdHandler {
        program: UffdHandler::this_program().program,
        args: ["--ignored", "--exact", "page_server", "--nocapture"]
            .map(str::to_owned)
            .into(),
    }
}

/// The two processes that serve the pages of a machine: whoever else is in its control group.
fn servers(machine: &Owned) -> Vec<u32> {
    let record = machine.record();
    let group = &record.jail.as_ref().unwrap().cgroups[0];
    let members = std::fs::read_to_string(group.join("cgroup.procs")).unwrap();
    members
        .lines()
        .map(|pid| pid.parse().unwrap())
        .filter(|pid| *pid != record.process.pid)
        .collect()
}

async fn served(bench: &Bench) -> Option<Owned> {
    let source = bench.booted(&bench.spec("source", Then::Tick)).await;
    source.pause().await.unwrap();
    bench.make(&source, "full", SnapshotKind::Full).await;
    close(&source).await;
    let mut spec = bench.clone_of("clone", &bench.snapshot("full"));
    if spec.jail.is_none() {
        eprintln!("SKIPPED: a page server without a jail: its processes could not be told apart");
        return None;
    }
    spec.restore.as_mut().unwrap().uffd = Some(handler());
    Some(bench.restored(&spec).await)
}

#[tokio::test]
async fn memory_is_served_page_by_page_and_nobody_is_left() {
    let test = "memory_is_served_page_by_page_and_nobody_is_left";
    let Some(bench) = firecracker(test).await else {
        return;
    };
    let Some(machine) = served(&bench).await else {
        return;
    };
    runs(&machine).await;
    let servers = servers(&machine);
    assert_eq!(servers.len(), 2, "{servers:?}");
    // As unprivileged as the VMM, and not a part of this process: it outlives its daemon.
    for pid in &servers {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let user = machine.record().jail.as_ref().unwrap().uid;
        assert!(status.contains(&format!("Uid:\t{user}\t")), "{status}");
        assert!(status.contains("NoNewPrivs:\t1"), "{status}");
    }
    // Lazily: most of the memory was never asked for.
    let pid = machine.record().process.pid;
    let rollup = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    let rss = rollup
        .lines()
        .find(|line| line.starts_with("Rss:"))
        .unwrap();
    let rss: u64 = rss.split_whitespace().nth(1).unwrap().parse().unwrap();
    assert!(rss < 32 * 1024, "{rss} KiB resident");
    close(&machine).await;
    gone(&servers).await;
}

async fn gone(pids: &[u32]) {
    let begin = Instant::now();
    while pids.iter().any(|pid| alive(*pid)) {
        assert!(begin.elapsed() < PATIENCE, "{pids:?} live on");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Whichever of the two goes, the machine goes instead of hanging.
#[tokio::test]
async fn the_death_of_a_page_server_ends_its_machine() {
    let test = "the_death_of_a_page_server_ends_its_machine";
    for victim in [0, 1] {
        let Some(bench) = firecracker(test).await else {
            return;
        };
        let Some(machine) = served(&bench).await else {
            return;
        };
        let mut servers = servers(&machine);
        servers.sort_unstable();
        kill(servers[victim], Signal::KILL);
        let exit = tokio::time::timeout(PATIENCE, machine.wait()).await;
        assert_eq!(exit.unwrap(), Exit::Signal(Signal::KILL.as_raw()));
        close(&machine).await;
        gone(&servers).await;
    }
}

/// A VMM that dies before it asks leaves no server waiting.
#[tokio::test]
async fn a_page_server_ends_with_a_vmm_that_never_came() {
    let test = "a_page_server_ends_with_a_vmm_that_never_came";
    let Some(bench) = firecracker(test).await else {
        return;
    };
    let Some(machine) = served(&bench).await else {
        return;
    };
    close(&machine).await;
    let mut spec = bench.clone_of("never", &bench.snapshot("full"));
    spec.restore.as_mut().unwrap().uffd = Some(handler());
    let machine = Owned::new(bench.engine.spawn(&spec).await.unwrap());
    let begin = Instant::now();
    let servers = loop {
        let servers = servers(&machine);
        if servers.len() == 2 || begin.elapsed() > PATIENCE {
            break servers;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    };
    kill(machine.record().process.pid, Signal::KILL);
    gone(&servers).await;
    close(&machine).await;
}

/// QEMU: the machine's memory becomes the template, several machines share it.
#[tokio::test]
async fn a4_8_a_template_of_qemu_becomes_several_machines() {
    let Some(bench) = qemu("a4_8_a_template_of_qemu_becomes_several_machines").await else {
        return;
    };
    let mut spec = bench.spec("source", Then::Tick);
    let file = bench.place.path().join("memory");
    spec.options.memory_file = Some(file.clone());
    let source = bench.booted(&spec).await;
    source.pause().await.unwrap();
    // A full one first: the machine goes on after it.
    let full = bench.make(&source, "full", SnapshotKind::Full).await;
    assert_eq!(full.memory.bytes, 64 << 20);
    source.resume().await.unwrap();
    runs(&source).await;
    source.pause().await.unwrap();
    let begin = Instant::now();
    bench
        .make(&source, "template", SnapshotKind::Template)
        .await;
    eprintln!("template in {:?}", begin.elapsed());
    // Its memory is the template's now: nobody may write to it any more.
    assert_eq!(source.state(), MachineState::Exited);
    assert!(!file.exists());
    close(&source).await;

    let mut machines = Vec::new();
    for (name, snapshot) in [("a", "template"), ("b", "template"), ("c", "full")] {
        let begin = Instant::now();
        let clone = bench.clone_of(name, &bench.snapshot(snapshot));
        let machine = bench.restored(&clone).await;
        eprintln!("{snapshot} restored in {:?}", begin.elapsed());
        runs(&machine).await;
        machines.push(machine);
    }
    let memory = std::fs::read(bench.snapshot("template").join("memory")).unwrap();
    assert_eq!(memory.len(), 64 << 20);
    for machine in machines {
        close(&machine).await;
    }
    let after = std::fs::read(bench.snapshot("template").join("memory")).unwrap();
    assert!(memory == after, "a clone has written to the template");
}

/// QEMU: memory without a name is copied, and its machine goes on. Memory that is a snapshot's is not.
#[tokio::test]
async fn a4_8_memory_without_a_name_becomes_a_full_snapshot() {
    let Some(bench) = qemu("a4_8_memory_without_a_name_becomes_a_full_snapshot").await else {
        return;
    };
    let mut spec = bench.spec("source", Then::Tick);
    spec.options.shared_memory = true;
    let source = bench.booted(&spec).await;
    source.pause().await.unwrap();
    let unsupported = async |machine: &Owned, kind| {
        let target = SnapshotTarget {
            dir: bench.snapshot("refused"),
            kind,
        };
        let refused = machine.snapshot(&target).await.unwrap_err();
        assert!(matches!(refused, MachineError::Snapshot(_)), "{refused}");
        assert!(!target.dir.exists());
    };
    unsupported(&source, SnapshotKind::Template).await;
    let full = bench.make(&source, "full", SnapshotKind::Full).await;
    assert_eq!(full.memory.bytes, 64 << 20);
    source.resume().await.unwrap();
    runs(&source).await;

    let clone = bench.clone_of("clone", &bench.snapshot("full"));
    let clone = bench.restored(&clone).await;
    runs(&clone).await;
    clone.pause().await.unwrap();
    unsupported(&clone, SnapshotKind::Full).await;
    close(&clone).await;
    close(&source).await;
}
