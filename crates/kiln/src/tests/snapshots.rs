//! Snapshots: made, restored, refused, kept, removed.

use std::fs;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::PathBuf;

use kiln_vmm::fake::{Plan, Step};

use super::stage::{Stage, within};
use crate::{
    AfterSnapshot, Error, ErrorCode, EventKind, LeftoverKind, NewSnapshot, PruneImages,
    SandboxSpec, SandboxState, SnapshotInfo, VolumeMount,
};

/// Where in a scratch disk a test leaves its mark: far behind what the filesystem has written.
const PLACE: u64 = 20 << 20;

fn spec_with_disk(stage: &Stage) -> SandboxSpec {
    SandboxSpec {
        tmpfs: false,
        disk_mib: 32,
        ..stage.spec()
    }
}

fn from(key: &str, name: Option<&str>) -> SandboxSpec {
    SandboxSpec {
        snapshot: Some(key.to_owned()),
        name: name.map(Into::into),
        ..SandboxSpec::default()
    }
}

fn scratch(stage: &Stage, id: &str) -> PathBuf {
    stage.data().join("sandboxes").join(id).join("scratch.ext4")
}

fn mark(disk: &std::path::Path, mark: u8) {
    let disk = fs::File::options().write(true).open(disk).unwrap();
    disk.write_all_at(&[mark], PLACE).unwrap();
}

fn marked(disk: &std::path::Path) -> u8 {
    let mut byte = [0];
    let disk = fs::File::open(disk).unwrap();
    disk.read_exact_at(&mut byte, PLACE).unwrap();
    byte[0]
}

async fn snapshot(stage: &Stage, key: &str, name: Option<&str>) -> Result<SnapshotInfo, Error> {
    let wanted = NewSnapshot {
        name: name.map(Into::into),
        ..NewSnapshot::default()
    };
    within(stage.host().create_snapshot(key, wanted)).await
}

/// Nothing of any snapshot is left.
async fn assert_none(stage: &Stage) {
    assert_eq!(within(stage.host().snapshots()).await.unwrap(), []);
    let dir = fs::read_dir(stage.data().join("snapshots")).unwrap();
    assert_eq!(dir.count(), 0);
}

#[tokio::test]
async fn b6_1_a_sandbox_is_halted_captured_and_goes_on() {
    let stage = Stage::new().await;
    let id = stage.started(spec_with_disk(&stage)).await;
    mark(&scratch(&stage, &id), 7);
    let before = stage.engine.calls().len();
    let made = snapshot(&stage, &id, Some("golden")).await.unwrap();
    let steps: Vec<_> = stage.engine.calls()[before..]
        .iter()
        .map(|call| call.step)
        .collect();
    assert_eq!(steps, [Step::Pause, Step::Snapshot, Step::Resume]);
    assert_eq!(stage.state(&id).await, SandboxState::Running);
    assert_eq!((made.sandbox.as_str(), made.disk_mib), (id.as_str(), 32));
    assert!(made.bytes > 0 && made.used_by.is_empty());
    let (events, _) = stage.host().events_since(0);
    assert_eq!(events.last().unwrap().kind, EventKind::Snapshot);

    // What was in the guest's memory is its owner's alone.
    let dir = stage.data().join("snapshots").join(&made.id);
    let mode = |path: &std::path::Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&dir), 0o700);
    assert_eq!(mode(&dir.join("scratch.ext4")), 0o400);
    assert_eq!(marked(&dir.join("scratch.ext4")), 7);
    mark(&scratch(&stage, &id), 8);
    assert_eq!(marked(&dir.join("scratch.ext4")), 7);

    for key in ["golden", &made.id, &made.id[..6]] {
        let found = within(stage.host().snapshot(key)).await.unwrap();
        assert_eq!(found, made);
    }
    let taken = snapshot(&stage, &id, Some("golden")).await.unwrap_err();
    assert_eq!(taken.code(), ErrorCode::NameTaken);
    let stage = stage.reopened().await;
    assert_eq!(within(stage.host().snapshots()).await.unwrap(), [made]);
    within(stage.host().remove_snapshot("golden"))
        .await
        .unwrap();
    assert_none(&stage).await;
    let gone = within(stage.host().remove_snapshot("golden")).await;
    assert_eq!(gone.unwrap_err().code(), ErrorCode::SnapshotNotFound);
}

