//! A Linux guest on the real Firecracker: what its engine can do, seen from inside the guest.
//!
//! Runs in the lab (`cargo xtask lab`), which has a KVM that runs guests, as root with Kiln's
//! kernels and images; everything in one machine and its clones, because the lab is slow.

use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::FutureExt as _;
use kiln_image::Silent;
use kiln_vmm::firecracker::FirecrackerEngine;
use kiln_vmm::jail::{Breach, JailSpec};
use kiln_vmm::snapshot::UffdHandler;
use kiln_vmm::{
    BalloonOptions, Disk, DiskChange, DiskOptions, Engine, EngineKind, Machine, MachineOptions,
    MachineSpec, MetadataOptions, Nic, Restore, SnapshotKind, SnapshotTarget,
};
use serde_json::json;

use super::support::{run, shell};
use crate::config::{Directories, HostConfig};
use crate::exec::ExecExit;
use crate::guest::{GuestIdentity, GuestLink};
use crate::material::{Material, Materials};
use crate::sandbox::SandboxSpec;
use crate::store::SandboxRow;

/// The lab emulates its processor.
const BOOT: Duration = Duration::from_secs(120);
const MEM_MIB: u32 = 192;
const FIRST_USER: u32 = 1_600_000_000;

#[tokio::test]
async fn a_linux_guest_on_the_real_firecracker() {
    let test = "a_linux_guest_on_the_real_firecracker";
    if std::env::var_os("KILN_LAB").is_none() {
        eprintln!("SKIPPED: {test}: not in the lab: cargo xtask test --lab");
        return;
    }
    let lab = Lab::new().await;
    let source = lab.booted("source").await;
    boots_and_is_jailed(&source).await;
    // Runs on through everything that follows, in the clones too.
    let script = "echo $$ > /run/pid; exec sleep 100000";
    let _running = source.link.exec(&shell(script)).await.expect("a command");
    // Each is told, also behind one that failed: the lab is slow to ask twice.
    let mut failed = Vec::new();
    let mut told = |name: &str, outcome: Result<(), _>| {
        if outcome.is_err() {
            failed.push(name.to_owned());
        }
    };
    let step = alone(pauses_and_goes_on(&source)).await;
    told("pause and resume", step);
    told("metadata", alone(reads_metadata(&source)).await);
    told("drive", alone(sees_another_drive(&lab, &source)).await);
    told("balloon", alone(gives_memory_back(&source)).await);
    told("snapshots", alone(makes_snapshots(&lab, &source)).await);
    source.close().await;
    for (name, snapshot, marks, uffd) in [
        ("full", "full", "first", false),
        ("diff", "diff", "first second", false),
        ("uffd", "diff", "first second", true),
    ] {
        let step = alone(goes_on_as_a_clone(&lab, name, (snapshot, marks, uffd))).await;
        told(name, step);
    }
    assert_eq!(failed, Vec::<String>::new());
    println!("all of Firecracker held");
}

/// A step whose failure is told, and is not the end.
async fn alone(step: impl Future<Output = ()>) -> std::thread::Result<()> {
    AssertUnwindSafe(step).catch_unwind().await
}

/// What ran still runs, and what came to be since is there or not.
async fn goes_on_as_a_clone(lab: &Lab, name: &str, (snapshot, marks, uffd): (&str, &str, bool)) {
    let clone = lab.restored(name, snapshot, uffd).await;
    assert_eq!(clone.says("cat /proc/$(cat /run/pid)/comm").await, "sleep");
    assert_eq!(clone.says("echo $(cat /run/marks)").await, marks);
    let is = clone.machine.confinement().expect("it runs");
    assert_eq!(is.breaches(), Vec::<Breach>::new());
    clone.held(&format!("restored from {snapshot}, uffd {uffd}"));
    clone.close().await;
}

/// Not a test of its own.
#[test]
#[ignore = "serves the pages of a machine of the test above"]
fn page_server() {
    let _ = kiln_vmm::uffd::serve();
}

