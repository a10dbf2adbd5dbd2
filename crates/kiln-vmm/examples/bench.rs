//! Samples for `cargo xtask bench vmm`: what Kiln's engines cost beside the bare programs.
//!
//! Prints one JSON object: lists of milliseconds by name, counts, and what was skipped and why.
//! Guests are a few bytes long; they measure the host's side, and nothing of a kernel's.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a development program: whatever goes wrong ends it"
)]

#[path = "../tests/support/stub.rs"]
#[allow(dead_code, reason = "the tests use the rest")]
mod stub;

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use kiln_vmm::firecracker::FirecrackerEngine;
use kiln_vmm::jail::JailSpec;
use kiln_vmm::qemu::QemuEngine;
use kiln_vmm::{
    Acceleration, Boot, Engine, Machine, MachineOptions, MachineSpec, Restore, SnapshotKind,
    SnapshotTarget,
};
use serde_json::{Value, json};
use stub::{GREETING, Then};

const LEAK_CYCLES: usize = 100;

#[derive(Default)]
struct Samples {
    times: BTreeMap<&'static str, Vec<f64>>,
    counts: BTreeMap<&'static str, f64>,
    skipped: BTreeMap<&'static str, String>,
}

impl Samples {
    fn push(&mut self, name: &'static str, time: Duration) {
        let time = time.as_secs_f64() * 1000.0;
        self.times.entry(name).or_default().push(time);
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let runs: usize = std::env::args()
        .nth(1)
        .map_or(50, |runs| runs.parse().expect("a number of runs"));
    let mut samples = Samples::default();
    let place = Place::new();
    match std::env::var_os("KILN_FIRECRACKER") {
        Some(program) if std::fs::File::open("/dev/kvm").is_ok() => {
            firecracker(Path::new(&program), &place, runs, &mut samples).await;
        }
        _ => {
            let why = "KILN_FIRECRACKER is not set, or there is no /dev/kvm";
            for key in ["spawn_extra_ms", "jail_extra_ms", "load_ratio", "leaks"] {
                samples.skipped.insert(key, why.to_owned());
            }
        }
    }
    qemu(&place, runs.min(10), &mut samples).await;
    let times: BTreeMap<_, Value> = samples.times.iter().map(|(k, v)| (*k, json!(v))).collect();
    println!(
        "{}",
        json!({ "times": times, "counts": samples.counts, "skipped": samples.skipped })
    );
}

struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("kb").tempdir().unwrap();
        for name in ["run", "bare", "j", "snapshots", "cache"] {
            std::fs::create_dir(dir.path().join(name)).unwrap();
        }
        Self(dir)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn spec(&self, jailed: bool, mem_mib: u32, then: Then) -> MachineSpec {
        let user = 1_700_000_000 + std::process::id();
        MachineSpec {
            id: format!("b{}", std::process::id()),
            runtime_dir: self.path("run"),
            vcpus: 1,
            mem_mib,
            boot: Boot {
                kernel: stub::write(self.0.path(), then),
                initramfs: None,
                args: Vec::new(),
            },
            restore: None,
            disks: Vec::new(),
            nics: Vec::new(),
            netns: None,
            jail: jailed.then(|| JailSpec {
                uid: user,
                gid: user,
                base_dir: self.path("j"),
                cgroup_parent: "kiln-bench".to_owned(),
            }),
            allow_insecure: !jailed,
            options: MachineOptions::default(),
            agent: true,
            console_log: self.path("console"),
        }
    }
}

