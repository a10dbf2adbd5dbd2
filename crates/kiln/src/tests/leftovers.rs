//! What nobody owns, and what is told of what happens.

use std::fs;

use super::stage::{Stage, within};
use crate::{EventKind, LeftoverKind, SandboxState};

#[tokio::test]
async fn what_nobody_owns_is_told_first_and_removed_then() {
    let stage = Stage::new().await;
    let id = stage.started(stage.spec()).await;
    let data = stage.data();
    for dir in [
        "sandboxes/ghostghostgh",
        "jails/firecracker/ghostghostgh/root",
    ] {
        fs::create_dir_all(data.join(dir)).unwrap();
    }
    fs::write(
        data.join("sandboxes/ghostghostgh/scratch.ext4"),
        vec![1; 100_000],
    )
    .unwrap();
    let half = data.join("images/.partial-abc");
    fs::write(&half, "x").unwrap();
    let fresh = within(stage.host().collect_garbage(true)).await.unwrap();
    assert!(
        fresh.iter().all(|it| it.kind != LeftoverKind::HalfMade),
        "it may be in the making"
    );
    let long_ago = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000);
    fs::File::options()
        .write(true)
        .open(&half)
        .unwrap()
        .set_modified(long_ago)
        .unwrap();

    let told = within(stage.host().collect_garbage(true)).await.unwrap();
    let kinds: Vec<_> = told.iter().map(|it| it.kind).collect();
    assert_eq!(
        kinds,
        [
            LeftoverKind::Sandbox,
            LeftoverKind::Jail,
            LeftoverKind::HalfMade
        ]
    );
    assert!(told[0].bytes >= 100_000 && told.iter().all(|it| !it.removed && it.path.exists()));
    let removed = within(stage.host().collect_garbage(false)).await.unwrap();
    assert!(
        removed.iter().all(|it| it.removed && !it.path.exists()),
        "{removed:?}"
    );
    assert!(
        within(stage.host().collect_garbage(false))
            .await
            .unwrap()
            .is_empty()
    );
    assert_eq!(
        stage.state(&id).await,
        SandboxState::Running,
        "what is owned stays"
    );
}

#[tokio::test]
async fn every_step_of_a_life_is_an_event() {
    let stage = Stage::new().await;
    let id = stage.started(stage.spec()).await;
    within(stage.host().pause(&id)).await.unwrap();
    stage.stop(&id).await;
    within(stage.host().remove(&id, false)).await.unwrap();
    let (events, _) = stage.host().events_since(0);
    let kinds: Vec<_> = events.iter().map(|it| it.kind).collect();
    use EventKind::{Created, Paused, Removed, Running, Starting, Stopped, Stopping};
    assert_eq!(
        kinds,
        [
            Created, Starting, Running, Paused, Stopping, Stopped, Removed
        ]
    );
    assert!(events.iter().all(|it| it.sandbox == id));
    let metrics = stage.host().metrics();
    assert_eq!((metrics.starts, metrics.failed_starts), (1, 0));
}
