//! What is put around a VMM: each protection is read from the kernel, on both engines.
//!
//! Each assertion fails when the line that makes it true is taken out.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "tests fail by panicking; the configured exception covers test functions only"
)]

mod support;

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use kiln_vmm::firecracker::FirecrackerEngine;
use kiln_vmm::jail::{Breach, JailSpec, Protection};
use kiln_vmm::qemu::QemuEngine;
use kiln_vmm::{
    Acceleration, Code, Engine, MachineError, MachineRecord, MachineSpec, MachineState, SpawnError,
    SpecFault, listen_for_agent,
};
use rustix::process::Signal;
use support::netns::Netns;
use support::stub::{GREETING, Then};
use support::{Owned, Place, alive, grown, kill, printed, refused};

/// Users of these tests: a range of their own, one for each machine.
static NEXT_USER: AtomicU32 = AtomicU32::new(0);

struct Bench {
    engine: Box<dyn Engine>,
    place: Place,
    id: String,
    user: u32,
}

impl Bench {
    fn of(engine: Box<dyn Engine>) -> Self {
        let number = NEXT_USER.fetch_add(1, Ordering::Relaxed);
        let place = Place::new();
        std::fs::create_dir(place.path().join("j")).unwrap();
        Self {
            engine,
            place,
            id: format!("t{}-{number}", std::process::id()),
            user: 1_900_000_000 + (std::process::id() % 1000) * 100 + number,
        }
    }

    fn base(&self) -> PathBuf {
        self.place.path().join("j")
    }

    fn spec(&self, then: Then) -> MachineSpec {
        MachineSpec {
            id: self.id.clone(),
            jail: Some(JailSpec {
                uid: self.user,
                gid: self.user + 50_000,
                base_dir: self.base(),
                cgroup_parent: "kiln-test".into(),
            }),
            allow_insecure: false,
            ..self.place.spec(then)
        }
    }

    async fn spawned(&self, spec: &MachineSpec) -> Owned {
        Owned::new(self.engine.spawn(spec).await.unwrap())
    }

    /// Jails of this test's machine that are left.
    fn jails(&self) -> Vec<PathBuf> {
        let programs = std::fs::read_dir(self.base()).unwrap();
        programs
            .flat_map(|program| std::fs::read_dir(program.unwrap().path()).unwrap())
            .map(|jail| jail.unwrap().path())
            .collect()
    }

    fn nothing_is_left(&self, record: &MachineRecord) {
        assert!(!alive(record.process.pid));
        assert_eq!(self.place.left(), Vec::<String>::new());
        assert_eq!(self.jails(), Vec::<PathBuf>::new());
        for group in &record.jail.as_ref().unwrap().cgroups {
            assert!(!group.exists(), "{}", group.display());
        }
    }
}

fn fit(test: &str) -> bool {
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED: {test}: only root makes jails");
        return false;
    }
    let groups = Path::new("/sys/fs/cgroup");
    if groups.join("cgroup.controllers").exists() || groups.join("memory").exists() {
        return true;
    }
    eprintln!("SKIPPED: {test}: no control groups with a memory controller");
    false
}

async fn firecracker(test: &str) -> Option<Bench> {
    let Some(program) = std::env::var_os("KILN_FIRECRACKER") else {
        eprintln!("SKIPPED: {test}: KILN_FIRECRACKER is not set");
        return None;
    };
    if !fit(test) || std::fs::File::open("/dev/kvm").is_err() {
        eprintln!("SKIPPED: {test}: no /dev/kvm, or see above");
        return None;
    }
    let engine = FirecrackerEngine::open(program.as_ref()).await.unwrap();
    Some(Bench::of(Box::new(engine)))
}

async fn qemu(test: &str) -> Option<Bench> {
    let program = std::env::var_os("KILN_QEMU")
        .map_or_else(|| "/usr/bin/qemu-system-x86_64".into(), PathBuf::from);
    let cache = Place::new();
    match QemuEngine::open(&program, Acceleration::Tcg, &cache.cache()).await {
        Ok(engine) => fit(test).then(|| Bench::of(Box::new(engine))),
        Err(error) => {
            eprintln!("SKIPPED: {test}: {error}");
            None
        }
    }
}

