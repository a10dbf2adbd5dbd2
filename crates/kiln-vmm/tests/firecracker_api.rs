//! The typed client as a library of its own, against the real Firecracker: every resource that is
//! configured before a guest runs, read back (parity A5).
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "tests fail by panicking; the configured exception covers test functions only"
)]

mod support;

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use kiln_vmm::firecracker::api::{ApiError, Client};
use kiln_vmm::firecracker::config::{
    Action, Balloon, BootSource, CacheType, CpuTemplate, Drive, Entropy, GuestCid, HugePages,
    InstanceInfo, InstanceState, IoEngine, LogLevel, Logger, MachineConfig, MachineConfigChange,
    MemoryHotplug, MetricsSink, Pmem, Serial, Vsock,
};
use kiln_vmm::{Code, RateLimit, TokenBucket};
use serde_json::{Value, json};
use support::Place;
use support::stub::Then;

const SOON: Duration = Duration::from_secs(20);

/// A Firecracker that nobody but the client speaks to.
struct Vmm {
    _process: Process,
    client: Client,
    place: Place,
}

/// Killed when dropped.
struct Process(Child);

impl Vmm {
    async fn start(test: &str) -> Option<Self> {
        let Some(program) = std::env::var_os("KILN_FIRECRACKER") else {
            eprintln!("SKIPPED: {test}: KILN_FIRECRACKER is not set");
            return None;
        };
        let place = Place::new();
        let socket = place.runtime_dir().join("api.sock");
        let process = Command::new(program)
            .args(["--id", "m-1", "--api-sock"])
            .arg(&socket)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map(Process)
            .unwrap();
        let client = Client::when_ready(&socket, SOON).await.unwrap();
        Some(Self {
            _process: process,
            client,
            place,
        })
    }

    fn file(&self, name: &str, bytes: u64) -> PathBuf {
        let path = self.place.path().join(name);
        let file = std::fs::File::create(&path).unwrap();
        file.set_len(bytes).unwrap();
        path
    }

