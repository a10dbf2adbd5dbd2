//! Many sandboxes on one host.

use super::stage::Stage;

/// A list is of what was found when each machine came up; one sandbox is looked at anew.
#[tokio::test]
async fn a_list_tells_of_each_machine_what_a_look_at_it_tells() {
    let stage = Stage::new().await;
    let id = stage.started(stage.spec()).await;
    let host = stage.host();
    let one = host.get(&id).await.unwrap();
    assert!(
        !one.unprotected.is_empty(),
        "a scripted machine has no jail"
    );
    assert_eq!(host.list(&[]).await.unwrap(), [one]);
    stage.stop(&id).await;
    assert!(host.list(&[]).await.unwrap()[0].unprotected.is_empty());
}

/// Adopted machines are listed as those that this owner has started.
#[tokio::test]
async fn a_list_tells_of_adopted_machines_too() {
    let stage = Stage::new().await;
    let id = stage.started(stage.spec()).await;
    let before = stage.host().list(&[]).await.unwrap();
    let stage = stage.reopened().await;
    assert_eq!(stage.host().list(&[]).await.unwrap(), before);
    stage.stop(&id).await;
}