struct Lab {
    engine: FirecrackerEngine,
    material: Material,
    materials: Materials,
    dir: PathBuf,
}

/// A guest with its machine and network.
struct Guest {
    machine: Arc<dyn Machine>,
    link: GuestLink,
    netns: String,
    began: Instant,
}

impl Lab {
    async fn new() -> Self {
        let config = HostConfig::new("/var/lib/kiln", "/run/kiln");
        let directories = Directories::new(&config);
        directories.create().expect("directories");
        let materials = Materials::open(&config, &directories).expect("kernels and images");
        let row = row();
        let material = materials.gather(&row, Arc::new(Silent)).await;
        let program = std::env::var_os("KILN_FIRECRACKER")
            .map_or_else(|| "/usr/local/bin/firecracker".into(), PathBuf::from);
        let dir = PathBuf::from("/var/lib/kiln/lab");
        for part in ["snapshots", "jails"] {
            std::fs::create_dir_all(dir.join(part)).expect("a directory");
        }
        Self {
            engine: FirecrackerEngine::open(&program)
                .await
                .expect("Firecracker"),
            material: material.expect("a kernel and an image"),
            materials,
            dir,
        }
    }

    async fn spec(&self, name: &str) -> MachineSpec {
        let number = u32::from(name.as_bytes()[0]);
        let uid = FIRST_USER + number;
        let runtime_dir = PathBuf::from("/run/kiln/vm").join(name);
        std::fs::create_dir_all(&runtime_dir).expect("a directory");
        let netns = network(name, uid);
        let net = "kiln.net=172.16.0.2/24,172.16.0.1,172.16.0.1,1500".to_owned();
        MachineSpec {
            id: format!("lab-{name}"),
            runtime_dir,
            vcpus: 1,
            mem_mib: MEM_MIB,
            boot: self.material.boot(EngineKind::Firecracker, false, &[net]),
            restore: None,
            disks: vec![
                disk("root", &self.material.rootfs, true),
                disk("scratch", &self.dir.join(format!("scratch-{name}")), false),
                disk("data", &self.drive(name, "first drive"), false),
            ],
            nics: vec![Nic {
                id: "eth0".into(),
                tap: "kt0".into(),
                mac: "06:00:ac:10:00:02".parse().expect("an address"),
                rx_limit: None,
                tx_limit: None,
            }],
            netns: Some(netns),
            jail: Some(JailSpec {
                uid,
                gid: uid,
                base_dir: self.dir.join("jails"),
                cgroup_parent: "kiln-lab".into(),
            }),
            allow_insecure: false,
            options: MachineOptions {
                track_dirty_pages: true,
                balloon: Some(BalloonOptions {
                    deflate_on_oom: true,
                    stats_interval_s: 1,
                    ..BalloonOptions::default()
                }),
                metadata: Some(MetadataOptions {
                    nics: vec!["eth0".into()],
                    content: Some(json!({"latest": {"word": "from the host"}})),
                    ..MetadataOptions::default()
                }),
                ..MachineOptions::default()
            },
            agent: true,
            console_log: self.dir.join(format!("console-{name}")),
        }
    }

    /// A disk of 1 MiB that begins with a line.
    fn drive(&self, name: &str, line: &str) -> PathBuf {
        let path = self.dir.join(format!("{name}-{}", line.replace(' ', "-")));
        std::fs::write(&path, format!("{line}\n")).expect("a file");
        let file = std::fs::File::options().write(true).open(&path);
        file.and_then(|file| file.set_len(1 << 20))
            .expect("a longer file");
        path
    }

    async fn booted(&self, name: &str) -> Guest {
        let scratch = self.dir.join(format!("scratch-{name}"));
        let made = self.materials.make_scratch(&scratch, 256).await;
        made.expect("a scratch disk");
        self.begun(name, self.spec(name).await).await
    }

