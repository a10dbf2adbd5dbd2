//! What can be asked of a machine whose guest runs, on the real engines (parity A4, A5).
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "tests fail by panicking; the configured exception covers test functions only"
)]

mod support;

use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use kiln_vmm::firecracker::FirecrackerEngine;
use kiln_vmm::firecracker::api::Client;
use kiln_vmm::firecracker::version::Version;
use kiln_vmm::jail::JailSpec;
use kiln_vmm::qemu::QemuEngine;
use kiln_vmm::{
    Acceleration, BalloonOptions, Code, DiskChange, DiskOptions, Engine, Exit, HotplugOptions,
    MachineError, MachineOptions, MachineSpec, MachineState, MetadataOptions, Nic, NicChange,
    RateLimit, SpawnError, SpecFault, TokenBucket,
};
use serde_json::{Value, json};
use support::netns::Netns;
use support::stub::{GREETING, Then};
use support::{Owned, Place, printed, refused};

async fn firecracker(test: &str) -> Option<FirecrackerEngine> {
    let Some(program) = std::env::var_os("KILN_FIRECRACKER") else {
        eprintln!("SKIPPED: {test}: KILN_FIRECRACKER is not set");
        return None;
    };
    if std::fs::File::open("/dev/kvm").is_err() {
        eprintln!("SKIPPED: {test}: no /dev/kvm");
        return None;
    }
    Some(FirecrackerEngine::open(program.as_ref()).await.unwrap())
}

async fn qemu(test: &str) -> Option<QemuEngine> {
    let program = std::env::var_os("KILN_QEMU")
        .map_or_else(|| "/usr/bin/qemu-system-x86_64".into(), PathBuf::from);
    let cache = Place::new();
    match QemuEngine::open(&program, Acceleration::Tcg, &cache.cache()).await {
        Ok(engine) => Some(engine),
        Err(error) => {
            eprintln!("SKIPPED: {test}: {error}");
            None
        }
    }
}

async fn booted(engine: &dyn Engine, spec: &MachineSpec) -> Owned {
    let machine = Owned::new(engine.spawn(spec).await.unwrap());
    machine.boot().await.unwrap();
    printed(&machine.console(), GREETING).await;
    machine
}

fn limit(size: u64) -> RateLimit {
    RateLimit {
        bandwidth: Some(TokenBucket {
            size,
            one_time_burst: Some(size),
            refill_ms: 1000,
        }),
        ops: None,
    }
}

/// A jailed Firecracker with everything that it can be given.
struct Everything {
    machine: Owned,
    place: Place,
    _netns: Netns,
}

static NEXT_USER: AtomicU32 = AtomicU32::new(0);

async fn everything(test: &str) -> Option<Everything> {
    let engine = firecracker(test).await?;
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED: {test}: only root makes jails and TAPs");
        return None;
    }
    let number = NEXT_USER.fetch_add(1, Ordering::Relaxed);
    let user = 1_910_000_000 + (std::process::id() % 1000) * 100 + number;
    let name = format!("ka{}-{number}", std::process::id());
    let netns = match Netns::new(name.clone(), user) {
        Ok(netns) => netns,
        Err(error) => {
            eprintln!("SKIPPED: {test}: no network namespace with a TAP: {error}");
            return None;
        }
    };
    let place = Place::new();
    std::fs::create_dir(place.path().join("j")).unwrap();
    let mut disk = place.disk("scratch", "scratch", false);
    disk.options = DiskOptions {
        writeback: true,
        limit: Some(limit(1 << 20)),
        ..DiskOptions::default()
    };
    let spec = MachineSpec {
        id: name,
        vcpus: 2,
        nics: vec![Nic {
            id: "eth0".into(),
            tap: "kt0".into(),
            mac: "06:00:ac:1e:00:02".parse().unwrap(),
            rx_limit: Some(limit(4096)),
            tx_limit: None,
        }],
        netns: Some(netns.path()),
        jail: Some(JailSpec {
            uid: user,
            gid: user,
            base_dir: place.path().join("j"),
            cgroup_parent: "kiln-test".into(),
        }),
        allow_insecure: false,
        disks: vec![place.disk("root", "image", true), disk],
        options: MachineOptions {
            smt: true,
            track_dirty_pages: true,
            balloon: Some(BalloonOptions {
                amount_mib: 8,
                deflate_on_oom: true,
                stats_interval_s: 1,
                free_page_reporting: true,
            }),
            memory_hotplug: Some(HotplugOptions {
                total_mib: 256,
                slot_mib: None,
                block_mib: None,
            }),
            metadata: Some(MetadataOptions {
                nics: vec!["eth0".into()],
                content: Some(json!({"latest": {"meta-data": {"a": 1}}})),
                ..MetadataOptions::default()
            }),
            entropy_limit: Some(limit(4096)),
            ..MachineOptions::default()
        },
        ..place.spec(Then::Tick)
    };
    let machine = booted(&engine, &spec).await;
    Some(Everything {
        machine,
        place,
        _netns: netns,
    })
}