    async fn config(&self, part: &str) -> Value {
        let config: Value = self.client.get("/vm/config", SOON).await.unwrap();
        config[part].clone()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn limit() -> RateLimit {
    RateLimit {
        bandwidth: Some(TokenBucket {
            size: 1 << 20,
            one_time_burst: Some(4096),
            refill_ms: 250,
        }),
        ops: Some(TokenBucket {
            size: 100,
            one_time_burst: None,
            refill_ms: 1000,
        }),
    }
}

#[tokio::test]
async fn a5_1_a_boot_source_is_taken_whole() {
    let Some(vmm) = Vmm::start("a5_1_a_boot_source_is_taken_whole").await else {
        return;
    };
    let source = BootSource {
        kernel_image_path: support::stub::write(vmm.place.path(), Then::Stay),
        initrd_path: Some(vmm.file("initrd", 4096)),
        boot_args: Some("console=ttyS0 a.b=c".into()),
    };
    vmm.client.send(&source).await.unwrap();
    assert_eq!(
        vmm.config("boot-source").await,
        json!({
            "kernel_image_path": text(&source.kernel_image_path),
            "initrd_path": text(source.initrd_path.as_deref().unwrap()),
            "boot_args": "console=ttyS0 a.b=c",
        })
    );
    let missing = BootSource {
        kernel_image_path: "/nonexistent".into(),
        ..BootSource::default()
    };
    let refused = vmm.client.send(&missing).await.unwrap_err();
    assert!(matches!(&refused, ApiError::Refused { status: 400, message } if !message.is_empty()));
    assert_eq!(refused.code(), Code::ApiError);
}

#[tokio::test]
async fn a5_2_a_machine_configuration_is_taken_whole() {
    let Some(vmm) = Vmm::start("a5_2_a_machine_configuration_is_taken_whole").await else {
        return;
    };
    let config = MachineConfig {
        vcpu_count: 4,
        mem_size_mib: 256,
        smt: Some(true),
        cpu_template: Some(CpuTemplate::None),
        track_dirty_pages: Some(true),
        huge_pages: Some(HugePages::TwoMib),
    };
    vmm.client.send(&config).await.unwrap();
    let mut told: MachineConfig = vmm.client.get("/machine-config", SOON).await.unwrap();
    // What is none is not told by all versions.
    told.cpu_template = Some(CpuTemplate::None);
    assert_eq!(told, config);
    let change = MachineConfigChange {
        mem_size_mib: Some(128),
        ..MachineConfigChange::default()
    };
    vmm.client.send(&change).await.unwrap();
    let told: MachineConfig = vmm.client.get("/machine-config", SOON).await.unwrap();
    assert_eq!((told.mem_size_mib, told.vcpu_count), (128, 4));
}

#[tokio::test]
async fn a5_3_a_drive_is_taken_whole() {
    let Some(vmm) = Vmm::start("a5_3_a_drive_is_taken_whole").await else {
        return;
    };
    let drive = Drive {
        drive_id: "root".into(),
        is_root_device: true,
        partuuid: Some("0eaa91a0-01".into()),
        cache_type: Some(CacheType::Writeback),
        is_read_only: Some(true),
        path_on_host: Some(vmm.file("root", 1 << 20)),
        rate_limiter: Some(limit()),
        io_engine: Some(IoEngine::Sync),
        socket: None,
    };
    vmm.client.send(&drive).await.unwrap();
    let told = vmm.config("drives").await[0].clone();
    assert_eq!(
        told,
        json!({
            "drive_id": "root", "is_root_device": true, "partuuid": "0eaa91a0-01",
            "cache_type": "Writeback", "is_read_only": true, "io_engine": "Sync",
            "path_on_host": text(drive.path_on_host.as_deref().unwrap()), "socket": null,
            "rate_limiter": told["rate_limiter"],
        })
    );
    let second = Drive {
        drive_id: "other".into(),
        ..drive
    };
    let refused = vmm.client.send(&second).await.unwrap_err().to_string();
    assert!(refused.contains("root"), "a second root device: {refused}");
}

#[tokio::test]
async fn a5_5_a_rate_limiter_has_both_buckets() {
    let Some(vmm) = Vmm::start("a5_5_a_rate_limiter_has_both_buckets").await else {
        return;
    };
    let drive = Drive {
        drive_id: "limited".into(),
        path_on_host: Some(vmm.file("limited", 1 << 20)),
        rate_limiter: Some(limit()),
        ..Drive::default()
    };
    vmm.client.send(&drive).await.unwrap();
    let told = vmm.config("drives").await[0]["rate_limiter"].clone();
    assert_eq!(
        told["bandwidth"],
        json!({"size": 1 << 20, "one_time_burst": 4096, "refill_time": 250})
    );
    assert_eq!(
        (&told["ops"]["size"], &told["ops"]["refill_time"]),
        (&json!(100), &json!(1000))
    );
}

#[tokio::test]
async fn a5_6_a_vsock_is_bound_at_its_socket() {
    let Some(vmm) = Vmm::start("a5_6_a_vsock_is_bound_at_its_socket").await else {
        return;
    };
    let vsock = Vsock {
        guest_cid: GuestCid::new(17).unwrap(),
        uds_path: vmm.place.runtime_dir().join("v.sock"),
    };
    vmm.client.send(&vsock).await.unwrap();
    assert!(vsock.uds_path.exists());
    assert_eq!(vmm.config("vsock").await["guest_cid"], 17);
    // Those of the hypervisor, the loopback and the host, which Firecracker would take.
    assert!((0..3).all(|cid| GuestCid::new(cid).is_none()));
}

#[tokio::test]
async fn a5_7_a_balloon_is_taken_whole() {
    let Some(vmm) = Vmm::start("a5_7_a_balloon_is_taken_whole").await else {
        return;
    };
    let balloon = Balloon {
        amount_mib: 16,
        deflate_on_oom: true,
        stats_polling_interval_s: Some(2),
        free_page_hinting: Some(true),
        free_page_reporting: Some(true),
    };
    vmm.client.send(&balloon).await.unwrap();
    let told: Balloon = vmm.client.get("/balloon", SOON).await.unwrap();
    assert_eq!(told, balloon);
}

#[tokio::test]
async fn a5_9_a_logger_writes_what_it_is_told_where_it_is_told() {
    let test = "a5_9_a_logger_writes_what_it_is_told_where_it_is_told";
    let Some(vmm) = Vmm::start(test).await else {
        return;
    };
    let (log, metrics) = (vmm.file("log", 0), vmm.file("metrics", 0));
    let logger = Logger {
        log_path: Some(log.clone()),
        level: Some(LogLevel::Debug),
        show_level: Some(true),
        show_log_origin: Some(true),
        module: None,
    };
    vmm.client.send(&logger).await.unwrap();
    let sink = MetricsSink {
        metrics_path: metrics.clone(),
    };
    vmm.client.send(&sink).await.unwrap();
    let kernel = BootSource {
        kernel_image_path: support::stub::write(vmm.place.path(), Then::Stay),
        ..BootSource::default()
    };
    vmm.client.send(&kernel).await.unwrap();
    let lines = std::fs::read_to_string(&log).unwrap();
    assert!(lines.contains(":INFO:"), "the level: {lines}");
    assert!(lines.contains(".rs:"), "the origin: {lines}");
    if std::fs::File::open("/dev/kvm").is_err() {
        eprintln!("SKIPPED: {test}: metrics: no /dev/kvm");
        return;
    }
    vmm.client.send(&Action::InstanceStart).await.unwrap();
    vmm.client.send(&Action::FlushMetrics).await.unwrap();
    let line = std::fs::read_to_string(&metrics).unwrap();
    let told: Value = serde_json::from_str(line.lines().last().unwrap()).unwrap();
    assert!(told["api_server"].is_object(), "{told}");
}

/// What is neither in the old SDK nor has a test above.
#[tokio::test]
async fn every_other_resource_is_taken() {
    let Some(vmm) = Vmm::start("every_other_resource_is_taken").await else {
        return;
    };
    let entropy = Entropy {
        rate_limiter: Some(limit()),
    };
    vmm.client.send(&entropy).await.unwrap();
    let serial = Serial {
        serial_out_path: Some(vmm.file("serial", 0)),
        ..Serial::default()
    };
    vmm.client.send(&serial).await.unwrap();
    let hotplug = MemoryHotplug {
        total_size_mib: 512,
        slot_size_mib: Some(128),
        block_size_mib: Some(4),
    };
    vmm.client.send(&hotplug).await.unwrap();
    let pmem = Pmem {
        id: "pmem0".into(),
        path_on_host: vmm.file("pmem", 4 << 20),
        root_device: None,
        read_only: Some(true),
        rate_limiter: Some(limit()),
    };
    vmm.client.send(&pmem).await.unwrap();
    assert_eq!(vmm.config("memory-hotplug").await["block_size_mib"], 4);
    assert_eq!(vmm.config("pmem").await[0]["id"], "pmem0");
}

#[tokio::test]
async fn a5_10_the_raw_client_is_ready_when_firecracker_is() {
    let Some(vmm) = Vmm::start("a5_10_the_raw_client_is_ready_when_firecracker_is").await else {
        return;
    };
    let answer = vmm.client.get_raw("/version", SOON).await.unwrap();
    assert_eq!(answer.status, 200);
    let version = answer.body["firecracker_version"].as_str().unwrap();
    assert_eq!(vmm.client.version().unwrap().to_string(), version);
    let body = json!({"vcpu_count": 2, "mem_size_mib": 64});
    let answer = vmm.client.put_raw("/machine-config", &body, SOON).await;
    assert_eq!(answer.unwrap().status, 204);
    let answer = vmm
        .client
        .patch_raw("/machine-config", &json!({"vcpu_count": 1}), SOON)
        .await
        .unwrap();
    assert_eq!((answer.status, answer.body), (204, Value::Null));
    let answer = vmm.client.get_raw("/nowhere", SOON).await.unwrap();
    assert_eq!(answer.status, 400);
    assert!(answer.body["fault_message"].is_string());
    let info: InstanceInfo = vmm.client.get("/", SOON).await.unwrap();
    assert_eq!(info.state, InstanceState::NotStarted);
}

/// Nobody ever listens there.
#[tokio::test]
async fn a5_10_a_firecracker_that_never_comes_costs_the_deadline() {
    let place = Place::new();
    let socket = place.runtime_dir().join("api.sock");
    let waited = Client::when_ready(&socket, Duration::from_millis(100)).await;
    let error = waited.unwrap_err();
    assert!(matches!(error, ApiError::Deadline(_)), "{error:?}");
    assert_eq!(error.code(), Code::ApiTimeout);
}