#[tokio::test]
async fn b6_1_what_becomes_of_the_sandbox_is_chosen() {
    let stage = Stage::new().await;
    let id = stage.started(stage.spec()).await;
    let then = async |then| {
        let wanted = NewSnapshot { name: None, then };
        within(stage.host().create_snapshot(&id, wanted))
            .await
            .unwrap();
        stage.state(&id).await
    };
    assert_eq!(then(AfterSnapshot::StayPaused).await, SandboxState::Paused);
    // One that is paused stays so.
    assert_eq!(then(AfterSnapshot::Resume).await, SandboxState::Paused);
    within(stage.host().resume(&id)).await.unwrap();
    assert_eq!(then(AfterSnapshot::Resume).await, SandboxState::Running);
    assert_eq!(then(AfterSnapshot::Stop).await, SandboxState::Stopped);
    assert_eq!(within(stage.host().snapshots()).await.unwrap().len(), 4);
    let stopped = snapshot(&stage, &id, None).await.unwrap_err();
    assert_eq!(stopped.code(), ErrorCode::InvalidState);
}

#[tokio::test]
async fn b1_7_several_sandboxes_begin_from_one_and_hold_it() {
    let stage = Stage::new().await;
    let source = stage.started(spec_with_disk(&stage)).await;
    mark(&scratch(&stage, &source), 7);
    let made = snapshot(&stage, &source, Some("golden")).await.unwrap();
    within(stage.host().remove(&source, true)).await.unwrap();

    let one = stage.started(from("golden", Some("one"))).await;
    let created = within(stage.host().create(from(&made.id, None))).await;
    let two = created.unwrap().id;
    stage.start(&two).await.unwrap();
    mark(&scratch(&stage, &one), 1);
    assert_eq!(marked(&scratch(&stage, &two)), 7);
    let info = within(stage.host().get("one")).await.unwrap();
    assert_eq!(info.snapshot.as_ref(), Some(&made.id));
    assert_eq!(info.disk_mib, 32);

    let used = within(stage.host().snapshot("golden")).await.unwrap();
    let mut users = vec![one.clone(), two.clone()];
    users.sort();
    assert_eq!(used.used_by, users);
    let refused = within(stage.host().remove_snapshot("golden")).await;
    assert_eq!(refused.unwrap_err().code(), ErrorCode::SnapshotInUse);
    let stage = stage.reopened().await;
    let refused = within(stage.host().remove_snapshot("golden")).await;
    assert_eq!(refused.unwrap_err().code(), ErrorCode::SnapshotInUse);

    stage.stop(&one).await;
    within(stage.host().remove(&two, true)).await.unwrap();
    within(stage.host().remove_snapshot("golden"))
        .await
        .unwrap();
    assert_none(&stage).await;
    // What was in its memory is gone; it boots from its own disk.
    stage.start(&one).await.unwrap();
    assert_eq!(marked(&scratch(&stage, &one)), 1);
}

#[tokio::test]
async fn b1_7_a_start_that_fails_begins_from_the_snapshot_again() {
    let stage = Stage::new().await;
    let source = stage.started(spec_with_disk(&stage)).await;
    mark(&scratch(&stage, &source), 7);
    snapshot(&stage, &source, Some("golden")).await.unwrap();
    let created = within(stage.host().create(from("golden", None))).await;
    let id = created.unwrap().id;
    stage.engine.plan(Step::Boot, Plan::Fail);
    stage.start(&id).await.unwrap_err();
    assert_eq!(stage.state(&id).await, SandboxState::Error);
    let used = within(stage.host().snapshot("golden")).await.unwrap();
    assert_eq!(used.used_by, [id.as_str()], "it still will");

    // What an attempt wrote to the disk fits no memory.
    let disk = scratch(&stage, &id);
    fs::create_dir_all(disk.parent().unwrap()).unwrap();
    fs::write(&disk, "written by a guest that is gone").unwrap();
    stage.start(&id).await.unwrap();
    assert_eq!(marked(&disk), 7);
}