    /// From a snapshot, with the disks as they were then.
    async fn restored(&self, name: &str, snapshot: &str, uffd: bool) -> Guest {
        let mut spec = self.spec(name).await;
        for disk in ["scratch", "data"] {
            let then = self.dir.join(format!("{disk}-at-{snapshot}"));
            let now = self.dir.join(format!("{disk}-{name}"));
            std::fs::copy(then, &now).expect("a copy");
            let at = spec.disks.iter_mut().find(|it| it.id == disk);
            at.expect("a disk").path = now;
        }
        let handler = UffdHandler {
            args: [
                "--ignored",
                "--exact",
                "guest::tests::lab::page_server",
                "--nocapture",
            ]
            .map(str::to_owned)
            .into(),
            ..UffdHandler::this_program()
        };
        spec.restore = Some(Restore {
            dir: self.dir.join("snapshots").join(snapshot),
            paused: false,
            uffd: uffd.then_some(handler),
            step_clock: false,
        });
        self.begun(name, spec).await
    }

    async fn begun(&self, name: &str, spec: MachineSpec) -> Guest {
        let began = Instant::now();
        let machine = self.engine.spawn(&spec).await.expect("a VMM");
        let endpoint = machine.agent_endpoint().expect("an agent");
        let identity = GuestIdentity {
            hostname: "lab".to_owned(),
        };
        let guest = Guest {
            link: GuestLink::open(endpoint, identity),
            machine: Arc::from(machine),
            netns: name.to_owned(),
            began,
        };
        let booted = guest.machine.boot().await;
        booted.unwrap_or_else(|error| panic!("{error}: {:?}", guest.machine.diagnostics()));
        let ready = tokio::time::timeout(BOOT, guest.link.ready()).await;
        if !matches!(ready, Ok(Ok(_))) {
            panic!("{ready:?}: {}", guest.machine.diagnostics().console);
        }
        guest
    }
}

impl Guest {
    /// What a script prints, which has to succeed.
    async fn says(&self, script: &str) -> String {
        let outcome = run(&self.link, &shell(script)).await;
        assert_eq!(
            outcome.exit,
            Some(ExecExit::Code(0)),
            "{script}: {}",
            outcome.stderr()
        );
        outcome.stdout().trim().to_owned()
    }