/// Everything that a jail promises, read by other ways than the code under test takes.
fn confined(machine: &Owned, bench: &Bench) {
    let record = machine.record();
    let pid = record.process.pid;
    for task in std::fs::read_dir(format!("/proc/{pid}/task")).unwrap() {
        let status = std::fs::read_to_string(task.unwrap().path().join("status")).unwrap();
        let line = |name: &str| {
            let line = status.lines().find(|line| line.starts_with(name)).unwrap();
            line.split_once(':').unwrap().1.trim().to_owned()
        };
        let user = bench.user;
        assert_eq!(line("Uid"), format!("{user}\t{user}\t{user}\t{user}"));
        let group = user + 50_000;
        assert_eq!(line("Gid"), format!("{group}\t{group}\t{group}\t{group}"));
        assert_eq!(line("Groups"), "");
        assert_eq!(line("CapEff"), "0000000000000000");
        assert_eq!(line("CapPrm"), "0000000000000000");
        assert_eq!(line("NoNewPrivs"), "1");
        assert_eq!(line("Seccomp"), "2");
        assert!(line("NSpid").ends_with("\t1") || line("NSpid").split('\t').count() == 2);
    }
    let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    let core = limits
        .lines()
        .find(|line| line.starts_with("Max core"))
        .unwrap();
    // Soft and hard: a dump would be a copy of the guest's memory.
    let core: Vec<&str> = core.split_whitespace().skip(4).take(2).collect();
    assert_eq!(core, ["0", "0"]);
    let groups = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let named = format!("/kiln-test/{}", bench.id);
    assert!(
        groups.lines().any(|line| line.ends_with(&named)),
        "{groups}"
    );

    let confinement = machine.confinement().unwrap();
    assert_eq!(confinement.breaches(), Vec::<Breach>::new());
    assert_eq!(confinement.uid, bench.user);
    assert!(confinement.pid_namespace && confinement.cgroup && confinement.seccomp);
}

/// The first line of `file` in the machine's control group, in either version.
fn limit(record: &MachineRecord, files: &[&str]) -> String {
    let groups = &record.jail.as_ref().unwrap().cgroups;
    let paths = groups
        .iter()
        .flat_map(|dir| files.iter().map(move |file| dir.join(file)));
    for path in paths {
        if let Ok(text) = std::fs::read_to_string(path) {
            return text.trim().to_owned();
        }
    }
    panic!("none of {files:?} in {groups:?}");
}

fn limited(record: &MachineRecord, least: u64, most: u64) {
    let memory = limit(record, &["memory.max", "memory.limit_in_bytes"]);
    let memory: u64 = memory.parse().unwrap();
    assert!((least << 20..=most << 20).contains(&memory), "{memory}");
    let swap = limit(record, &["memory.swap.max", "memory.memsw.limit_in_bytes"]);
    assert!(swap == "0" || swap == memory.to_string(), "{swap}");
    let quota = limit(record, &["cpu.max", "cpu.cfs_quota_us"]);
    assert_eq!(quota.split(' ').next(), Some("100000"));
    let pids: u32 = limit(record, &["pids.max"]).parse().unwrap();
    assert!(pids < 200, "{pids}");
}