#[tokio::test]
async fn b6_1_what_fails_leaves_the_sandbox_as_it_was() {
    let stage = Stage::new().await;
    let id = stage.started(spec_with_disk(&stage)).await;
    for step in [Step::Pause, Step::Snapshot] {
        stage.engine.plan(step, Plan::Fail);
        let failed = snapshot(&stage, &id, Some("golden")).await.unwrap_err();
        assert_eq!(failed.code(), ErrorCode::SnapshotFailed, "{step:?}");
        assert_eq!(stage.state(&id).await, SandboxState::Running, "{step:?}");
        within(stage.host().sessions(&id)).await.unwrap();
        assert_none(&stage).await;
    }
    stage.engine.plan(Step::Snapshot, Plan::Die);
    snapshot(&stage, &id, None).await.unwrap_err();
    stage.until(&id, SandboxState::Stopped).await;
    assert_none(&stage).await;
}

#[tokio::test]
async fn b6_1_what_cannot_be_held_is_refused_before_anything_is_touched() {
    let stage = Stage::new().await;
    let blank = crate::NewVolume {
        name: "data".into(),
        source: crate::VolumeSource::Blank(16 << 20),
    };
    within(stage.host().create_volume(blank)).await.unwrap();
    let with_volume = SandboxSpec {
        volumes: vec![VolumeMount {
            volume: "data".into(),
            path: "/srv".into(),
            read_only: false,
        }],
        ..stage.spec()
    };
    let id = stage.started(with_volume).await;
    let before = stage.engine.calls().len();
    let refused = snapshot(&stage, &id, None).await.unwrap_err();
    assert_eq!(refused.code(), ErrorCode::SnapshotUnsupported);
    let unnamed = snapshot(&stage, &id, Some("No Name")).await.unwrap_err();
    assert_eq!(unnamed.code(), ErrorCode::InvalidSpec);

    let other = stage.started(spec_with_disk(&stage)).await;
    fs::remove_file(scratch(&stage, &other)).unwrap();
    let lost = snapshot(&stage, &other, None).await.unwrap_err();
    assert_eq!(lost.code(), ErrorCode::SnapshotFailed);
    let steps = stage.engine.calls();
    let halted = steps[before..].iter().filter(|it| it.step == Step::Pause);
    assert_eq!(halted.count(), 0);
    assert_none(&stage).await;
    let full = crate::snapshot::room_for(stage.dir(), 1 << 60).unwrap_err();
    assert_eq!(full.code(), ErrorCode::DiskFull);
}