#[tokio::test]
async fn a4_5_a_machine_tells_who_it_is() {
    let Some(it) = everything("a4_5_a_machine_tells_who_it_is").await else {
        return;
    };
    let info = it.machine.info().await.unwrap();
    assert_eq!(info.id, it.machine.record().id);
    assert_eq!(info.state, MachineState::Running);
    let version: Version = info.vmm_version.parse().unwrap();
    assert!(version >= Version::OLDEST);
    it.machine.pause().await.unwrap();
    assert_eq!(it.machine.info().await.unwrap().state, MachineState::Paused);
    it.machine.close(Duration::ZERO).await.unwrap();
}

#[tokio::test]
async fn a4_6_metadata_is_set_merged_and_read() {
    let Some(it) = everything("a4_6_metadata_is_set_merged_and_read").await else {
        return;
    };
    let machine = &it.machine;
    let content = machine.metadata().await.unwrap();
    assert_eq!(content, json!({"latest": {"meta-data": {"a": 1}}}));
    machine
        .patch_metadata(&json!({"latest": {"meta-data": {"b": "2"}}}))
        .await
        .unwrap();
    let content = machine.metadata().await.unwrap();
    assert_eq!(content["latest"]["meta-data"], json!({"a": 1, "b": "2"}));
    let long = json!({ "x": "y".repeat(60_000) });
    assert!(machine.set_metadata(&long).await.is_err());
    machine.pause().await.unwrap();
    machine.set_metadata(&json!({"c": [3]})).await.unwrap();
    assert_eq!(machine.metadata().await.unwrap(), json!({"c": [3]}));
    machine.close(Duration::ZERO).await.unwrap();
}

#[tokio::test]
async fn a5_8_the_metadata_service_is_configured_as_asked() {
    let test = "a5_8_the_metadata_service_is_configured_as_asked";
    let Some(it) = everything(test).await else {
        return;
    };
    let root = it.machine.record().jail.clone().unwrap().dir.unwrap();
    let client = Client::connect(&root.join("root/api.sock")).await.unwrap();
    let config: Value = client
        .get("/vm/config", Duration::from_secs(20))
        .await
        .unwrap();
    let service = &config["mmds-config"];
    assert_eq!(service["network_interfaces"], json!(["eth0"]));
    assert_eq!(service["version"], "V2");
    assert_eq!(service["ipv4_address"], "169.254.169.254");
    it.machine.close(Duration::ZERO).await.unwrap();
}