    /// Waits for the agent to have dialled again: its connection was reset.
    async fn is_back(&self) {
        let begin = Instant::now();
        loop {
            let spec = shell("true");
            let asked = tokio::time::timeout(BOOT, self.link.exec(&spec)).await;
            if matches!(asked, Ok(Ok(_))) {
                return;
            }
            assert!(begin.elapsed() < BOOT, "{asked:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    fn held(&self, what: &str) {
        println!("held after {:?}: {what}", self.began.elapsed());
    }

    async fn close(self) {
        self.link.close().await;
        self.machine.close(Duration::ZERO).await.expect("an end");
        let record = self.machine.record();
        assert!(
            !Path::new("/proc")
                .join(record.process.pid.to_string())
                .exists()
        );
        let jail = record.jail.as_ref().expect("a jail");
        assert!(jail.dir.as_ref().is_none_or(|dir| !dir.exists()));
        assert!(jail.cgroups.iter().all(|group| !group.exists()));
        ip(&["netns", "del", &self.netns]);
    }
}

async fn boots_and_is_jailed(guest: &Guest) {
    assert_eq!(guest.says("uname -s").await, "Linux");
    let is = guest.machine.confinement().expect("it runs");
    assert_eq!(is.breaches(), Vec::<Breach>::new());
    assert!(is.uid >= FIRST_USER && is.own_root && is.seccomp);
    guest.held("boot, exec, jail");
}

async fn pauses_and_goes_on(guest: &Guest) {
    guest.machine.pause().await.expect("paused");
    let spec = shell("true");
    let asked = tokio::time::timeout(Duration::from_millis(300), guest.link.exec(&spec));
    assert!(asked.await.is_err(), "a paused guest does nothing");
    guest.machine.resume().await.expect("resumed");
    guest.is_back().await;
    assert_eq!(guest.says("echo back").await, "back");
    guest.held("pause, resume");
}

async fn reads_metadata(guest: &Guest) {
    let script = "ip route replace 169.254.169.254 dev eth0
        mmds() { curl -sS --max-time 20 \"$@\"; }
        token=$(mmds -X PUT http://169.254.169.254/latest/api/token \\
            -H 'X-metadata-token-ttl-seconds: 60')
        mmds http://169.254.169.254/latest/word -H \"X-metadata-token: $token\"";
    assert_eq!(guest.says(script).await, "from the host");
    let other = json!({"latest": {"word": "another"}});
    guest.machine.set_metadata(&other).await.expect("told");
    assert_eq!(guest.says(script).await, "another");
    guest.held("metadata");
}

async fn sees_another_drive(lab: &Lab, guest: &Guest) {
    let read = "dd if=/dev/vdc bs=4096 count=1 iflag=direct status=none | head -n 1";
    assert_eq!(guest.says(read).await, "first drive");
    let change = DiskChange {
        id: "data".into(),
        path: Some(lab.drive("source", "second drive")),
        limit: None,
    };
    guest.machine.update_disk(&change).await.expect("changed");
    assert_eq!(guest.says(read).await, "second drive");
    guest.held("drive update");
}

async fn gives_memory_back(guest: &Guest) {
    const BALLOON_MIB: u32 = 48;
    let set = guest.machine.set_balloon(BALLOON_MIB).await;
    set.expect("a guest with a driver");
    balloon_reaches(guest, |mib| mib >= u64::from(BALLOON_MIB)).await;
    guest.machine.set_balloon(0).await.expect("deflated");
    balloon_reaches(guest, |mib| mib == 0).await;
    guest.held("balloon");
}

/// The guest tells once a second.
async fn balloon_reaches(guest: &Guest, wanted: impl Fn(u64) -> bool) {
    let begin = Instant::now();
    loop {
        let state = guest.machine.balloon().await.expect("a balloon");
        if wanted(state.actual_mib) {
            return;
        }
        assert!(begin.elapsed() < BOOT, "{state:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// A full one, and the difference that a running guest has made since.
async fn makes_snapshots(lab: &Lab, guest: &Guest) {
    for (name, kind, mark) in [
        ("full", SnapshotKind::Full, "first"),
        ("diff", SnapshotKind::Diff, "second"),
    ] {
        guest
            .says(&format!("echo {mark} >> /run/marks; sync"))
            .await;
        guest.machine.pause().await.expect("paused");
        let target = SnapshotTarget {
            dir: lab.dir.join("snapshots").join(name),
            kind,
        };
        let manifest = guest.machine.snapshot(&target).await.expect("a snapshot");
        assert!(manifest.kernel_sha256.is_some());
        for (disk, path) in [
            ("scratch", "scratch-source"),
            ("data", "source-second-drive"),
        ] {
            let copy = lab.dir.join(format!("{disk}-at-{name}"));
            std::fs::copy(lab.dir.join(path), copy).expect("a copy");
        }
        guest.machine.resume().await.expect("resumed");
        guest.is_back().await;
        assert_eq!(guest.says("echo on").await, "on");
        guest.held(&format!("{name} snapshot"));
    }
}

fn disk(id: &str, path: &Path, read_only: bool) -> Disk {
    Disk {
        id: id.into(),
        path: path.to_owned(),
        read_only,
        options: DiskOptions::default(),
    }
}

/// A network namespace with a TAP of the VMM's user.
fn network(name: &str, user: u32) -> PathBuf {
    ip(&["netns", "add", name]);
    let user = user.to_string();
    let tap = ["tuntap", "add", "kt0", "mode", "tap", "user", &user];
    for args in [&tap[..], &["link", "set", "kt0", "up"]] {
        ip(&[&["-n", name], args].concat());
    }
    Path::new("/run/netns").join(name)
}

fn ip(args: &[&str]) {
    let status = Command::new("ip").args(args).status().expect("ip");
    assert!(status.success(), "ip {args:?}");
}

fn row() -> SandboxRow {
    SandboxRow::new(
        "000000000000".into(),
        SandboxSpec::default(),
        crate::material::DEFAULT_IMAGE.to_owned(),
    )
}