/// B5.1, B5.2, B5.3.
#[tokio::test]
async fn b5_1_a_jailed_firecracker_is_confined_and_leaves_nothing() {
    let Some(bench) = firecracker("b5_1_a_jailed_firecracker_is_confined_and_leaves_nothing").await
    else {
        return;
    };
    let mut spec = bench.spec(Then::Tick);
    let scratch = bench.place.disk("scratch", "scratch", false);
    spec.disks = vec![bench.place.disk("root", "image", true), scratch.clone()];
    let machine = bench.spawned(&spec).await;
    let Some(kiln_vmm::AgentEndpoint::Listen(agent)) = machine.agent_endpoint() else {
        panic!("no socket to listen on");
    };
    let _listening = listen_for_agent(&agent).unwrap();
    machine.boot().await.unwrap();
    printed(&machine.console(), GREETING).await;
    confined(&machine, &bench);
    limited(machine.record(), 64 + 32, 64 + 128);
    assert!(machine.confinement().unwrap().own_root);

    let pid = machine.record().process.pid;
    let seen: Vec<String> = std::fs::read_dir(format!("/proc/{pid}/root"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    assert!(seen.contains(&"disk-scratch".to_owned()), "{seen:?}");
    assert!(!seen.contains(&"etc".to_owned()), "{seen:?}");
    // Only the VMM's user may dial.
    assert_eq!(std::fs::metadata(&agent).unwrap().uid(), bench.user);
    // The scratch disk is the caller's very file, and is the VMM's meanwhile.
    let inside = format!("/proc/{pid}/root/disk-scratch");
    let (inside, outside) = (
        std::fs::metadata(inside).unwrap(),
        std::fs::metadata(&scratch.path).unwrap(),
    );
    assert_eq!(inside.ino(), outside.ino());
    assert_eq!(outside.uid(), bench.user);

    machine.pause().await.unwrap();
    machine.resume().await.unwrap();
    let record = machine.record().clone();
    machine.close(Duration::from_secs(5)).await.unwrap();
    bench.nothing_is_left(&record);
    assert_eq!(std::fs::metadata(&scratch.path).unwrap().uid(), 0);
}

#[tokio::test]
async fn b5_2_a_jailed_qemu_is_confined_and_leaves_nothing() {
    let Some(bench) = qemu("b5_2_a_jailed_qemu_is_confined_and_leaves_nothing").await else {
        return;
    };
    let mut spec = bench.spec(Then::Tick);
    spec.disks = vec![
        bench.place.disk("root", "image", true),
        bench.place.disk("scratch", "scratch", false),
    ];
    // Nothing that the VMM needs is readable for its user: all of it comes in open.
    for path in [&spec.boot.kernel, &spec.disks[0].path, &spec.disks[1].path] {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).unwrap();
    }
    let machine = bench.spawned(&spec).await;
    machine.boot().await.unwrap();
    printed(&machine.console(), GREETING).await;
    confined(&machine, &bench);
    limited(machine.record(), 64 + 256, 64 + 600);
    let record = machine.record().clone();
    machine.close(Duration::from_secs(10)).await.unwrap();
    bench.nothing_is_left(&record);
}

/// The host's node is root's alone on many hosts: the VMM has one of its own, and no other group.
/// Where KVM only emulates, QEMU gives up later; that it may open the device is what counts here.
#[tokio::test]
async fn b5_1_a_jailed_qemu_may_open_kvm() {
    let test = "b5_1_a_jailed_qemu_may_open_kvm";
    let program = std::env::var_os("KILN_QEMU")
        .map_or_else(|| "/usr/bin/qemu-system-x86_64".into(), PathBuf::from);
    let cache = Place::new();
    let opened = QemuEngine::open(&program, Acceleration::Kvm, &cache.cache()).await;
    let (Ok(engine), true) = (opened, fit(test)) else {
        eprintln!("SKIPPED: {test}: no QEMU, or see above");
        return;
    };
    if std::fs::File::open("/dev/kvm").is_err() {
        eprintln!("SKIPPED: {test}: no /dev/kvm");
        return;
    }
    let bench = Bench::of(Box::new(engine));
    let machine = bench.spawned(&bench.spec(Then::Stay)).await;
    let outcome = machine.boot().await;
    let said = machine.diagnostics().vmm_output;
    assert!(
        !said.contains("Could not access KVM"),
        "{outcome:?}: {said}"
    );
    assert!(!said.contains("Permission denied"), "{outcome:?}: {said}");
    if outcome.is_ok() {
        let confinement = machine.confinement().unwrap();
        assert_eq!(confinement.breaches(), Vec::<Breach>::new());
        // A mount namespace is no root of its own.
        assert!(!confinement.own_root);
    }
    let record = machine.record().clone();
    machine.close(Duration::ZERO).await.unwrap();
    bench.nothing_is_left(&record);
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains("/dev/kvm"), "the host sees it: {mounts}");
}