#[tokio::test]
async fn a4_7_disks_interfaces_and_memory_change_while_the_guest_runs() {
    let test = "a4_7_disks_interfaces_and_memory_change_while_the_guest_runs";
    let Some(it) = everything(test).await else {
        return;
    };
    let (machine, place) = (&it.machine, &it.place);
    machine
        .update_nic(&NicChange {
            id: "eth0".into(),
            tx_limit: Some(limit(8192)),
            ..NicChange::default()
        })
        .await
        .unwrap();
    assert!(
        machine
            .update_nic(&NicChange {
                id: "eth9".into(),
                ..NicChange::default()
            })
            .await
            .is_err()
    );
    // Another file under the disk, which has to come into the jail.
    let other = place.disk("scratch", "other", false);
    let change = DiskChange {
        id: "scratch".into(),
        path: Some(other.path.clone()),
        limit: Some(limit(2 << 20)),
    };
    machine.update_disk(&change).await.unwrap();
    let pid = machine.record().process.pid;
    let inside = std::fs::metadata(format!("/proc/{pid}/root/disk-scratch-1")).unwrap();
    assert_eq!(inside.ino(), std::fs::metadata(&other.path).unwrap().ino());
    let none = DiskChange {
        id: "none".into(),
        ..change
    };
    assert!(matches!(
        machine.update_disk(&none).await,
        Err(MachineError::NoDevice(_))
    ));

    // The stub has no drivers: what needs one is refused in Firecracker's words.
    let refused = machine.set_balloon(16).await.unwrap_err();
    assert_eq!(refused.code(), Code::ApiError, "{refused:?}");
    assert!(matches!(
        refused,
        MachineError::Refused {
            status: Some(400),
            ..
        }
    ));
    assert_eq!(machine.balloon().await.unwrap().target_mib, 8);
    let memory = machine.hotplug_memory().await.unwrap();
    assert_eq!((memory.total_mib, memory.plugged_mib), (256, 0));
    assert!(machine.set_hotplug_memory(128).await.is_err());
    machine.close(Duration::ZERO).await.unwrap();
    assert_eq!(std::fs::metadata(&other.path).unwrap().uid(), 0);
}

/// Typed, summed, and for the devices that there are.
#[tokio::test]
async fn a5_9_metrics_are_read_and_summed() {
    let Some(it) = everything("a5_9_metrics_are_read_and_summed").await else {
        return;
    };
    let machine = &it.machine;
    machine.pause().await.unwrap();
    machine.resume().await.unwrap();
    let change = NicChange {
        id: "eth0".into(),
        tx_limit: Some(limit(8192)),
        ..NicChange::default()
    };
    machine.update_nic(&change).await.unwrap();
    let metrics = machine.metrics().await.unwrap();
    assert!(metrics.disks.contains_key("scratch"), "{:?}", metrics.disks);
    assert!(metrics.nics.contains_key("eth0"));
    assert_eq!((metrics.seccomp_faults, metrics.panics), (0, 0));
    assert!(metrics.latencies_us["pause_vm"] > 0);
    let patched = metrics.all["patch_api_requests"]["network_count"];
    assert!(patched >= 1);
    let again = machine.metrics().await.unwrap();
    assert!(again.all["patch_api_requests"]["network_count"] >= patched);
    machine.close(Duration::ZERO).await.unwrap();
}

/// In any state: what it is made of, its TAPs and where its things are, all from the record.
#[tokio::test]
async fn a4_10_a_record_names_taps_configuration_and_directories() {
    let test = "a4_10_a_record_names_taps_configuration_and_directories";
    let Some(it) = everything(test).await else {
        return;
    };
    let held = |record: &kiln_vmm::MachineRecord| {
        assert_eq!(record.runtime_dir, it.place.runtime_dir());
        let shape = &record.shape;
        assert_eq!((shape.vcpus, shape.mem_mib, shape.agent), (2, 64, true));
        let taps: Vec<&str> = shape.nics.iter().map(|nic| nic.tap.as_str()).collect();
        assert_eq!(taps, ["kt0"]);
        let disks: Vec<&str> = shape.disks.iter().map(|disk| disk.id.as_str()).collect();
        assert_eq!(disks, ["root", "scratch"]);
        assert!(shape.tracks_dirty_pages);
    };
    held(it.machine.record());
    it.machine.close(Duration::ZERO).await.unwrap();
    assert_eq!(it.machine.state(), MachineState::Exited);
    held(it.machine.record());
}