#[tokio::test]
async fn b1_7_what_does_not_fit_or_was_changed_is_refused() {
    let mut stage = Stage::new().await;
    let source = stage.started(spec_with_disk(&stage)).await;
    let made = snapshot(&stage, &source, Some("golden")).await.unwrap();
    let created = within(stage.host().create(from("golden", None))).await;
    let id = created.unwrap().id;
    let unknown = within(stage.host().create(from("silver", None))).await;
    assert_eq!(unknown.unwrap_err().code(), ErrorCode::SnapshotNotFound);
    let changed = SandboxSpec {
        vcpus: 3,
        ..from("golden", None)
    };
    let changed = within(stage.host().create(changed)).await.unwrap_err();
    assert_eq!(changed.code(), ErrorCode::InvalidSpec);

    let refused = async |stage: &Stage, code, what: &str| {
        let before = stage.engine.calls().len();
        let error = stage.start(&id).await.unwrap_err();
        assert_eq!(error.code(), code, "{what}: {}", error.message());
        assert_eq!(stage.engine.calls().len(), before, "{what}");
        assert!(!scratch(stage, &id).exists(), "{what}");
    };
    let dir = stage.data().join("snapshots").join(&made.id);
    for name in ["scratch.ext4", "memory", "vmstate"] {
        let (file, kept) = (dir.join(name), dir.join("kept"));
        fs::rename(&file, &kept).unwrap();
        refused(&stage, ErrorCode::SnapshotDamaged, &format!("no {name}")).await;
        fs::copy(&kept, &file).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
        let opened = fs::File::options().write(true).open(&file).unwrap();
        opened.write_all_at(b"X", 2).unwrap();
        refused(&stage, ErrorCode::SnapshotDamaged, &format!("other {name}")).await;
        fs::rename(&kept, &file).unwrap();
    }

    let facts = kiln_vmm::Engine::host_facts(&stage.engine).clone();
    let other = kiln_vmm::snapshot::HostFacts {
        cpu_model: "another".into(),
        ..facts.clone()
    };
    stage.engine = stage.engine.clone().with_host_facts(other);
    let mut stage = stage.reopened().await;
    refused(&stage, ErrorCode::SnapshotMismatch, "processor").await;
    stage.engine = stage.engine.clone().with_host_facts(facts);
    let stage = stage.reopened().await;
    stage.start(&id).await.unwrap();
}

#[tokio::test]
async fn b6_1_what_a_snapshot_lies_upon_is_kept() {
    let stage = Stage::new().await;
    let source = stage.started(spec_with_disk(&stage)).await;
    snapshot(&stage, &source, Some("golden")).await.unwrap();
    within(stage.host().remove(&source, true)).await.unwrap();
    let everything = PruneImages {
        all: true,
        layers: true,
        ..PruneImages::default()
    };
    let prune = async || {
        let pruned = within(stage.host().prune_images(everything)).await;
        pruned.unwrap().freed_bytes
    };
    prune().await;
    let id = stage.started(from("golden", None)).await;
    within(stage.host().remove(&id, true)).await.unwrap();
    within(stage.host().remove_snapshot("golden"))
        .await
        .unwrap();
    assert!(prune().await > 0, "now nobody needs it");
}

#[tokio::test]
async fn b6_1_what_nobody_finished_goes() {
    let stage = Stage::new().await;
    let id = stage.started(spec_with_disk(&stage)).await;
    let made = snapshot(&stage, &id, None).await.unwrap();
    let dir = stage.data().join("snapshots");
    fs::create_dir(dir.join("ghostghostgh.partial")).unwrap();
    fs::create_dir(dir.join("ghostghostgh")).unwrap();
    let found = within(stage.host().collect_garbage(true)).await.unwrap();
    let kinds: Vec<_> = found.iter().map(|it| it.kind).collect();
    assert_eq!(kinds, [LeftoverKind::Snapshot, LeftoverKind::Snapshot]);
    within(stage.host().collect_garbage(false)).await.unwrap();
    assert_eq!(fs::read_dir(&dir).unwrap().count(), 1);

    // A daemon that died on the way: the row is the intent.
    for (stage_of, name) in [("making", "halfmadehalf"), ("removing", "halfgonehalf")] {
        let sql = format!(
            "INSERT INTO snapshots SELECT '{name}', NULL, '{stage_of}', sandbox, record, 1
             FROM snapshots WHERE id = '{}'",
            made.id
        );
        let written = stage.host().shared.store.write(move |tx| {
            tx.execute(&sql, [])?;
            Ok(())
        });
        within(written).await.unwrap();
        fs::create_dir(dir.join(name)).unwrap();
        fs::write(dir.join(name).join("memory"), "half").unwrap();
    }
    fs::create_dir(dir.join("halfmadehalf.partial")).unwrap();
    fs::create_dir(dir.join("ghostghostgh")).unwrap();
    let stage = stage.reopened().await;
    assert_eq!(within(stage.host().snapshots()).await.unwrap(), [made]);
    assert_eq!(fs::read_dir(&dir).unwrap().count(), 1);
    assert_eq!(stage.state(&id).await, SandboxState::Running);
}