/// A daemon that dies, another that takes over, and one that cannot: `kill -9` of everything.
#[tokio::test]
async fn a_jailed_machine_is_adopted_and_one_that_cannot_be_is_discarded() {
    let test = "a_jailed_machine_is_adopted_and_one_that_cannot_be_is_discarded";
    let Some(bench) = firecracker(test).await else {
        return;
    };
    let machine = bench.spawned(&bench.spec(Then::Tick)).await;
    machine.boot().await.unwrap();
    let record = machine.leave();
    let machine = Owned::new(bench.engine.adopt(&record).await.unwrap());
    assert_eq!(machine.state(), MachineState::Running);
    let now = machine.console().follow().borrow().offset;
    grown(&machine.console(), now).await;
    assert_eq!(machine.confinement().unwrap().uid, bench.user);
    machine.leave();

    // Somebody whom the record does not name, in the machine's control group.
    let mut stray = std::process::Command::new("sleep")
        .arg("600")
        .spawn()
        .unwrap();
    for group in &record.jail.as_ref().unwrap().cgroups {
        std::fs::write(group.join("cgroup.procs"), stray.id().to_string()).unwrap();
    }
    let reaper = std::thread::spawn(move || stray.wait().unwrap());
    // As after a crash in the worst moment: the record was written by another process.
    let text = serde_json::to_string(&record).unwrap();
    let record: MachineRecord = serde_json::from_str(&text).unwrap();
    assert!(
        kiln_vmm::discard(&record, Duration::ZERO)
            .await
            .unwrap()
            .is_some()
    );
    assert!(!reaper.join().unwrap().success());
    bench.nothing_is_left(&record);
    // Again, with nothing there any more.
    assert!(
        kiln_vmm::discard(&record, Duration::ZERO)
            .await
            .unwrap()
            .is_none()
    );
}

#[tokio::test]
async fn a4_4_a_vmm_that_was_killed_leaves_a_jail_that_is_swept() {
    let test = "a4_4_a_vmm_that_was_killed_leaves_a_jail_that_is_swept";
    let Some(bench) = firecracker(test).await else {
        return;
    };
    let spec = bench.spec(Then::Stay);
    let machine = bench.spawned(&spec).await;
    machine.boot().await.unwrap();
    kill(machine.record().process.pid, Signal::KILL);
    machine.wait().await;
    assert_eq!(bench.jails().len(), 1);
    // A jail is used once: as long as it is there, no second machine goes into it.
    let again = refused(&*bench.engine, &spec).await;
    assert!(matches!(again, SpawnError::Jail(_)), "{again:?}");
    let record = machine.record().clone();
    machine.close(Duration::ZERO).await.unwrap();
    bench.nothing_is_left(&record);
}

#[tokio::test]
async fn a4_1_a_spawn_that_fails_leaves_no_jail() {
    let Some(bench) = firecracker("a4_1_a_spawn_that_fails_leaves_no_jail").await else {
        return;
    };
    let program = std::env::var_os("KILN_FIRECRACKER").unwrap();
    let engine = FirecrackerEngine::open(program.as_ref())
        .await
        .unwrap()
        .with_jailer("/nonexistent/jailer");
    let spec = bench.spec(Then::Stay);
    let error = refused(&engine, &spec).await;
    assert!(matches!(error, SpawnError::Program { .. }), "{error:?}");
    assert_eq!(bench.jails(), Vec::<PathBuf>::new());
    assert_eq!(bench.place.left(), Vec::<String>::new());
}

/// As under `ip netns exec`, whose `/sys` is a fresh one.
#[tokio::test]
async fn b5_2_without_control_groups_nothing_is_started_and_the_error_says_why() {
    let test = "b5_2_without_control_groups_nothing_is_started_and_the_error_says_why";
    if firecracker(test).await.is_none() {
        return;
    }
    let output = std::process::Command::new("unshare")
        .args(["-m", "sh", "-ec"])
        .arg("mount -t tmpfs none /sys/fs/cgroup; exec \"$0\" \"$@\"")
        .arg(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "--nocapture", "inside_hidden"])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("1 passed"), "{text}");
}

#[tokio::test]
#[ignore = "runs inside the test above"]
async fn inside_hidden() {
    let program = std::env::var_os("KILN_FIRECRACKER").unwrap();
    let engine = FirecrackerEngine::open(program.as_ref()).await.unwrap();
    let bench = Bench::of(Box::new(engine));
    let error = refused(&*bench.engine, &bench.spec(Then::Stay)).await;
    assert_eq!(error.code(), Code::CgroupsHidden, "{error:?}");
    let cause = std::error::Error::source(&error).unwrap().to_string();
    assert!(cause.contains("ip netns exec"), "{cause}");
    assert_eq!(bench.jails(), Vec::<PathBuf>::new());
    assert_eq!(bench.place.left(), Vec::<String>::new());
}

