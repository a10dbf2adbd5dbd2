use serde_json::{json, to_value};

use super::*;
use crate::firecracker::version::{Feature, Version};
use crate::nic::{RateLimit, TokenBucket};

#[test]
fn requests_have_the_documented_form_and_leave_out_what_is_unset() {
    assert_eq!(
        to_value(Action::InstanceStart).unwrap(),
        json!({"action_type": "InstanceStart"})
    );
    assert_eq!(
        to_value(VmState::Paused).unwrap(),
        json!({"state": "Paused"})
    );
    assert_eq!(to_value(Entropy::default()).unwrap(), json!({}));
    let boot = BootSource {
        kernel_image_path: "/k".into(),
        ..BootSource::default()
    };
    assert_eq!(to_value(boot).unwrap(), json!({"kernel_image_path": "/k"}));
    let drive = Drive {
        drive_id: "d".into(),
        path_on_host: Some("/d".into()),
        cache_type: Some(CacheType::Writeback),
        rate_limiter: Some(RateLimit {
            bandwidth: Some(TokenBucket {
                size: 1000,
                one_time_burst: None,
                refill_ms: 100,
            }),
            ops: None,
        }),
        ..Drive::default()
    };
    assert_eq!(drive.path(), "/drives/d");
    assert_eq!(
        to_value(drive).unwrap(),
        json!({
            "drive_id": "d", "is_root_device": false, "path_on_host": "/d",
            "cache_type": "Writeback",
            "rate_limiter": {"bandwidth": {"size": 1000, "refill_time": 100}},
        })
    );
    let load = SnapshotLoad::of(
        "/s".into(),
        MemoryBackend {
            backend_type: MemoryBackendType::Uffd,
            backend_path: "/u".into(),
        },
    );
    assert_eq!(
        to_value(load).unwrap(),
        json!({
            "snapshot_path": "/s",
            "mem_backend": {"backend_type": "Uffd", "backend_path": "/u"},
        })
    );
    let huge = MachineConfig {
        vcpu_count: 2,
        mem_size_mib: 64,
        huge_pages: Some(HugePages::TwoMib),
        ..MachineConfig::default()
    };
    assert_eq!(
        to_value(huge).unwrap(),
        json!({"vcpu_count": 2, "mem_size_mib": 64, "huge_pages": "2M"})
    );
}

#[test]
fn a_request_says_what_it_uses() {
    let mut nic = NetworkInterface::default();
    assert_eq!(nic.needs(), []);
    nic.mtu = Some(1400);
    assert_eq!(nic.needs(), [Feature::Mtu]);
    assert!(!Feature::Mtu.is_in(Version::new(1, 15, 1)));
    let change = MachineConfigChange {
        vcpu_count: Some(2),
        ..MachineConfigChange::default()
    };
    assert_eq!(change.needs(), [Feature::PartialMachineConfig]);
    let removal = DriveRemoval {
        drive_id: "d".into(),
    };
    assert_eq!(
        (removal.verb(), removal.path()),
        (Verb::Delete, "/drives/d".into())
    );
}

#[test]
fn a_snapshot_may_take_as_long_as_its_memory_is_large() {
    let of = |mem_mib| {
        SnapshotCreate {
            mem_file_path: "/m".into(),
            snapshot_path: "/s".into(),
            snapshot_type: None,
            mem_mib,
        }
        .deadline()
    };
    assert!(of(64 * 1024) > of(128) + std::time::Duration::from_secs(1000));
}

#[test]
fn answers_may_have_more_than_is_known() {
    let info: InstanceInfo = serde_json::from_value(json!({
        "app_name": "Firecracker", "id": "m", "state": "Not started",
        "vmm_version": "1.16.1", "new": {"field": [1]},
    }))
    .unwrap();
    assert_eq!(info.state, InstanceState::NotStarted);
    let later: InstanceState = serde_json::from_value(json!("Migrating")).unwrap();
    assert_eq!(later, InstanceState::Other("Migrating".into()));
    let stats: BalloonStats = serde_json::from_value(json!({
        "target_pages": 1, "actual_pages": 2, "target_mib": 3, "actual_mib": 4, "later": 5,
    }))
    .unwrap();
    assert_eq!((stats.actual_mib, stats.swap_in), (4, None));
}