async fn firecracker(program: &Path, place: &Place, runs: usize, samples: &mut Samples) {
    let engine = FirecrackerEngine::open(program).await.unwrap();
    let root = rustix::process::geteuid().is_root();
    // Alternating, so that a busy machine slows both sides alike.
    for _ in 0..runs {
        samples.push("bare_spawn", bare_spawn(program, place, None));
        let spec = place.spec(false, 128, Then::Stay);
        samples.push("spawn", started(&engine, &spec).await);
        if root {
            samples.push(
                "bare_jail",
                bare_spawn(program, place, Some(&jailer(program))),
            );
            let spec = place.spec(true, 128, Then::Stay);
            samples.push("jail", started(&engine, &spec).await);
        }
    }
    if !root {
        for key in ["jail_extra_ms", "load_ratio", "leaks"] {
            let why = "only root makes jails".to_owned();
            samples.skipped.insert(key, why);
        }
        return;
    }
    for (mem_mib, bare, ours) in [
        (128, "bare_load_128", "load_128"),
        (512, "bare_load_512", "load_512"),
    ] {
        loads(
            &engine,
            program,
            place,
            (mem_mib, runs),
            (bare, ours),
            samples,
        )
        .await;
    }
    leaks(&engine, place, samples).await;
}

/// From nothing to a guest that runs.
async fn started(engine: &dyn Engine, spec: &MachineSpec) -> Duration {
    let begin = Instant::now();
    let machine = engine.spawn(spec).await.unwrap();
    let timings = machine.boot().await.unwrap();
    let time = begin.elapsed();
    if std::env::var_os("KILN_BENCH_TIMINGS").is_some() {
        eprintln!("{time:?}: {timings:?}");
    }
    machine.close(Duration::ZERO).await.unwrap();
    time
}

fn jailer(program: &Path) -> PathBuf {
    std::env::var_os("KILN_JAILER")
        .map_or_else(|| program.parent().unwrap().join("jailer"), PathBuf::from)
}

/// The same sequence as a small program in C would do it.
fn bare_spawn(program: &Path, place: &Place, jailer: Option<&Path>) -> Duration {
    let kernel = stub::write(place.0.path(), Then::Stay);
    let begin = Instant::now();
    let mut vmm = Bare::start(program, place, jailer);
    let (kernel, vsock) = match &vmm.root {
        Some(root) => {
            std::fs::hard_link(&kernel, root.join("kernel")).unwrap();
            (PathBuf::from("/kernel"), PathBuf::from("/v.sock"))
        }
        None => (kernel, place.path("bare").join("v.sock")),
    };
    vmm.put(
        "/machine-config",
        &json!({"vcpu_count": 1, "mem_size_mib": 128}),
    );
    let args = "console=ttyS0 quiet reboot=k panic=-1";
    vmm.put(
        "/boot-source",
        &json!({"kernel_image_path": kernel, "boot_args": args}),
    );
    vmm.put("/vsock", &json!({"guest_cid": 3, "uds_path": vsock}));
    vmm.put("/entropy", &json!({}));
    vmm.put("/actions", &json!({"action_type": "InstanceStart"}));
    begin.elapsed()
}

/// A Firecracker without Kiln; removed when dropped.
struct Bare {
    child: Child,
    stream: UnixStream,
    dir: PathBuf,
    root: Option<PathBuf>,
    jail: Option<PathBuf>,
}