/// A Firecracker that is not what it says: the promises are held against the kernel, not
/// against what was asked for.
#[tokio::test]
async fn b5_3_a_vmm_that_breaks_a_promise_is_killed() {
    let Some(bench) = firecracker("b5_3_a_vmm_that_breaks_a_promise_is_killed").await else {
        return;
    };
    let program = std::env::var_os("KILN_FIRECRACKER").unwrap();
    // In place of the jailer: the real Firecracker, unjailed, without filters.
    let jailer = bench.place.path().join("jailer");
    let root = bench
        .base()
        .join("firecracker")
        .join(&bench.id)
        .join("root");
    let script = format!(
        "#!/bin/sh\nid=$2\nwhile [ \"$1\" != -- ]; do shift; done\nshift\n\
         exec {} --id $id --no-seccomp --level Warning --api-sock {}/api.sock\n",
        program.to_str().unwrap(),
        root.display()
    );
    std::fs::write(&jailer, script).unwrap();
    std::fs::set_permissions(&jailer, std::fs::Permissions::from_mode(0o755)).unwrap();
    let engine = FirecrackerEngine::open(program.as_ref())
        .await
        .unwrap()
        .with_jailer(&jailer);
    let mut spec = bench.spec(Then::Stay);
    spec.agent = false;
    let machine = Owned::new(engine.spawn(&spec).await.unwrap());
    let error = machine.boot().await.unwrap_err();
    let record = machine.record().clone();
    machine.close(Duration::ZERO).await.unwrap();
    match error {
        MachineError::Unconfined(breaches) => {
            for breach in [
                Breach::User,
                Breach::Capabilities,
                Breach::Seccomp,
                Breach::Root,
            ] {
                assert!(breaches.contains(&breach), "{breaches:?}");
            }
        }
        other => panic!("{other:?}"),
    }
    bench.nothing_is_left(&record);
}

#[tokio::test]
async fn b5_1_an_unjailed_machine_of_roots_is_refused_unless_that_is_accepted() {
    let test = "b5_1_an_unjailed_machine_of_roots_is_refused_unless_that_is_accepted";
    let Some(bench) = firecracker(test).await else {
        return;
    };
    let mut spec = bench.spec(Then::Stay);
    spec.jail = None;
    let SpawnError::Invalid(faults) = refused(&*bench.engine, &spec).await else {
        panic!("not refused");
    };
    assert_eq!(faults.0, [SpecFault::Unjailed]);
    spec.allow_insecure = true;
    let machine = bench.spawned(&spec).await;
    machine.boot().await.unwrap();
    let breaches = machine.confinement().unwrap().breaches();
    assert!(breaches.contains(&Breach::Unjailed) && breaches.contains(&Breach::User));
    machine.close(Duration::ZERO).await.unwrap();
}

#[tokio::test]
async fn a_jail_that_protects_nothing_is_refused() {
    let Some(bench) = firecracker("a_jail_that_protects_nothing_is_refused").await else {
        return;
    };
    let mut spec = bench.spec(Then::Stay);
    let jail = spec.jail.as_mut().unwrap();
    jail.uid = 0;
    jail.cgroup_parent = "../..".into();
    std::fs::set_permissions(bench.base(), std::fs::Permissions::from_mode(0o777)).unwrap();
    let SpawnError::Invalid(faults) = refused(&*bench.engine, &spec).await else {
        panic!("not refused");
    };
    assert!(
        matches!(faults.0[0], SpecFault::JailUser { uid: 0, .. }),
        "{faults}"
    );
    assert!(
        faults
            .0
            .iter()
            .any(|fault| matches!(fault, SpecFault::JailBase { .. }))
    );
    assert!(faults.0.contains(&SpecFault::CgroupParent("../..".into())));
}