/// Idempotent, and nothing of it is left.
#[tokio::test]
async fn a4_4_what_is_closed_leaves_nothing() {
    let Some(it) = everything("a4_4_what_is_closed_leaves_nothing").await else {
        return;
    };
    let record = it.machine.record().clone();
    for _ in 0..2 {
        it.machine.close(Duration::ZERO).await.unwrap();
        assert_eq!(it.place.left(), Vec::<String>::new());
    }
    let jail = record.jail.unwrap();
    assert!(!jail.dir.unwrap().exists());
    assert!(jail.cgroups.iter().all(|group| !group.exists()));
}

/// Ctrl-Alt-Del that nobody hears, then SIGTERM and SIGKILL.
#[tokio::test]
async fn a4_3_a_guest_that_does_not_listen_is_ended() {
    let Some(engine) = firecracker("a4_3_a_guest_that_does_not_listen_is_ended").await else {
        return;
    };
    let place = Place::new();
    let machine = booted(&engine, &place.spec(Then::Stay)).await;
    machine.press_ctrl_alt_del().await.unwrap();
    let heard = tokio::time::timeout(Duration::from_millis(200), machine.wait()).await;
    assert!(heard.is_err(), "{heard:?}");
    let exit = machine.close(Duration::from_secs(5)).await.unwrap();
    assert_eq!(exit, Exit::Signal(rustix::process::Signal::TERM.as_raw()));
    // A paused one cannot hear it, and is ended all the same.
    let machine = booted(&engine, &place.spec(Then::Tick)).await;
    machine.pause().await.unwrap();
    let pressed = machine.press_ctrl_alt_del().await.unwrap_err();
    assert_eq!(pressed.code(), Code::InvalidState);
    machine.close(Duration::from_secs(5)).await.unwrap();
    assert_eq!(place.left(), Vec::<String>::new());
}

/// The machine keeps its own copy of what it was made from.
#[tokio::test]
async fn a4_1_a_specification_that_changes_changes_no_machine() {
    let test = "a4_1_a_specification_that_changes_changes_no_machine";
    let Some(engine) = firecracker(test).await else {
        return;
    };
    let place = Place::new();
    let mut spec = place.spec(Then::Tick);
    let machine = Owned::new(engine.spawn(&spec).await.unwrap());
    spec.boot.kernel = "/nonexistent".into();
    spec.mem_mib = 1 << 30;
    machine.boot().await.unwrap();
    printed(&machine.console(), GREETING).await;
    assert_eq!(machine.record().shape.mem_mib, 64);
    machine.close(Duration::ZERO).await.unwrap();
}

/// A call outside its states changes nothing: A4.
#[tokio::test]
async fn a4_2_a_call_outside_its_states_is_refused() {
    let Some(engine) = firecracker("a4_2_a_call_outside_its_states_is_refused").await else {
        return;
    };
    let place = Place::new();
    let machine = Owned::new(engine.spawn(&place.spec(Then::Stay)).await.unwrap());
    for refused in [
        machine.set_metadata(&json!({})).await,
        machine.update_disk(&DiskChange::default()).await,
        machine.update_nic(&NicChange::default()).await,
        machine.set_balloon(1).await,
        machine.metrics().await.map(drop),
        machine.info().await.map(drop),
        machine.pause().await,
    ] {
        let refused = refused.unwrap_err();
        assert!(matches!(refused, MachineError::State { .. }), "{refused:?}");
        assert_eq!(refused.code(), Code::InvalidState);
    }
    machine.boot().await.unwrap();
    assert!(matches!(
        machine.boot().await,
        Err(MachineError::State { call: "boot", .. })
    ));
    assert!(matches!(
        machine.resume().await,
        Err(MachineError::State { call: "resume", .. })
    ));
    // No balloon, no metadata service, no such disk: Firecracker's words.
    assert!(machine.set_balloon(1).await.is_err());
    assert!(machine.set_metadata(&json!({})).await.is_err());
    machine.close(Duration::ZERO).await.unwrap();
    assert!(matches!(
        machine.metadata().await,
        Err(MachineError::State { .. })
    ));
}