impl Bare {
    fn start(program: &Path, place: &Place, jailer: Option<&Path>) -> Self {
        let dir = place.path("bare");
        let name = program.canonicalize().unwrap();
        let jail = place.path("j").join(name.file_name().unwrap()).join("bare");
        let (mut command, root) = match jailer {
            Some(jailer) => {
                let mut command = Command::new(jailer);
                command
                    .args(["--id", "bare", "--uid", "1699999999", "--gid", "1699999999"])
                    .arg("--exec-file")
                    .arg(program)
                    .arg("--chroot-base-dir")
                    .arg(place.path("j"))
                    .args(["--", "--api-sock", "/api.sock"]);
                (command, Some(jail.join("root")))
            }
            None => {
                let mut command = Command::new(program);
                command.args(["--id", "bare", "--api-sock"]);
                command.arg(dir.join("api.sock"));
                (command, None)
            }
        };
        command
            .args(["--level", "Warning"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let child = command.spawn().unwrap();
        let socket = root.as_ref().unwrap_or(&dir).join("api.sock");
        let stream = loop {
            match UnixStream::connect(&socket) {
                Ok(stream) => break stream,
                Err(_) => std::thread::sleep(Duration::from_micros(100)),
            }
        };
        Self {
            child,
            stream,
            dir,
            jail: root.is_some().then_some(jail),
            root,
        }
    }

    fn put(&mut self, path: &str, body: &Value) {
        let body = body.to_string();
        let request = format!(
            "PUT {path} HTTP/1.1\r\nHost: l\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\n\r\n{body}",
            body.len()
        );
        self.stream.write_all(request.as_bytes()).unwrap();
        let mut answer = [0; 4096];
        let count = self.stream.read(&mut answer).unwrap();
        let answer = String::from_utf8_lossy(&answer[..count]);
        assert!(answer.contains(" 204"), "{path}: {answer}");
    }
}

impl Drop for Bare {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        for name in ["api.sock", "v.sock"] {
            let _ = std::fs::remove_file(self.dir.join(name));
        }
        if let Some(jail) = &self.jail {
            let _ = std::fs::remove_dir_all(jail);
        }
    }
}

/// Loading a snapshot and going on, jailed on both sides.
async fn loads(
    engine: &FirecrackerEngine,
    program: &Path,
    place: &Place,
    (mem_mib, runs): (u32, usize),
    (bare, ours): (&'static str, &'static str),
    samples: &mut Samples,
) {
    let dir = place.path("snapshots").join(mem_mib.to_string());
    let spec = place.spec(true, mem_mib, Then::Stay);
    let machine = engine.spawn(&spec).await.unwrap();
    machine.boot().await.unwrap();
    machine.pause().await.unwrap();
    let target = SnapshotTarget {
        dir: dir.clone(),
        kind: SnapshotKind::Full,
    };
    machine.snapshot(&target).await.unwrap();
    machine.close(Duration::ZERO).await.unwrap();
    let mut spec = spec;
    spec.restore = Some(Restore {
        dir: dir.clone(),
        paused: false,
        uffd: None,
        step_clock: false,
    });
    for _ in 0..runs {
        let mut vmm = Bare::start(program, place, Some(&jailer(program)));
        let root = vmm.root.clone().unwrap();
        for name in ["memory", "vmstate"] {
            std::fs::hard_link(dir.join(name), root.join(name)).unwrap();
        }
        let begin = Instant::now();
        vmm.put(
            "/snapshot/load",
            &json!({
                "snapshot_path": "/vmstate", "resume_vm": true,
                "mem_backend": {"backend_type": "File", "backend_path": "/memory"},
            }),
        );
        samples.push(bare, begin.elapsed());
        drop(vmm);
        // From a Firecracker that answers to a guest that runs: what is around it is the jail's.
        let begin = Instant::now();
        let machine = engine.spawn(&spec).await.unwrap();
        let timings = machine.boot().await.unwrap();
        samples.push(ours, timings.configure);
        if mem_mib == 512 {
            samples.push("restore_512", begin.elapsed());
        }
        machine.close(Duration::ZERO).await.unwrap();
    }
}

/// What is there before and after many machines.
async fn leaks(engine: &FirecrackerEngine, place: &Place, samples: &mut Samples) {
    let spec = place.spec(true, 64, Then::Stay);
    // What is allocated once is no leak.
    for _ in 0..5 {
        started(engine, &spec).await;
    }
    let (before, memory) = (resources(place), resident_kib());
    for _ in 0..LEAK_CYCLES {
        started(engine, &spec).await;
    }
    // Closing an inotify descriptor is left to a thread; it has a moment.
    let begin = Instant::now();
    while resources(place) != before && begin.elapsed() < Duration::from_secs(5) {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let after = resources(place);
    let leaked: u64 = before
        .iter()
        .zip(&after)
        .map(|((what, before), (_, after))| {
            if after > before {
                eprintln!("leaked: {what}: {before} before, {after} after");
            }
            after.saturating_sub(*before)
        })
        .sum();
    let grown = resident_kib().saturating_sub(memory);
    samples.counts.insert("leaks", leaked as f64);
    samples
        .counts
        .insert("rss_growth_mib", grown as f64 / 1024.0);
}

fn resources(place: &Place) -> Vec<(&'static str, u64)> {
    let entries = |path: &Path| std::fs::read_dir(path).map_or(0, |dir| dir.count() as u64);
    let own = std::process::id();
    let children = std::fs::read_to_string(format!("/proc/{own}/task/{own}/children"));
    let groups = ["memory", "cpu", "pids", ""]
        .map(|name| Path::new("/sys/fs/cgroup").join(name).join("kiln-bench"));
    let groups = groups.iter().map(|dir| {
        let all = std::fs::read_dir(dir).into_iter().flatten().flatten();
        all.filter(|entry| entry.path().is_dir()).count() as u64
    });
    let programs = std::fs::read_dir(place.path("j")).unwrap().flatten();
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let own_mounts = mounts
        .lines()
        .filter(|line| line.contains(place.0.path().to_str().unwrap()));
    vec![
        ("descriptors", entries(Path::new("/proc/self/fd"))),
        (
            "processes",
            children.map_or(0, |list| list.split_whitespace().count() as u64),
        ),
        ("control groups", groups.sum()),
        ("jails", programs.map(|dir| entries(&dir.path())).sum()),
        ("sockets and FIFOs", entries(&place.path("run"))),
        ("mounts", own_mounts.count() as u64),
    ]
}

fn resident_kib() -> u64 {
    let rollup = std::fs::read_to_string("/proc/self/smaps_rollup").unwrap_or_default();
    let line = rollup.lines().find(|line| line.starts_with("Rss:"));
    line.and_then(|line| line.split_whitespace().nth(1)?.parse().ok())
        .unwrap_or(0)
}

/// A template's restore, until the guest has printed.
async fn qemu(place: &Place, runs: usize, samples: &mut Samples) {
    let program = std::env::var_os("KILN_QEMU")
        .map_or_else(|| "/usr/bin/qemu-system-x86_64".into(), PathBuf::from);
    let engine = match QemuEngine::open(&program, Acceleration::Tcg, &place.path("cache")).await {
        Ok(engine) => engine,
        Err(error) => {
            samples.skipped.insert("qemu_restore_ms", error.to_string());
            return;
        }
    };
    let root = rustix::process::geteuid().is_root();
    let mut spec = place.spec(root, 256, Then::Tick);
    spec.options.memory_file = Some(place.path("memory"));
    let machine = engine.spawn(&spec).await.unwrap();
    // The console of earlier machines is there still.
    let before = machine.console().follow().borrow().offset;
    machine.boot().await.unwrap();
    printed(machine.as_ref(), before + GREETING.len() as u64).await;
    machine.pause().await.unwrap();
    let dir = place.path("snapshots").join("template");
    let target = SnapshotTarget {
        dir: dir.clone(),
        kind: SnapshotKind::Template,
    };
    machine.snapshot(&target).await.unwrap();
    machine.close(Duration::ZERO).await.unwrap();
    spec.options.memory_file = None;
    spec.restore = Some(Restore {
        dir,
        paused: false,
        uffd: None,
        step_clock: false,
    });
    for _ in 0..runs {
        let begin = Instant::now();
        let machine = engine.spawn(&spec).await.unwrap();
        let before = machine.console().follow().borrow().offset;
        machine.boot().await.unwrap();
        printed(machine.as_ref(), before + 1).await;
        samples.push("qemu_restore", begin.elapsed());
        machine.close(Duration::ZERO).await.unwrap();
    }
}

async fn printed(machine: &dyn Machine, offset: u64) {
    let mut follower = machine.console().follow();
    let end = follower.wait_for(|end| end.offset >= offset).await;
    end.expect("the console is open");
}