/// The disk on another file system: mounted where only the VMM sees it.
#[tokio::test]
async fn a_disk_of_another_file_system_comes_in_without_a_copy() {
    let test = "a_disk_of_another_file_system_comes_in_without_a_copy";
    let Some(bench) = firecracker(test).await else {
        return;
    };
    let Ok(elsewhere) = tempfile::tempdir_in("/dev/shm") else {
        eprintln!("SKIPPED: {test}: no /dev/shm");
        return;
    };
    let mut spec = bench.spec(Then::Stay);
    let mut disk = bench.place.disk("scratch", "unused", false);
    disk.path = elsewhere.path().join("disk");
    std::fs::write(&disk.path, vec![7; 1 << 20]).unwrap();
    spec.disks = vec![disk.clone()];
    let machine = bench.spawned(&spec).await;
    machine.boot().await.unwrap();
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains(&bench.id), "the host sees it: {mounts}");
    let pid = machine.record().process.pid;
    let inside = std::fs::metadata(format!("/proc/{pid}/root/disk-scratch")).unwrap();
    let outside = std::fs::metadata(&disk.path).unwrap();
    assert_eq!((inside.dev(), inside.ino()), (outside.dev(), outside.ino()));
    let record = machine.record().clone();
    machine.close(Duration::ZERO).await.unwrap();
    bench.nothing_is_left(&record);
}

async fn a_jailed_vmm_holds_its_tap(bench: Bench, test: &str) {
    let netns = match Netns::new(format!("kt-{}", bench.id), bench.user) {
        Ok(netns) => netns,
        Err(error) => {
            eprintln!("SKIPPED: {test}: no network namespace with a TAP: {error}");
            return;
        }
    };
    let mut spec = bench.spec(Then::Tick);
    spec.netns = Some(netns.path());
    spec.nics = vec![kiln_vmm::Nic {
        id: "eth0".into(),
        tap: "kt0".into(),
        mac: "06:00:ac:1e:00:02".parse().unwrap(),
        rx_limit: None,
        tx_limit: None,
    }];
    // Nobody has the other end yet.
    let link = netns.ip(&["link", "show", "kt0"]).unwrap();
    assert!(link.contains("NO-CARRIER"), "{link}");
    let machine = bench.spawned(&spec).await;
    machine.boot().await.unwrap();
    printed(&machine.console(), GREETING).await;
    let link = netns.ip(&["link", "show", "kt0"]).unwrap();
    assert!(link.contains("LOWER_UP"), "{link}");
    let pid = machine.record().process.pid;
    let theirs = std::fs::metadata(format!("/proc/{pid}/ns/net")).unwrap();
    assert_eq!(theirs.ino(), std::fs::metadata(netns.path()).unwrap().ino());
    confined(&machine, &bench);
    let record = machine.record().clone();
    machine.close(Duration::ZERO).await.unwrap();
    bench.nothing_is_left(&record);

    spec.nics[0].tap = "kt1".into();
    let Ok(machine) = bench.engine.spawn(&spec).await.map(Owned::new) else {
        return;
    };
    assert!(machine.boot().await.is_err(), "booted without a TAP");
    machine.close(Duration::ZERO).await.unwrap();
    let link = netns.ip(&["link", "show"]).unwrap();
    assert!(!link.contains("kt1"), "a TAP was made: {link}");
}

/// A5.4, B5.1.
#[tokio::test]
async fn a5_4_a_jailed_firecracker_holds_a_tap_in_its_network_namespace() {
    let test = "a5_4_a_jailed_firecracker_holds_a_tap_in_its_network_namespace";
    if let Some(bench) = firecracker(test).await {
        a_jailed_vmm_holds_its_tap(bench, test).await;
    }
}

#[tokio::test]
async fn b5_1_a_jailed_qemu_holds_a_tap_in_its_network_namespace() {
    let test = "b5_1_a_jailed_qemu_holds_a_tap_in_its_network_namespace";
    if let Some(bench) = qemu(test).await {
        a_jailed_vmm_holds_its_tap(bench, test).await;
    }
}