/// All faults together: A5.
#[tokio::test]
async fn a5_2_every_fault_of_the_options_is_told_at_once() {
    let Some(engine) = firecracker("a5_2_every_fault_of_the_options_is_told_at_once").await else {
        return;
    };
    let place = Place::new();
    let mut spec = place.spec(Then::Stay);
    spec.vcpus = 3;
    let mut root = place.disk("a", "a", true);
    root.options.root = true;
    let mut other = root.clone();
    other.id = "b".into();
    spec.disks = vec![root, other];
    spec.options = MachineOptions {
        smt: true,
        balloon: Some(BalloonOptions {
            amount_mib: 64,
            ..BalloonOptions::default()
        }),
        memory_hotplug: Some(HotplugOptions {
            total_mib: 100,
            slot_mib: None,
            block_mib: Some(3),
        }),
        metadata: Some(MetadataOptions {
            nics: vec!["eth7".into()],
            ..MetadataOptions::default()
        }),
        ..MachineOptions::default()
    };
    let SpawnError::Invalid(faults) = refused(&engine, &spec).await else {
        panic!("not refused");
    };
    assert_eq!(faults.0.len(), 5, "{faults}");
    assert!(faults.0.contains(&SpecFault::OddThreads(3)));
    assert!(
        faults
            .0
            .contains(&SpecFault::Roots(vec!["a".into(), "b".into()]))
    );
    assert!(faults.0.contains(&SpecFault::MetadataNic("eth7".into())));
}

#[tokio::test]
async fn a4_7_a_qemu_takes_the_changes_that_it_knows_and_refuses_the_rest() {
    let test = "a4_7_a_qemu_takes_the_changes_that_it_knows_and_refuses_the_rest";
    let Some(engine) = qemu(test).await else {
        return;
    };
    let place = Place::new();
    let mut spec = place.spec(Then::Tick);
    spec.disks = vec![
        place.disk("root", "image", true),
        place.disk("scratch", "scratch", false),
    ];
    spec.disks[1].options.limit = Some(limit(1 << 20));
    spec.options.balloon = Some(BalloonOptions {
        stats_interval_s: 1,
        deflate_on_oom: true,
        free_page_reporting: true,
        ..BalloonOptions::default()
    });
    let machine = booted(&engine, &spec).await;
    let other = place.disk("scratch", "other", false);
    let file = std::fs::File::options()
        .write(true)
        .open(&other.path)
        .unwrap();
    file.set_len(2 << 20).unwrap();
    let held = |path: &PathBuf| {
        let pid = machine.record().process.pid;
        let links = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
        links
            .filter_map(|fd| std::fs::read_link(fd.unwrap().path()).ok())
            .any(|link| link == *path)
    };
    assert!(!held(&other.path));
    machine
        .update_disk(&DiskChange {
            id: "scratch".into(),
            path: Some(other.path.clone()),
            limit: Some(limit(4 << 20)),
        })
        .await
        .unwrap();
    assert!(held(&other.path));
    assert!(matches!(
        machine
            .update_disk(&DiskChange {
                id: "none".into(),
                ..DiskChange::default()
            })
            .await,
        Err(MachineError::NoDevice(_))
    ));
    let info = machine.info().await.unwrap();
    assert_eq!(info.vmm_version, engine.capabilities().version);
    machine.set_balloon(8).await.unwrap();
    // Nobody in the stub gives anything back.
    assert_eq!(machine.balloon().await.unwrap().actual_mib, 0);
    let metrics = machine.metrics().await.unwrap();
    let ids: Vec<&String> = metrics.disks.keys().collect();
    assert_eq!(ids, ["root", "scratch"]);
    for refused in [
        machine.set_metadata(&json!({})).await,
        machine.update_nic(&NicChange::default()).await,
        machine.set_hotplug_memory(1).await,
    ] {
        assert!(matches!(refused, Err(MachineError::Unsupported(_))));
    }
    machine.close(Duration::ZERO).await.unwrap();

    spec.options.smt = true;
    spec.options.track_dirty_pages = true;
    spec.vcpus = 2;
    let SpawnError::Invalid(faults) = refused(&engine, &spec).await else {
        panic!("not refused");
    };
    assert_eq!(
        faults.0,
        [
            SpecFault::Option("threads of cores"),
            SpecFault::Option("diff snapshots")
        ]
    );
}
