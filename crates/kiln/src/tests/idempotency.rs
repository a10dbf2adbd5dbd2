//! Requests that are repeated.

use super::stage::{Stage, within};
use crate::{ErrorCode, SandboxSpec};

#[tokio::test]
async fn a_request_that_is_repeated_makes_one_sandbox() {
    let stage = Stage::new().await;
    let mut requests = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let (host, spec) = (stage.host().clone(), stage.spec());
        requests.spawn(async move { host.create_once("order-1", spec).await.unwrap().id });
    }
    let ids = within(requests.join_all()).await;
    assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
    assert_eq!(stage.host().list(&[]).await.unwrap().len(), 1);

    let other = SandboxSpec {
        vcpus: 2,
        ..stage.spec()
    };
    let refused = stage
        .host()
        .create_once("order-1", other)
        .await
        .unwrap_err();
    assert_eq!(refused.code(), ErrorCode::IdempotencyKeyReused);
    let stage = stage.reopened().await;
    let again = stage.host().create_once("order-1", stage.spec()).await;
    assert_eq!(again.unwrap().id, ids[0], "the key is in the store");
    for key in ["", "a b", "\n"] {
        let refused = stage
            .host()
            .create_once(key, stage.spec())
            .await
            .unwrap_err();
        assert_eq!(refused.code(), ErrorCode::InvalidSpec, "{key:?}");
    }
}