/// B5.3: filters of the user's own are compiled and hold, and bad ones are never skipped.
#[tokio::test]
async fn b5_3_filters_of_the_users_own_hold() {
    let test = "b5_3_filters_of_the_users_own_hold";
    let Some(bench) = firecracker(test).await else {
        return;
    };
    let program = PathBuf::from(std::env::var_os("KILN_FIRECRACKER").unwrap());
    let compiler = program.parent().unwrap().join("seccompiler-bin");
    if !compiler.exists() {
        eprintln!("SKIPPED: {test}: no seccompiler-bin beside Firecracker");
        return;
    }
    let (filters, compiled) = (
        bench.place.path().join("filters.json"),
        bench.place.path().join("filters"),
    );
    let open = || async {
        let engine = FirecrackerEngine::open(&program).await.unwrap();
        engine.with_filters(&filters, &compiler, &compiled).await
    };
    std::fs::write(&filters, "{\"vmm\": 1}").unwrap();
    assert!(open().await.is_err());
    assert!(!compiled.exists());
    // Everything is allowed but one call that Firecracker never makes.
    let thread = r#"{"default_action": "allow", "filter_action": "trap",
        "filter": [{"syscall": "ptrace"}]}"#;
    let text = format!("{{\"vmm\": {thread}, \"api\": {thread}, \"vcpu\": {thread}}}");
    std::fs::write(&filters, text).unwrap();
    let engine = open().await.unwrap();
    let machine = Owned::new(engine.spawn(&bench.spec(Then::Stay)).await.unwrap());
    machine.boot().await.unwrap();
    confined(&machine, &bench);
    let pid = machine.record().process.pid;
    let line = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap();
    assert!(line.contains("--seccomp-filter\0/filters"), "{line}");
    let record = machine.record().clone();
    machine.close(Duration::ZERO).await.unwrap();
    bench.nothing_is_left(&record);
}

/// Each protection can be left out by itself: it does not hold then, and all others do.
async fn lacks_just_what_it_does_without(bench: &Bench) {
    for (protection, breach) in [
        (Protection::Seccomp, Breach::Seccomp),
        (Protection::PidNamespace, Breach::PidNamespace),
        (Protection::Cgroup, Breach::Cgroup),
    ] {
        let mut spec = bench.spec(Then::Tick);
        spec.options.without = vec![protection];
        let machine = bench.spawned(&spec).await;
        machine.boot().await.unwrap();
        printed(&machine.console(), GREETING).await;
        let breaches = machine.confinement().unwrap().breaches();
        assert_eq!(breaches, [breach], "without {protection}");
        // Who takes it over knows that it is as it should be.
        let record = machine.leave();
        let machine = Owned::new(bench.engine.adopt(&record).await.unwrap());
        assert_eq!(machine.confinement().unwrap().breaches(), [breach]);
        machine.close(Duration::ZERO).await.unwrap();
        bench.nothing_is_left(&record);
    }
    let machine = bench.spawned(&bench.spec(Then::Tick)).await;
    machine.boot().await.unwrap();
    printed(&machine.console(), GREETING).await;
    assert_eq!(machine.confinement().unwrap().breaches(), []);
    machine.close(Duration::ZERO).await.unwrap();
}

#[tokio::test]
async fn b1_10_a_firecracker_lacks_just_what_it_does_without() {
    let test = "b1_10_a_firecracker_lacks_just_what_it_does_without";
    if let Some(bench) = firecracker(test).await {
        lacks_just_what_it_does_without(&bench).await;
    }
}

#[tokio::test]
async fn b1_10_a_qemu_lacks_just_what_it_does_without() {
    let test = "b1_10_a_qemu_lacks_just_what_it_does_without";
    if let Some(bench) = qemu(test).await {
        lacks_just_what_it_does_without(&bench).await;
    }
}

/// Its owner dies before it is written down: no control group tells of its processes, its user does.
#[tokio::test]
async fn b1_10_one_without_a_control_group_is_found_by_its_user() {
    let test = "b1_10_one_without_a_control_group_is_found_by_its_user";
    let Some(bench) = qemu(test).await else {
        return;
    };
    let mut spec = bench.spec(Then::Stay);
    spec.options.without = vec![Protection::Cgroup];
    let machine = bench.spawned(&spec).await;
    machine.boot().await.unwrap();
    printed(&machine.console(), GREETING).await;
    let record = machine.leave();
    let jail = spec.jail.clone().unwrap();
    let id = spec.id.clone();
    let swept = tokio::task::spawn_blocking(move || kiln_vmm::jail::sweep_unrecorded(&jail, &id));
    swept.await.unwrap().unwrap();
    assert!(!alive(record.process.pid));
    assert_eq!(bench.jails(), Vec::<PathBuf>::new());
}
